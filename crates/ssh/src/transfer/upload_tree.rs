//! One try of the upload of a directory.
//!
//! ```text
//!   walk ─▶ begin: staging directory beside the target, new or of an earlier try ─▶ what is proved to be there is left out
//!        ─▶ one archive: directories, small files, links ─▶ large files one by one, each as in `upload`
//!        ─▶ the host reads everything a second time ─▶ modes and times of directories
//!        ─▶ commit: synced; renamed whole where nothing was, else file by file, after a look that nothing is in the way
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::archive::{self, Member};
use super::far::{Far, first_line};
use super::tree::{Entry, Kind, Tree, shown, walk};
use super::upload::{ASK, sum_limit};
use super::{
    IDLE, Meter, Moved, PIECE_BYTES, Progress, QUEUE, Stop, digest_of, directory_of, part_name,
    proof, upload,
};
use crate::command::{Input, Output};
use crate::error::Error;
use crate::running::Limit;

/// `$1` target, `$2` staging. A staging directory that is not our own is nobody's beginning.
const BEGIN: &str = "can_sum || { echo NOSUM; exit; }; \
    for p in tar xargs find; do command -v $p >/dev/null 2>&1 || { echo \"NONE $p\"; exit; }; done; \
    [ -L \"$1\" ] && { echo LINK; exit; }; \
    [ -e \"$1\" ] && [ ! -d \"$1\" ] && { echo FILE; exit; }; \
    [ -d \"$2\" ] && [ ! -L \"$2\" ] && [ -O \"$2\" ] && { echo THERE; exit; }; \
    umask 077; mkdir -- \"$2\" && echo NEW";

/// `$1` staging; the archive by standard input.
const UNPACK: &str = "umask 077; cd -- \"$1\" && exec tar -x -p -o -f -";

/// `$1` staging.
const DISCARD: &str = "chmod -R u+rwX -- \"$1\" 2>/dev/null; rm -rf -- \"$1\"";

/// `$1` staging, `$2` target, `$3` its directory, `$4` mode, `$5` time in seconds since 1970. Where there is a
/// directory already, a first walk looks whether anything is in the way, the second one renames: directories that are
/// new as a whole, then the files of the others, as many as one order takes. (`$b}` is what
/// the outer `find` must not see. A link goes before its successor comes, because `mv` of BusyBox looks where it leads.)
const COMMIT: &str = "sync -f \"$1\" 2>/dev/null || sync; \
    if [ ! -e \"$2\" ] && [ ! -L \"$2\" ]; then \
    chmod \"$4\" \"$1\" && touch -d \"@$5\" \"$1\" && mv -T -- \"$1\" \"$2\" || exit 1; \
    else \
    c=$(find \"$1\" -exec sh -c 's=$1 t=$2; shift 2; for f do e=$t${f#\"$s\"}; \
    if [ -d \"$f\" ] && [ ! -L \"$f\" ]; then { [ -e \"$e\" ] || [ -L \"$e\" ]; } || continue; \
    [ -d \"$e\" ] && [ ! -L \"$e\" ] && continue; else [ ! -d \"$e\" ] || [ -L \"$e\" ] && continue; fi; \
    echo \"CONFLICT $e\"; exit; done' sh \"$1\" \"$2\" {} +); \
    case $c in CONFLICT*) echo \"$c\"; exit;; esac; \
    echo MOVING; \
    find \"$1\" -type d -exec sh -c 'b={ s=$1 t=$2; shift 2; for f do e=$t${f#\"$s\"}; [ -d \"$f\" ] || continue; \
    if [ ! -e \"$e\" ]; then mv -T -- \"$f\" \"$e\" || exit 1; continue; fi; \
    find \"$f\" -maxdepth 1 ! -type d -exec sh -c '\\''e=$1; shift; \
    for x do [ -L \"$e/${x##*/}\" ] && rm -f -- \"$e/${x##*/}\"; done; exec mv -f -- \"$@\" \"$e/\"'\\'' sh \"$e\" \"$b}\" + || exit 1; \
    done' sh \"$1\" \"$2\" {} + || exit 1; \
    find \"$1\" -depth -type d -exec rmdir -- {} +; [ ! -e \"$1\" ] || exit 1; \
    fi; \
    sync -f \"$3\" 2>/dev/null || sync; sync -f \"$2\" 2>/dev/null; echo DONE";

/// The names on the far side.
struct Place<'a> {
    target: &'a [u8],
    parent: &'a [u8],
    staging: Vec<u8>,
}

