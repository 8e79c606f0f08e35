//! A file from here into an instance.
//!
//! A thread reads and hashes; the digest goes after the bytes, and the instance puts the file in place
//! only when it wrote the same. Whatever ends this side earlier ends the body without a digest, and the
//! instance changes nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::{Client, Target, UploadPiece};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::meter::Meter;
use super::{Copied, GuestFile, PIECE_BYTES, QUEUE, directory};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::signals::Signals;

pub(super) async fn run(
    client: &Client,
    from: &Path,
    mut to: GuestFile,
    user: Option<&str>,
    screen: &Screen,
) -> Result<Copied, Failure> {
    let mut signals = Signals::new()?;
    let shown = from.display().to_string();
    let unreadable = |e: io::Error| Failure::local(format!("cannot read {shown}: {e}"));
    // Before it is opened, for opening a FIFO waits for its writer.
    let metadata = std::fs::metadata(from).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(directory(format!("{shown} is a directory")));
    }
    if !metadata.is_file() {
        return Err(Failure::local(format!("{shown} is no regular file")));
    }
    let file = File::open(from).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if to.path.ends_with('/') {
        let name = from.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| {
            Failure::usage(
                format!("{shown} has no name that a path in the instance could have"),
                "write the whole path in the instance",
            )
        })?;
        to.path.push_str(name);
    }
    let meter = Meter::new(Some(metadata.len()), screen);
    let (pieces, queue) = mpsc::channel(QUEUE);
    let counter = meter.counter();
    let read = tokio::task::spawn_blocking(move || read(file, &pieces, &counter));
    let target = Target {
        path: &to.path,
        user,
        mode: Some(metadata.mode() & 0o777),
    };
    let sent = tokio::select! {
        sent = client.upload(&to.name, target, queue) => sent,
        never = meter.show() => match never {},
        failure = signals.next() => return Err(failure),
    };
    drop(meter);
    // What went wrong here is the cause of what went wrong there.
    let read = read.await.map_err(|e| Failure::local(e.to_string()))?;
    let read = read.map_err(unreadable)?;
    let written = sent.map_err(|error| refused(error, &to))?;
    match read {
        Some((size_bytes, sha256))
            if (written.size_bytes, written.sha256.as_str())
                == (size_bytes, hex::encode(sha256).as_str()) =>
        {
            Ok(Copied {
                from: shown,
                to: to.to_string(),
                size_bytes,
                sha256,
            })
        }
        _ => Err(
            Failure::local(format!("{to} was written with other bytes than were sent"))
                .next("copy it again; do not use what is there"),
        ),
    }
}

/// Names the way out where the instance's own words do not.
fn refused(error: client::Error, to: &GuestFile) -> Failure {
    match error {
        client::Error::Problem(mut problem) if problem.code == "is_a_directory" => {
            problem.hint = Some(format!("to put the file into it: {to}/"));
            client::Error::Problem(problem).into()
        }
        error => error.into(),
    }
}

/// Size and SHA-256 of all bytes; nothing when nobody took them to the end.
fn read(
    mut file: File,
    pieces: &mpsc::Sender<UploadPiece>,
    counter: &Arc<AtomicU64>,
) -> io::Result<Option<(u64, client::Sha256)>> {
    let mut hash = Sha256::new();
    let mut size_bytes = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let length = file
            .by_ref()
            .take(PIECE_BYTES as u64)
            .read_to_end(&mut piece)?;
        if length == 0 {
            break;
        }
        hash.update(&piece);
        size_bytes += length as u64;
        if pieces
            .blocking_send(UploadPiece::Bytes(piece.into()))
            .is_err()
        {
            return Ok(None);
        }
        counter.store(size_bytes, Ordering::Relaxed);
    }
    let sha256 = hash.finalize().into();
    let sent = pieces.blocking_send(UploadPiece::End(sha256));
    Ok(sent.ok().map(|()| (size_bytes, sha256)))
}
