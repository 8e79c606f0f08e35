//! One try of a download. What a host says is bounded before it is believed; it names no file of this machine.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::far::{Answer, Far, complaint};
use super::tree::shown;
use super::upload::{ASK, sum_limit};
use super::{IDLE, Meter, Moved, Progress, QUEUE, Stop, digest_of, part_name};
use crate::command::{Chunk, Input, Output};
use crate::error::Error;
use crate::running::Limit;

/// `$1` source: size, time and mode.
const BEGIN: &str = "can_sum || echo NOSUM; [ -d \"$1\" ] && { echo DIRECTORY; exit; }; \
    [ -f \"$1\" ] || { ls -d -- \"$1\" >&2; echo NONE; exit; }; \
    echo \"STAT $(stat -L -c \"%s %Y %a\" -- \"$1\" 2>/dev/null || stat -L -f \"%z %m %Lp\" -- \"$1\")\"";

/// `$1` source, `$2` the first byte that is wanted, counted from 1.
const DATA: &str = "[ \"$2\" = 1 ] && exec cat -- \"$1\"; exec tail -c \"+$2\" -- \"$1\"";

/// `$1` source.
const SUMMED: &str = "echo \"SUM $(sum \"$1\")\"";

/// What the host says of its file.
struct Stat {
    size: u64,
    time_s: u64,
    mode: u32,
}

impl Stat {
    fn parse(answer: &Answer) -> Option<Self> {
        let mut words = answer.get("STAT")?.split(' ');
        let size = words.next()?.parse().ok()?;
        // Before 1970 is as good as 1970.
        let time_s = words.next()?.parse::<i64>().ok()?.max(0).unsigned_abs();
        let mode = u32::from_str_radix(words.next()?, 8).ok()?;
        Some(Self { size, time_s, mode })
    }
}

/// The part file of this machine, as far as it is filled.
struct Part {
    file: File,
    path: PathBuf,
    digest: Sha256,
    length: u64,
}

pub(super) async fn run(
    far: &Far<'_>,
    source: &[u8],
    target: &Path,
    meter: &Meter,
) -> Result<Moved, Stop> {
    let local = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Stop::Final(Error::File { what, path, source })
    };
    if target.is_dir() {
        let reason = "it is a directory of this machine; name the file in it";
        return Err(Stop::Final(far.failed(
            &target.display().to_string(),
            reason,
            None,
        )));
    }
    let answer = far.ask(BEGIN, &[source], ASK).await?;
    let can_prove = answer.get("NOSUM").is_none();
    if !can_prove && far.must_prove {
        return Err(Stop::Final(far.no_checksum(&shown(source))));
    }
    let Some(stat) = Stat::parse(&answer) else {
        let reason = match answer.get("DIRECTORY") {
            Some(_) => "it is a directory".to_owned(),
            None => format!("the host has no such file: {}", answer.complaint),
        };
        return Err(Stop::Final(far.failed(&shown(source), reason, None)));
    };
    let numbers = format!("\0{}\0{}", stat.size, stat.time_s);
    let what = [source, numbers.as_bytes()].concat();
    // What cannot be proved is not gone on with.
    let most = if can_prove { Some(stat.size) } else { None };
    let part = open_part(target, &what, most).await;
    let part = part.map_err(local("write beside", target))?;
    let resumed_bytes = part.length;
    let part = fetch(far, source, part, stat.size, meter).await?;
    let sha256 = hex::encode(part.digest.clone().finalize());
    let theirs = if can_prove {
        let answer = far.ask(SUMMED, &[source], sum_limit(stat.size)).await?;
        answer.sha256("SUM").map(str::to_owned)
    } else {
        None
    };
    if can_prove && theirs.as_deref() != Some(sha256.as_str()) {
        // Whatever it is, it is not the file, and must not be gone on with.
        let _: io::Result<()> = fs::remove_file(&part.path);
        let theirs = theirs.unwrap_or_else(|| "no checksum".to_owned());
        let reason =
            format!("what landed is not what the host has: it reads {theirs}, here is {sha256}");
        let hint = "it may have changed meanwhile: try again";
        return Err(Stop::Final(far.failed(&shown(source), reason, Some(hint))));
    }
    let (bytes, at) = (part.length, target.to_owned());
    let placed = tokio::task::spawn_blocking(move || place(&part, &at, &stat)).await;
    let placed = placed.unwrap_or_else(|e| Err(io::Error::other(e)));
    placed.map_err(local("put in place", target))?;
    Ok(Moved::file(bytes, sha256, resumed_bytes).proved(far, can_prove))
}

