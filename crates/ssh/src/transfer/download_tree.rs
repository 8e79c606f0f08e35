//! One try of the download of a directory. What the host says is a list, checked whole before anything is made of it;
//! no name of it leads out of the staging directory, and nothing is written through a link.
//!
//! ```text
//!   begin ─▶ list: names, kinds, sizes, modes, times; the texts of links ─▶ checked (tree)
//!         ─▶ staging directory beside the target, new or of an earlier try; what is there in full is left out
//!         ─▶ small files one behind the other in one stream, cut by their sizes ─▶ large files, each as in `download`
//!         ─▶ the host reads everything a second time, digests are compared
//!         ─▶ links, modes and times of directories ─▶ synced; renamed whole, or file by file where there is a directory
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::far::{Far, first_line};
use super::staging::{Staging, Writer};
use super::tree::{Entry, Kind, MAX_ENTRIES, Tree, shown};
use super::upload::ASK;
use super::{IDLE, Meter, Moved, Progress, QUEUE, Stop, download, part_name, proof};
use crate::command::{Chunk, Input, Output};
use crate::error::Error;
use crate::running::Limit;

/// `$1` source.
const BEGIN: &str = "can_sum || { echo NOSUM; exit; }; \
    for p in find xargs stat readlink; do command -v $p >/dev/null 2>&1 || { echo \"NONE $p\"; exit; }; done; \
    if [ -d \"$1\" ]; then echo DIRECTORY; elif [ -e \"$1\" ]; then echo FILE; \
    else ls -d -- \"$1\" >&2; echo NOTHING; fi";

/// `$1` source, `$2` a word that no name holds: it begins each entry. Kind and mode in hexadecimal, size, time, name.
const LIST: &str = "cd -- \"$1\" && exec find . -exec stat -c \"$2 %f %s %Y %n\" -- {} +";

/// `$1` source, `$2` a word that no name holds: it ends each text. Names by standard input.
const LINKS: &str = "cd -- \"$1\" && exec xargs -0 sh -c 'for f do readlink \"$f\" || exit 255; echo \"$0\"; done' \"$2\"";

/// `$1` source. Names by standard input.
const DATA: &str = "cd -- \"$1\" && exec xargs -0 cat --";

/// How much a host may say about names, sizes and links.
const MAX_LIST_BYTES: usize = 64 * 1024 * 1024;

pub(super) async fn run(
    far: &Far<'_>,
    source: &[u8],
    target: &Path,
    meter: &Meter,
) -> Result<Moved, Stop> {
    begin(far, source).await?;
    let tree = Arc::new(list(far, source).await?);
    let name = target.file_name().unwrap_or_default();
    let fingerprint = tree.fingerprint();
    let what = [
        source,
        fingerprint.as_bytes(),
        target.as_os_str().as_encoded_bytes(),
    ];
    let part = part_name(name.as_encoded_bytes(), &what);
    let (at, of) = (target.to_owned(), Arc::clone(&tree));
    let opened = blocking(move || Staging::open(&at, &part, &of)).await;
    let (staging, there) = opened.map_err(local("write beside", target))?;
    let moved = fill(far, source, target, &tree, &staging, there, meter).await;
    if let Err(Stop::Final(_)) = &moved {
        // What cannot be finished only takes room, which may be what is missing.
        let _: io::Result<()> = blocking(move || staging.discard()).await;
    }
    moved
}

fn local<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Stop + 'a {
    move |source| {
        Stop::Final(Error::File {
            what,
            path: path.to_owned(),
            source,
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)?
}

async fn begin(far: &Far<'_>, source: &[u8]) -> Result<(), Stop> {
    let path = shown(source);
    let answer = far.ask(BEGIN, &[source], ASK).await?;
    if answer.get("NOSUM").is_some() {
        return Err(Stop::Final(far.no_checksum(&path)));
    }
    let reason = if let Some(program) = answer.get("NONE") {
        format!("directories need the program {program:?} on the host")
    } else if answer.get("DIRECTORY").is_some() {
        return Ok(());
    } else if answer.get("FILE").is_some() {
        "it is no directory".to_owned()
    } else {
        format!("the host has no such directory: {}", answer.complaint)
    };
    Err(Stop::Final(far.failed(&path, reason, None)))
}

/// The checked list.
async fn list(far: &Far<'_>, source: &[u8]) -> Result<Tree, Stop> {
    let path = shown(source);
    let refused = |reason: String| Stop::Final(far.failed(&path, reason, None));
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|e| refused(format!("no random bytes: {e}")))?;
    let word = hex::encode(random);
    let arguments = [source, word.as_bytes()];
    let listed = far
        .gather(LIST, &arguments, Input::None, MAX_LIST_BYTES, IDLE)
        .await?;
    if listed.exit_code != 0 {
        let said = listed.complaint;
        return Err(refused(format!("the host could not list it: {said}")));
    }
    let odd = || refused("the host's list of it makes no sense".to_owned());
    let (mut entries, skipped) = entries(&listed.out, word.as_bytes()).ok_or_else(odd)?;
    let links: Vec<&mut Entry> = entries
        .iter_mut()
        .filter(|e| e.kind == Kind::Link)
        .collect();
    if !links.is_empty() {
        let names = proof::names(links.iter().map(|entry| &**entry));
        let input = Input::Bytes(names.into());
        let read = far
            .gather(LINKS, &arguments, input, MAX_LIST_BYTES, IDLE)
            .await?;
        let end = format!("\n{word}\n");
        let mut texts = split(&read.out, end.as_bytes());
        for link in links {
            link.link = texts.next().unwrap_or_default().to_vec();
        }
        if read.exit_code != 0 || texts.next().is_some_and(|rest| !rest.is_empty()) {
            let said = read.complaint;
            return Err(refused(format!(
                "the host could not read its links: {said}"
            )));
        }
    }
    Tree::new(entries, skipped).map_err(|reason| refused(format!("refused: {reason}")))
}