pub(super) async fn run(
    far: &Far<'_>,
    source: &Path,
    target: &[u8],
    name: &[u8],
    meter: &Meter,
) -> Result<Moved, Stop> {
    let top = source.to_owned();
    let walked = tokio::task::spawn_blocking(move || walk(&top)).await;
    let walked = walked.unwrap_or_else(|e| Err(io::Error::other(e)));
    let tree = walked.map_err(local("walk through", source))?;
    let refused = |reason: String| far.failed(&source.display().to_string(), reason, None);
    let tree = Arc::new(tree.map_err(|reason| Stop::Final(refused(reason)))?);
    let fingerprint = tree.fingerprint();
    let what = [
        source.as_os_str().as_encoded_bytes(),
        fingerprint.as_bytes(),
        target,
    ];
    let parent = directory_of(target);
    let place = Place {
        target,
        parent,
        staging: [parent, b"/", &part_name(name, &what)].concat(),
    };
    let there = begin(far, &place).await?;
    let moved = fill(far, source, &tree, &place, there, meter).await;
    if let Err(Stop::Final(error)) = &moved
        && !error.may_have_run()
    {
        // What cannot be finished only takes room, which may be what is missing.
        let _: Result<_, _> = far.ask(DISCARD, &[&place.staging], sum_limit(0)).await;
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

/// Whether something of an earlier try is there.
async fn begin(far: &Far<'_>, place: &Place<'_>) -> Result<bool, Stop> {
    let target = shown(place.target);
    let arguments = [place.target, &place.staging];
    let answer = far.ask(BEGIN, &arguments, ASK).await?;
    if answer.get("NOSUM").is_some() {
        return Err(Stop::Final(far.no_checksum(&target)));
    }
    let reason = if let Some(program) = answer.get("NONE") {
        format!("directories need the program {program:?} on the host")
    } else if answer.get("LINK").is_some() {
        "it is a symbolic link; name the directory that it leads to".to_owned()
    } else if answer.get("FILE").is_some() {
        "it is there and is no directory".to_owned()
    } else if answer.get("THERE").is_some() || answer.get("NEW").is_some() {
        return Ok(answer.get("THERE").is_some());
    } else {
        format!("the host could not write beside it: {}", answer.complaint)
    };
    Err(Stop::Final(far.failed(&target, reason, None)))
}

async fn fill(
    far: &Far<'_>,
    source: &Path,
    tree: &Arc<Tree>,
    place: &Place<'_>,
    there: bool,
    meter: &Meter,
) -> Result<Moved, Stop> {
    let mut sums = vec![None; tree.entries.len()];
    if there {
        sums = already(far, source, tree, place).await?;
    }
    let of_sent = tree
        .entries
        .iter()
        .zip(&sums)
        .filter(|(_, sum)| sum.is_some());
    let resumed = of_sent
        .map(|(entry, _)| entry.size)
        .fold(0, u64::saturating_add);
    let total = tree.bytes();
    let mut done = resumed;
    let missing: Vec<bool> = sums.iter().map(Option::is_none).collect();
    let small = small_bytes(tree, &missing);
    let sent = send_small(far, source, tree, &missing, place, (done, total), meter).await?;
    for (sum, sent) in sums.iter_mut().zip(sent) {
        *sum = sum.take().or(sent);
    }
    done = done.saturating_add(small);
    for (entry, sum) in tree.entries.iter().zip(&mut sums) {
        if !entry.is_large() || sum.is_some() {
            continue;
        }
        let target = [&place.staging, b"/".as_slice(), &entry.path].concat();
        let name = entry.path.rsplit(|byte| *byte == b'/').next();
        let begun = done;
        let meter = meter.clone();
        let of_all: Meter = Arc::new(move |progress: Progress| {
            meter(Progress {
                done_bytes: begun.saturating_add(progress.done_bytes),
                total_bytes: total,
            });
        });
        let name = name.unwrap_or_default();
        let moved = upload::run(far, &entry.below(source), &target, name, &of_all).await?;
        done = done.saturating_add(moved.bytes);
        *sum = Some(moved.sha256);
    }
    prove(far, tree, place, &sums).await?;
    finish_directories(far, tree, place).await?;
    commit(far, tree, place).await?;
    Ok(Moved::tree(tree, &sums, resumed))
}

fn small_bytes(tree: &Tree, missing: &[bool]) -> u64 {
    let small = tree.entries.iter().zip(missing);
    let small = small.filter(|(entry, missing)| **missing && entry.is_small());
    small
        .map(|(entry, _)| entry.size)
        .fold(0, u64::saturating_add)
}

/// The digests of what is there already and is what it should be.
async fn already(
    far: &Far<'_>,
    source: &Path,
    tree: &Arc<Tree>,
    place: &Place<'_>,
) -> Result<Vec<Option<String>>, Stop> {
    let theirs = proof::read(far, &place.staging, tree, |_| true).await?;
    let (top, tree) = (source.to_owned(), Arc::clone(tree));
    let compared = tokio::task::spawn_blocking(move || {
        let same = |(entry, theirs): (&Entry, Option<String>)| {
            let theirs = theirs?;
            let ours = match entry.kind {
                Kind::Link => link_digest(&entry.link),
                _ => digest_of(open(&entry.below(&top)).ok()?).ok()?.0,
            };
            (hex::encode(ours.finalize()) == theirs).then_some(theirs)
        };
        tree.entries.iter().zip(theirs).map(same).collect()
    });
    let compared = compared.await.map_err(io::Error::other);
    compared.map_err(local("read", source))
}

/// What `readlink` prints.
fn link_digest(link: &[u8]) -> Sha256 {
    Sha256::new().chain_update(link).chain_update(b"\n")
}

/// A file of the tree, which is a file still.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits().cast_signed());
    options.open(path)
}

/// Sends everything but large files as one archive. Gives the digests of what was sent.
async fn send_small(
    far: &Far<'_>,
    source: &Path,
    tree: &Arc<Tree>,
    missing: &[bool],
    place: &Place<'_>,
    (done, total): (u64, u64),
    meter: &Meter,
) -> Result<Vec<Option<String>>, Stop> {
    let (to, pieces) = mpsc::channel(QUEUE);
    let (told, all) = oneshot::channel();
    let mut packer = Packer {
        source: source.to_owned(),
        to,
        waiting: Vec::new(),
        progress: Progress {
            done_bytes: done,
            total_bytes: total,
        },
        meter: meter.clone(),
    };
    let (tree, missing) = (Arc::clone(tree), missing.to_vec());
    std::thread::spawn(move || {
        let packed = packer.pack(&tree, &missing);
        // Told before the sender is dropped, so that the end of the pieces is never believed without it.
        let _: Result<(), _> = told.send(packed);
    });
    let unpacked = unpack(far, Input::Stream(pieces), place).await;
    let packed = all.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    match (unpacked, packed) {
        (Ok(()), Ok(sums)) => Ok(sums),
        // An archive that ends early is a complaint of the host's, and its cause is here.
        (Ok(()) | Err(Stop::Final(_)), Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(local("read", source)(e))
        }
        (Err(stop), _) => Err(stop),
        (Ok(()), Err(e)) => Err(local("read", source)(e)),
    }
}

async fn unpack(far: &Far<'_>, input: Input, place: &Place<'_>) -> Result<(), Stop> {
    let (limit, output) = (Limit::Idle(IDLE), Output::Collect);
    let unpacked = far
        .script(UNPACK, &[&place.staging], input, output, limit)
        .await?;
    if unpacked.exit_code == 0 {
        return Ok(());
    }
    let reason = format!(
        "the host could not write it: {}",
        first_line(&unpacked.stderr)
    );
    let hint = "look at the room and the permissions of its directory on the host";
    Err(Stop::Final(far.failed(
        &shown(place.target),
        reason,
        Some(hint),
    )))
}

/// Reads files and puts them into the archive.
struct Packer {
    source: PathBuf,
    to: mpsc::Sender<Bytes>,
    waiting: Vec<u8>,
    progress: Progress,
    meter: Meter,
}

impl Packer {
    fn pack(&mut self, tree: &Tree, missing: &[bool]) -> io::Result<Vec<Option<String>>> {
        let mut sums = Vec::with_capacity(tree.entries.len());
        for (entry, missing) in tree.entries.iter().zip(missing) {
            let sum = match entry.kind {
                Kind::Directory => {
                    // Open for us until all is in it.
                    self.entry(entry, Member::Directory, 0o700);
                    None
                }
                Kind::Link if *missing => {
                    self.entry(entry, Member::Link(&entry.link), 0o777);
                    Some(hex::encode(link_digest(&entry.link).finalize()))
                }
                Kind::File if *missing && entry.is_small() => Some(self.file(entry)?),
                Kind::Link | Kind::File => None,
            };
            sums.push(sum);
            if self.waiting.len() >= PIECE_BYTES {
                self.send()?;
            }
        }
        archive::end(&mut self.waiting);
        self.send()?;
        Ok(sums)
    }

    fn entry(&mut self, entry: &Entry, member: Member<'_>, mode: u32) {
        archive::begin(&mut self.waiting, &entry.path, member, mode, entry.time_s);
    }

    fn file(&mut self, entry: &Entry) -> io::Result<String> {
        let path = entry.below(&self.source);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let file = open(&path).map_err(named)?;
        let mut content = Vec::with_capacity(usize::try_from(entry.size).unwrap_or_default());
        let read = (&file)
            .take(entry.size.saturating_add(1))
            .read_to_end(&mut content);
        let read = u64::try_from(read.map_err(named)?).unwrap_or(u64::MAX);
        let after = file.metadata().map_err(named)?;
        if read != entry.size || after.mtime().max(0).unsigned_abs() != entry.time_s {
            let changed = io::Error::other("it changed while it was read");
            return Err(named(changed));
        }
        self.entry(entry, Member::File(entry.size), entry.mode);
        self.waiting.extend_from_slice(&content);
        archive::pad(&mut self.waiting, entry.size);
        self.progress.done_bytes = self.progress.done_bytes.saturating_add(entry.size);
        (self.meter)(self.progress);
        Ok(hex::encode(Sha256::digest(&content)))
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.waiting));
        self.to
            .blocking_send(piece)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Everything that was sent, as the host reads it.
async fn prove(
    far: &Far<'_>,
    tree: &Tree,
    place: &Place<'_>,
    sums: &[Option<String>],
) -> Result<(), Stop> {
    // Large files have been proved when they were put into the staging directory.
    let theirs = proof::read(far, &place.staging, tree, |entry| !entry.is_large()).await?;
    for ((entry, ours), theirs) in tree.entries.iter().zip(sums).zip(theirs) {
        if entry.kind == Kind::Directory || entry.is_large() || *ours == theirs {
            continue;
        }
        let reason = format!(
            "what landed is not what was sent: of {} the host reads {}, sent was {}",
            shown(&entry.path),
            theirs.as_deref().unwrap_or("nothing"),
            ours.as_deref().unwrap_or("nothing"),
        );
        return Err(Stop::Final(far.failed(&shown(place.target), reason, None)));
    }
    Ok(())
}

/// Modes and times of directories, the inner ones first, since what comes into a directory changes its time.
async fn finish_directories(far: &Far<'_>, tree: &Tree, place: &Place<'_>) -> Result<(), Stop> {
    let mut archive = Vec::new();
    let directories = tree.entries.iter().rev();
    for entry in directories.filter(|entry| entry.kind == Kind::Directory) {
        let member = Member::Directory;
        archive::begin(&mut archive, &entry.path, member, entry.mode, entry.time_s);
    }
    if archive.is_empty() {
        return Ok(());
    }
    archive::end(&mut archive);
    unpack(far, Input::Bytes(archive.into()), place).await
}

async fn commit(far: &Far<'_>, tree: &Tree, place: &Place<'_>) -> Result<(), Stop> {
    let (mode, time) = (format!("{:o}", tree.top.mode), tree.top.time_s.to_string());
    let places = [&place.staging, place.target, place.parent];
    let [staging, target, parent] = places;
    let arguments = [staging, target, parent, mode.as_bytes(), time.as_bytes()];
    let answer = far.ask(COMMIT, &arguments, sum_limit(tree.bytes())).await;
    // From here on a lost connection may have left the new directory in place.
    let answer = answer.map_err(|error| match error {
        Error::OutcomeUnknown { vm, reason } => Stop::Final(Error::OutcomeUnknown {
            vm,
            reason: format!("the directory was being put in place when {reason}"),
        }),
        other => Stop::from(other),
    })?;
    if answer.get("DONE").is_some() {
        return Ok(());
    }
    let path = shown(target);
    if let Some(conflict) = answer.get("CONFLICT") {
        let reason = format!("nothing was put in place: {conflict} is in the way");
        let hint = "a directory takes the place of a directory only, a file never that of one";
        return Err(Stop::Final(far.failed(&path, reason, Some(hint))));
    }
    let mut reason = format!("the host could not put it in place: {}", answer.complaint);
    if answer.get("MOVING").is_some() {
        reason.push_str("; some of its files may be the new ones");
    }
    Err(Stop::Final(far.failed(&path, reason, None)))
}
