//! One try of an upload.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::far::{Far, complaint};
use super::tree::shown;
use super::{
    IDLE, Meter, Moved, PIECE_BYTES, Progress, QUEUE, Stop, digest_of, directory_of, part_name,
};
use crate::command::{Input, Output};
use crate::error::Error;
use crate::running::Limit;

/// `$1` target, `$2` part. A part that is not our own plain file is nobody's beginning.
const BEGIN: &str = "can_sum || echo NOSUM; \
    [ -d \"$1\" ] && { echo DIRECTORY; exit; }; \
    if [ -f \"$2\" ] && [ ! -L \"$2\" ] && [ -O \"$2\" ]; then \
    echo \"PART $(wc -c <\"$2\")\"; echo \"SUM $(sum \"$2\")\"; else echo NEW; fi";

/// `$1` part. Nobody else's file or link is written to: the part is made anew, and must not be there.
const DATA: &str = "umask 077; rm -f -- \"$1\" && set -C && cat >\"$1\"";

/// `$1` part, which begins with what is proved.
const MORE: &str = "umask 077; [ ! -L \"$1\" ] && [ -O \"$1\" ] && cat >>\"$1\"";

/// `$1` part.
const DISCARD: &str = "rm -f -- \"$1\"";

/// `$1` part, `$2` target, `$3` its directory, `$4` SHA-256 (empty where none can be made), `$5` mode, `$6` time in seconds since 1970.
const COMMIT: &str = "s=$(sum \"$1\"); case $s in *\"$4\"*) ;; *) echo \"SUM $s\"; rm -f -- \"$1\"; exit;; esac; \
    [ -d \"$2\" ] && { echo DIRECTORY; exit; }; \
    chmod \"$5\" \"$1\" && touch -d \"@$6\" \"$1\" || exit 1; \
    sync \"$1\" 2>/dev/null || sync; \
    mv -f -- \"$1\" \"$2\" || exit 1; \
    sync \"$3\" 2>/dev/null || sync; echo DONE";

/// How long a question without data may take.
pub(super) const ASK: Duration = Duration::from_secs(60);
/// How many bytes a second a host reads at least when it makes a checksum.
const SLOWEST_SUM: u64 = 20 * 1024 * 1024;

/// How long a host may take to read this much.
pub(super) fn sum_limit(bytes: u64) -> Duration {
    ASK + Duration::from_secs(bytes / SLOWEST_SUM)
}

/// What the reader knows when all has been read.
struct ReadAll {
    sha256: String,
    bytes: u64,
}

pub(super) async fn run(
    far: &Far<'_>,
    source: &Path,
    target: &[u8],
    name: &[u8],
    meter: &Meter,
) -> Result<Moved, Stop> {
    let local = |what: &'static str| {
        move |e: io::Error| {
            Stop::Final(Error::File {
                what,
                path: source.to_owned(),
                source: e,
            })
        }
    };
    let file = File::open(source).map_err(local("open"))?;
    let meta = file.metadata().map_err(local("look at"))?;
    if !meta.is_file() {
        let reason = "it is no plain file";
        return Err(Stop::Final(far.failed(
            &source.display().to_string(),
            reason,
            None,
        )));
    }
    let (directory, part) = places(source, target, name, &meta);
    let (there, can_prove) = begin(far, target, &part, meta.len()).await?;
    let begun = prefix(source, meta.len(), there)
        .await
        .map_err(local("read"))?;
    let resumed = begun.1;
    let read = send(far, source, &part, begun, meta.len(), meter).await?;
    let after = std::fs::metadata(source).map_err(local("look at"))?;
    if read.bytes != meta.len()
        || after.mtime() != meta.mtime()
        || after.mtime_nsec() != meta.mtime_nsec()
    {
        let _: Result<_, _> = far.ask(DISCARD, &[part.as_slice()], ASK).await;
        let reason = "it changed while it was read; the target is as it was";
        return Err(Stop::Final(far.failed(
            &source.display().to_string(),
            reason,
            None,
        )));
    }
    let sum = if can_prove { read.sha256.as_str() } else { "" };
    commit(far, (target, directory, &part), (sum, read.bytes), &meta).await?;
    Ok(Moved::file(read.bytes, read.sha256, resumed).proved(far, can_prove))
}

/// The target's directory, and the part file in it.
fn places<'a>(
    source: &Path,
    target: &'a [u8],
    name: &[u8],
    meta: &Metadata,
) -> (&'a [u8], Vec<u8>) {
    let directory = directory_of(target);
    let times = format!("{}\0{}", meta.mtime(), meta.mtime_nsec());
    let numbers = format!("{}\0{}\0{times}", meta.len(), meta.ino());
    let what = [
        source.as_os_str().as_encoded_bytes(),
        numbers.as_bytes(),
        target,
    ];
    let part = [directory, b"/", &part_name(name, &what)].concat();
    (directory, part)
}