/// The entries of a list, and how many are neither files, directories nor links.
fn entries(list: &[u8], word: &[u8]) -> Option<(Vec<Entry>, u64)> {
    let mut found = Vec::new();
    let mut skipped: u64 = 0;
    let mut lines = split(list, word);
    if lines.next().is_none_or(|before| !before.is_empty()) {
        return None;
    }
    for line in lines {
        let mut fields = line
            .strip_prefix(b" ")?
            .strip_suffix(b"\n")?
            .splitn(4, |b| *b == b' ');
        let mut number = |radix| {
            let text = std::str::from_utf8(fields.next()?).ok()?;
            i64::from_str_radix(text, radix).ok()
        };
        let (mode, size, time) = (number(16)?, number(10)?, number(10)?);
        let path = match fields.next()? {
            b"." => &[],
            name => name.strip_prefix(b"./")?,
        };
        let mode = u32::try_from(mode).ok()?;
        let kind = match mode & 0o170_000 {
            0o040_000 => Kind::Directory,
            0o100_000 => Kind::File,
            0o120_000 => Kind::Link,
            _ => {
                skipped = skipped.saturating_add(1);
                continue;
            }
        };
        found.push(Entry {
            path: path.to_vec(),
            kind,
            // Another machine's set-id bits mean nothing here.
            mode: mode & 0o777,
            time_s: time.max(0).unsigned_abs().min(1 << 40),
            size: if kind == Kind::File {
                u64::try_from(size).ok()?
            } else {
                0
            },
            link: Vec::new(),
        });
        if found.len() > MAX_ENTRIES.saturating_add(2) {
            break;
        }
    }
    Some((found, skipped))
}

/// What stands between separators.
fn split<'a>(mut text: &'a [u8], separator: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let at = text
            .windows(separator.len())
            .position(|window| window == separator);
        let Some(at) = at else {
            ended = true;
            return Some(text);
        };
        let (piece, rest) = text.split_at_checked(at)?;
        text = rest.get(separator.len()..)?;
        Some(piece)
    })
}

async fn fill(
    far: &Far<'_>,
    source: &[u8],
    target: &Path,
    tree: &Arc<Tree>,
    staging: &Staging,
    there: Vec<Option<String>>,
    meter: &Meter,
) -> Result<Moved, Stop> {
    let mut sums = there;
    let of_there = tree
        .entries
        .iter()
        .zip(&sums)
        .filter(|(_, sum)| sum.is_some());
    let resumed = of_there
        .map(|(entry, _)| entry.size)
        .fold(0, u64::saturating_add);
    let large_there = tree
        .entries
        .iter()
        .zip(&sums)
        .any(|(entry, sum)| entry.is_large() && sum.is_some());
    let total = tree.bytes();
    let begun = Progress {
        done_bytes: resumed,
        total_bytes: total,
    };
    let (fetched, mut done) = fetch_small(far, source, tree, &sums, staging, begun, meter).await?;
    for (sum, fetched) in sums.iter_mut().zip(fetched) {
        *sum = sum.take().or(fetched);
    }
    for (entry, sum) in tree.entries.iter().zip(&mut sums) {
        if !entry.is_large() || sum.is_some() {
            continue;
        }
        let (begun, meter) = (done, meter.clone());
        let of_all: Meter = Arc::new(move |progress: Progress| {
            meter(Progress {
                done_bytes: begun.saturating_add(progress.done_bytes),
                total_bytes: total,
            });
        });
        let from = [source, b"/", &entry.path].concat();
        let to = entry.below(staging.path());
        let moved = download::run(far, &from, &to, &of_all).await?;
        done = done.saturating_add(moved.bytes);
        *sum = Some(moved.sha256);
    }
    prove(far, source, tree, &sums, large_there).await?;
    let (staging, at, of) = (staging.clone(), target.to_owned(), Arc::clone(tree));
    let placed = blocking(move || staging.place(&at, &of)).await;
    placed.map_err(local("put in place", target))?;
    for (entry, sum) in tree.entries.iter().zip(&mut sums) {
        if entry.kind == Kind::Link {
            let text = Sha256::new().chain_update(&entry.link).chain_update(b"\n");
            *sum = Some(hex::encode(text.finalize()));
        }
    }
    Ok(Moved::tree(tree, &sums, resumed))
}