/// Opens what an earlier try left, or a new part file that nobody else can have made.
async fn open_part(target: &Path, what: &[u8], most: Option<u64>) -> io::Result<Part> {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let name = part_name(name, &[what, target.as_os_str().as_bytes()]);
    let path = target.with_file_name(OsStr::from_bytes(&name));
    let opened = tokio::task::spawn_blocking(move || {
        let own = |meta: &fs::Metadata| {
            meta.is_file()
                && meta.uid() == rustix::process::geteuid().as_raw()
                && most.is_some_and(|most| meta.len() <= most)
        };
        let size = most.unwrap_or_default();
        if fs::symlink_metadata(&path).is_ok_and(|meta| own(&meta)) {
            let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
            let mut file = OpenOptions::new()
                .read(true)
                .append(true)
                .custom_flags(flags)
                .open(&path)?;
            hold(&file, &path)?;
            let (digest, length) = digest_of((&mut file).take(size))?;
            return Ok(Part {
                file,
                path,
                digest,
                length,
            });
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        hold(&file, &path)?;
        Ok(Part {
            file,
            path,
            digest: Sha256::new(),
            length: 0,
        })
    });
    opened.await.map_err(io::Error::other)?
}

/// Until it is closed nobody else writes to it: a part file's name follows from what is fetched, so a second download of
/// the same would.
pub(super) fn hold(file: &File, path: &Path) -> io::Result<()> {
    let held = rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    let ours = |there: fs::Metadata| -> io::Result<bool> {
        let file = file.metadata()?;
        Ok((file.dev(), file.ino()) == (there.dev(), there.ino()))
    };
    // Another one may have put it in place between its opening and the lock.
    if held.is_ok() && fs::symlink_metadata(path).and_then(ours)? {
        return Ok(());
    }
    Err(io::Error::other("another download of the same is going on"))
}

/// Appends what is missing. What came before a connection was cut stays in the part file.
async fn fetch(
    far: &Far<'_>,
    source: &[u8],
    part: Part,
    size: u64,
    meter: &Meter,
) -> Result<Part, Stop> {
    if part.length == size {
        return Ok(part);
    }
    let first = part.length.saturating_add(1).to_string();
    let (path, meter) = (part.path.clone(), meter.clone());
    let (to, from) = mpsc::channel(QUEUE * 8);
    let writer = tokio::task::spawn_blocking(move || write(part, from, size, &meter));
    let arguments = [source, first.as_bytes()];
    let sent = far
        .script(
            DATA,
            &arguments,
            Input::None,
            Output::Stream(to),
            Limit::Idle(IDLE),
        )
        .await;
    let written = writer.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    let (part, said) = written.map_err(|source| {
        // It only takes room, which may be what is missing.
        let _: io::Result<()> = fs::remove_file(&path);
        Stop::Final(Error::File {
            what: "write",
            path,
            source,
        })
    })?;
    let finished = sent?;
    if finished.exit_code != 0 {
        let said = if said.is_empty() {
            complaint(&finished)
        } else {
            said
        };
        let reason = format!("the host could not read it: {said}");
        return Err(Stop::Final(far.failed(&shown(source), reason, None)));
    }
    if part.length != size {
        let reason = format!(
            "it was {size} bytes, but {} came: it changed while it was read",
            part.length
        );
        let _: io::Result<()> = fs::remove_file(&part.path);
        return Err(Stop::Final(far.failed(
            &shown(source),
            reason,
            Some("try again"),
        )));
    }
    Ok(part)
}

/// Writes what comes, never more than the file's size; also gives the beginning of standard error.
fn write(
    mut part: Part,
    mut from: mpsc::Receiver<Chunk>,
    size: u64,
    meter: &Meter,
) -> io::Result<(Part, String)> {
    let mut said = Vec::new();
    while let Some(chunk) = from.blocking_recv() {
        let data = match chunk {
            Chunk::Stdout(data) => data,
            Chunk::Stderr(data) => {
                said.extend(data.iter().take(300_usize.saturating_sub(said.len())));
                continue;
            }
        };
        let length = part
            .length
            .saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if length > size {
            return Err(io::Error::other("the host sends more than the file's size"));
        }
        part.file.write_all(&data)?;
        part.digest.update(&data);
        part.length = length;
        meter(Progress {
            done_bytes: length,
            total_bytes: size,
        });
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Ok((part, said))
}

fn place(part: &Part, target: &Path, stat: &Stat) -> io::Result<()> {
    // Another machine's set-id bits mean nothing here.
    part.file
        .set_permissions(Permissions::from_mode(stat.mode & 0o777))?;
    part.file
        .set_modified(UNIX_EPOCH + Duration::from_secs(stat.time_s.min(1 << 40)))?;
    part.file.sync_all()?;
    fs::rename(&part.path, target)?;
    File::open(parent_of(target))?.sync_all()
}

/// The directory that a path of this machine is in.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_being_fetched_is_not_fetched_by_another_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let open = async || open_part(&target, b"vm01:/file", Some(10)).await;
        let mut first = open().await.unwrap();
        first.file.write_all(b"one").unwrap();
        let error = open().await.err().unwrap().to_string();
        assert!(error.contains("another download"), "{error}");
        // Put in place between the opening and the lock: it is nobody's part any more.
        fs::rename(&first.path, &target).unwrap();
        assert!(hold(&first.file, &first.path).is_err());
        drop(first);
        assert_eq!(open().await.unwrap().length, 0);
    }
}