/// What is there of an earlier try: its length and its digest. And whether the host makes checksums.
async fn begin(
    far: &Far<'_>,
    target: &[u8],
    part: &[u8],
    size: u64,
) -> Result<(Option<(u64, String)>, bool), Stop> {
    let answer = far.ask(BEGIN, &[target, part], sum_limit(size)).await?;
    let can_prove = answer.get("NOSUM").is_none();
    if !can_prove && far.must_prove {
        return Err(Stop::Final(far.no_checksum(&shown(target))));
    }
    if answer.get("DIRECTORY").is_some() {
        let hint = Some("name the file in it");
        return Err(Stop::Final(far.failed(
            &shown(target),
            "it is a directory",
            hint,
        )));
    }
    let length = answer.get("PART").and_then(|length| length.parse().ok());
    let there = length.zip(answer.sha256("SUM").map(str::to_owned));
    Ok((there, can_prove))
}

/// The hash of what is there already, if it is the beginning of the source; otherwise of nothing.
async fn prefix(
    source: &Path,
    size: u64,
    there: Option<(u64, String)>,
) -> io::Result<(Sha256, u64)> {
    let Some((length, sum)) = there.filter(|(length, _)| *length > 0 && *length <= size) else {
        return Ok((Sha256::new(), 0));
    };
    let source = source.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let (digest, read) = digest_of(File::open(source)?.take(length))?;
        let same = read == length && hex::encode(digest.clone().finalize()) == sum;
        io::Result::Ok(if same {
            (digest, length)
        } else {
            (Sha256::new(), 0)
        })
    });
    hashed.await.map_err(io::Error::other)?
}

/// Reads, hashes and hands over what is behind `from` bytes; tells the digest of the whole file at the end. A reader
/// that fails drops the sender without telling, and so does one whose file is not what it was.
fn read(
    source: &Path,
    (mut digest, from): (Sha256, u64),
    size: u64,
    meter: &Meter,
) -> (
    mpsc::Receiver<Bytes>,
    oneshot::Receiver<io::Result<ReadAll>>,
) {
    let (to, pieces) = mpsc::channel(QUEUE);
    let (told, all) = oneshot::channel();
    let (source, meter) = (source.to_owned(), meter.clone());
    std::thread::spawn(move || {
        let work = move || {
            let mut file = File::open(source)?;
            file.seek(SeekFrom::Start(from))?;
            let mut done = from;
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let read = file.read(&mut piece)?;
                let data = piece.get(..read).unwrap_or_default();
                if data.is_empty() {
                    break;
                }
                digest.update(data);
                done = done.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
                if to.blocking_send(Bytes::copy_from_slice(data)).is_err() {
                    return Err(io::Error::other("the transfer ended"));
                }
                let progress = Progress {
                    done_bytes: done,
                    total_bytes: size,
                };
                meter(progress);
            }
            Ok(ReadAll {
                sha256: hex::encode(digest.clone().finalize()),
                bytes: done,
            })
        };
        // Told before the sender is dropped, so that the end of the pieces is never believed without it.
        let _: Result<(), _> = told.send(work());
    });
    (pieces, all)
}

/// Sends what is not there yet into the part file.
async fn send(
    far: &Far<'_>,
    source: &Path,
    part: &[u8],
    begun: (Sha256, u64),
    size: u64,
    meter: &Meter,
) -> Result<ReadAll, Stop> {
    let script = if begun.1 == 0 { DATA } else { MORE };
    let (pieces, all) = read(source, begun, size, meter);
    let input = Input::Stream(pieces);
    let finished = far
        .script(script, &[part], input, Output::Collect, Limit::Idle(IDLE))
        .await?;
    if finished.exit_code != 0 {
        let reason = format!("the host could not write it: {}", complaint(&finished));
        // A part that cannot be finished only takes room, which may be what is missing.
        let _: Result<_, _> = far.ask(DISCARD, &[part], ASK).await;
        let hint = "look at the room and the permissions of its directory on the host";
        return Err(Stop::Final(far.failed(&shown(part), reason, Some(hint))));
    }
    let read = all.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    read.map_err(|e| {
        Stop::Final(Error::File {
            what: "read",
            path: source.to_owned(),
            source: e,
        })
    })
}

/// The host reads the part a second time; only what has our digest takes the target's place.
async fn commit(
    far: &Far<'_>,
    (target, directory, part): (&[u8], &[u8], &[u8]),
    (sum, bytes): (&str, u64),
    meta: &Metadata,
) -> Result<(), Stop> {
    let mode = format!("{:o}", meta.permissions().mode() & 0o7777);
    let time = meta.mtime().to_string();
    let texts = [mode.as_bytes(), time.as_bytes()];
    let [mode, time] = texts;
    let arguments = [part, target, directory, sum.as_bytes(), mode, time];
    let answer = far.ask(COMMIT, &arguments, sum_limit(bytes)).await;
    // From here on a lost connection may have left the new file in place.
    let answer = answer.map_err(|error| match error {
        Error::OutcomeUnknown { vm, reason } => Stop::Final(Error::OutcomeUnknown {
            vm,
            reason: format!("the file was being put in place when {reason}"),
        }),
        other => Stop::from(other),
    })?;
    if answer.get("DONE").is_some() {
        return Ok(());
    }
    let reason = if answer.get("SUM").is_some() {
        format!(
            "what landed is not what was sent: the host reads {}, sent was {sum}",
            answer.sha256("SUM").unwrap_or("no checksum"),
        )
    } else if answer.get("DIRECTORY").is_some() {
        "it is a directory".to_owned()
    } else {
        format!("the host could not put it in place: {}", answer.complaint)
    };
    Err(Stop::Final(far.failed(&shown(target), reason, None)))
}
