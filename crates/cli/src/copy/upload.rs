//! A file from here into an instance.
//!
//! A thread reads and hashes; the digest goes after the bytes, and the instance puts the file in place
//! only when it wrote the same. Whatever ends this side earlier ends the body without a digest, and the
//! instance changes nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use api::InstanceName;
use client::{Client, StraightUpload, Target, UploadPiece, Written};
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
    let target = Target {
        path: &to.path,
        user,
        mode: Some(metadata.mode() & 0o777),
    };
    let copied = tokio::select! {
        copied = copy(client, file, metadata.len(), &to.name, target, &meter) => copied,
        never = meter.show() => match never {},
        failure = signals.next() => return Err(failure),
    };
    drop(meter);
    let (size_bytes, sha256, written) = copied.map_err(|broken| match broken {
        Broken::Here(error) => unreadable(error),
        Broken::There(error) => refused(error, &to),
    })?;
    if (written.size_bytes, written.sha256) != (size_bytes, hex::encode(sha256)) {
        let what = format!("{to} was written with other bytes than were sent");
        return Err(Failure::local(what).next("copy it again; do not use what is there"));
    }
    Ok(Copied {
        from: shown,
        to: to.to_string(),
        size_bytes,
        sha256,
    })
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

/// On which side it broke.
enum Broken {
    Here(io::Error),
    There(client::Error),
}

/// Size and SHA-256 of what was sent, and what became of it.
type Sent = (u64, client::Sha256, Written);

async fn copy(
    client: &Client,
    file: File,
    size_bytes: u64,
    name: &InstanceName,
    target: Target<'_>,
    meter: &Meter,
) -> Result<Sent, Broken> {
    let counter = meter.counter();
    // Where a file ends that has no size is not known before.
    if size_bytes > 0 {
        let straight = client.open_upload(name, target, size_bytes).await;
        if let Some(straight) = straight.map_err(Broken::There)? {
            // The thread ends with whoever waits for it.
            let _cut = straight.cut().map_err(Broken::Here)?;
            let sent = tokio::task::spawn_blocking(move || {
                let file = file.take(size_bytes);
                send_straight(file, straight, &counter)
            });
            return sent.await.map_err(|e| Broken::Here(io::Error::other(e)))?;
        }
    }
    let (pieces, queue) = mpsc::channel(QUEUE);
    let read = tokio::task::spawn_blocking(move || read(file, &pieces, &counter));
    let sent = client.upload(name, target, queue).await;
    // What went wrong here is the cause of what went wrong there.
    let read = read.await.map_err(io::Error::other).flatten();
    match (read.map_err(Broken::Here)?, sent.map_err(Broken::There)?) {
        (Some((size_bytes, sha256)), written) => Ok((size_bytes, sha256, written)),
        (None, _) => Err(Broken::Here(io::ErrorKind::BrokenPipe.into())),
    }
}

/// Reads to where the file ended when it was opened.
fn send_straight(
    mut file: io::Take<File>,
    mut to: StraightUpload,
    counter: &AtomicU64,
) -> Result<Sent, Broken> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut size_bytes = 0;
    while file.limit() > 0 {
        let length = file.read(&mut buffer).map_err(Broken::Here)?;
        if length == 0 {
            let shorter = "it became shorter while it was read";
            return Err(Broken::Here(io::Error::other(shorter)));
        }
        let bytes = buffer.get(..length).unwrap_or_default();
        hash.update(bytes);
        if to.give(bytes).is_err() {
            // It says why; what is written of a file without its digest is nothing.
            let told = to.end(None).map_err(Broken::There)?;
            return Ok((size_bytes, client::Sha256::default(), told));
        }
        size_bytes += length as u64;
        counter.store(size_bytes, Ordering::Relaxed);
    }
    let sha256 = hash.finalize().into();
    let written = to.end(Some(sha256)).map_err(Broken::There)?;
    Ok((size_bytes, sha256, written))
}

/// Size and SHA-256 of all bytes; nothing when nobody took them to the end.
fn read(
    mut file: File,
    pieces: &mpsc::Sender<UploadPiece>,
    counter: &AtomicU64,
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