/// Fetches all small files that are not there yet; gives their digests, and how far the whole is.
async fn fetch_small(
    far: &Far<'_>,
    source: &[u8],
    tree: &Arc<Tree>,
    there: &[Option<String>],
    staging: &Staging,
    begun: Progress,
    meter: &Meter,
) -> Result<(Vec<Option<String>>, u64), Stop> {
    let wanted: Vec<bool> = tree
        .entries
        .iter()
        .zip(there)
        .map(|(entry, there)| entry.is_small() && there.is_none())
        .collect();
    let mut writer = Writer::new(staging, tree, &wanted, begun, meter);
    let names = tree
        .entries
        .iter()
        .zip(&wanted)
        .filter(|(_, wanted)| **wanted);
    let names = proof::names(names.map(|(entry, _)| entry));
    let path = shown(source);
    let root: PathBuf = staging.path().to_owned();
    if names.is_empty() {
        return Ok((writer.sums(), begun.done_bytes));
    }
    let (to, mut from) = mpsc::channel(QUEUE * 8);
    let writing = tokio::task::spawn_blocking(move || -> io::Result<_> {
        let mut said = Vec::new();
        while let Some(chunk) = from.blocking_recv() {
            match chunk {
                Chunk::Stdout(data) => writer.take(&data)?,
                Chunk::Stderr(data) => {
                    said.extend(data.iter().take(1000_usize.saturating_sub(said.len())));
                }
            }
        }
        writer.settle()?;
        Ok((writer, first_line(&said)))
    });
    let input = Input::Bytes(names.into());
    let limit = Limit::Idle(IDLE);
    let sent = far
        .script(DATA, &[source], input, Output::Stream(to), limit)
        .await;
    let written = writing.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    let (writer, said) = written.map_err(local("write below", &root))?;
    if sent?.exit_code != 0 {
        let reason = format!("the host could not read it: {said}");
        return Err(Stop::Final(far.failed(&path, reason, None)));
    }
    if !writer.is_complete() {
        let reason = "less came than the files' sizes: it changed while it was read";
        return Err(Stop::Final(far.failed(&path, reason, Some("try again"))));
    }
    let done = writer.done_bytes();
    Ok((writer.sums(), done))
}

/// All that came, as the host reads it a second time. Large files have been proved when they came, unless they were
/// there already.
async fn prove(
    far: &Far<'_>,
    source: &[u8],
    tree: &Tree,
    sums: &[Option<String>],
    with_large: bool,
) -> Result<(), Stop> {
    let again = |entry: &Entry| entry.is_small() || (with_large && entry.is_large());
    let theirs = proof::read(far, source, tree, again).await?;
    for ((entry, ours), theirs) in tree.entries.iter().zip(sums).zip(theirs) {
        if !again(entry) || *ours == theirs {
            continue;
        }
        let reason = format!(
            "what landed is not what the host has: of {} it reads {}, here is {}",
            shown(&entry.path),
            theirs.as_deref().unwrap_or("nothing"),
            ours.as_deref().unwrap_or("nothing"),
        );
        let hint = Some("it may have changed meanwhile: try again");
        return Err(Stop::Final(far.failed(&shown(source), reason, hint)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart_whatever_the_names_hold() {
        let list =
            b"W 41ed 4096 10 .\nW 81a4 5 11 ./a\nb c\nW a1ff 3 12 ./l\nW c1ed 0 13 ./socket\n";
        let (found, skipped) = entries(list, b"W").unwrap();
        let seen: Vec<_> = found
            .iter()
            .map(|e| (e.path.as_slice(), e.kind, e.size, e.mode))
            .collect();
        assert_eq!(
            seen,
            [
                (&b""[..], Kind::Directory, 0, 0o755),
                (b"a\nb c", Kind::File, 5, 0o644),
                (b"l", Kind::Link, 0, 0o777),
            ]
        );
        assert_eq!(skipped, 1);
        for bad in [
            &b"x"[..],
            b"W 81a4 5 11 /etc/passwd\n",
            b"W 81a4 -5 11 ./a\n",
            b"W 81a4 99999999999999999999 11 ./a\n",
            b"W zzzz 5 11 ./a\n",
            b"W 81a4 5 11 ./a",
            b"noise\nW 81a4 5 11 ./a\n",
        ] {
            assert!(
                entries(bad, b"W").is_none(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
