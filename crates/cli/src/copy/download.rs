//! A file from an instance to here.
//!
//! Written beside its target under a name of its own, hashed on the way, flushed, compared with the digest
//! that came after the bytes, and only then renamed. A symbolic link at the target is itself replaced.
//! Permissions come along without set-user-id and its like: those are the instance's to give, not ours.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::num::NonZeroU64;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use client::{Client, Download, Opened, StraightDownload};
use rustix::fs::Advice;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::meter::Meter;
use super::{Copied, GuestFile, PIECE_BYTES, QUEUE, directory};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::signals::Signals;

/// After so many bytes the disk is given them, in bytes, so that little is left for the flush at the end.
const WRITE_BACK_BYTES: u64 = 8 << 20;

pub(super) async fn run(
    client: &Client,
    from: &GuestFile,
    to: PathBuf,
    user: Option<&str>,
    screen: &Screen,
) -> Result<Copied, Failure> {
    let mut signals = Signals::new()?;
    let name = from
        .file_name()
        .ok_or_else(|| directory(format!("{from} is a directory")))?;
    let to = target(to, name)?;
    let opened = tokio::select! {
        opened = client.open_download(&from.name, &from.path, user) => opened?,
        failure = signals.next() => return Err(failure),
    };
    let (size, mode) = match &opened {
        Opened::Stream(download) => (download.size_bytes, download.mode),
        Opened::Straight(download) => (download.size_bytes, download.mode),
    };
    let (temporary, file) = Temporary::create(&to)?;
    let meter = Meter::new(size, screen);
    let sink = Sink {
        file,
        hash: Sha256::new(),
        size_bytes: 0,
        handed_bytes: 0,
        mode: mode.unwrap_or(0o644) & 0o777,
        counter: meter.counter(),
    };
    let received = async {
        match opened {
            Opened::Stream(download) => receive(download, &temporary, sink).await,
            Opened::Straight(download) => receive_straight(download, &temporary, sink).await,
        }
    };
    let (size_bytes, sha256) = tokio::select! {
        received = received => received?,
        never = meter.show() => match never {},
        failure = signals.next() => return Err(failure),
    };
    drop(meter);
    temporary.put_in_place(&to)?;
    Ok(Copied {
        from: from.to_string(),
        to: to.display().to_string(),
        size_bytes,
        sha256,
    })
}

/// The file that is meant: in a directory, one of the same name.
fn target(to: PathBuf, name: &str) -> Result<PathBuf, Failure> {
    let named = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let to = if named || to.is_dir() {
        to.join(name)
    } else {
        to
    };
    match fs::symlink_metadata(&to) {
        Ok(there) if there.is_dir() => {
            let what = format!("{} is a directory", to.display());
            Err(Failure::usage(what, "write another name"))
        }
        Ok(there) if !there.is_file() && !there.is_symlink() => Err(Failure::local(format!(
            "{} is no regular file",
            to.display()
        ))),
        _ => Ok(to),
    }
}

/// Writes all bytes; size and SHA-256 of what was written, when it is what was sent.
async fn receive(
    mut download: Download,
    temporary: &Temporary,
    mut sink: Sink,
) -> Result<(u64, client::Sha256), Failure> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUE);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(bytes) = queue.blocking_recv() {
            sink.write(&bytes)?;
        }
        sink.finish()
    });
    let mut received = Ok(());
    loop {
        let bytes = match download.next().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(error) => {
                received = Err(error);
                break;
            }
        };
        // When the thread has ended, its error says why.
        if pieces.send(bytes).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let written = writer.await.map_err(|e| Failure::local(e.to_string()))?;
    let (size_bytes, found) = written.map_err(|e| failed("write", &temporary.path, &e))?;
    received?;
    same(size_bytes, found, download.digest())
}

/// The same in one thread, which ends with whoever waits for it.
async fn receive_straight(
    mut download: StraightDownload,
    temporary: &Temporary,
    mut sink: Sink,
) -> Result<(u64, client::Sha256), Failure> {
    let broken = |e: io::Error| Failure::local(format!("nothing was copied: {e}"));
    let _cut = download.cut().map_err(broken)?;
    let path = temporary.path.clone();
    let copied = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let length = download.next(&mut buffer).map_err(broken)?;
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            sink.write(bytes).map_err(|e| failed("write", &path, &e))?;
        }
        let said = download.digest().map_err(broken)?;
        let written = sink.finish().map_err(|e| failed("write", &path, &e))?;
        Ok::<_, Failure>((written, said))
    });
    let copied = copied.await.map_err(|e| Failure::local(e.to_string()))?;
    let ((size_bytes, found), said) = copied?;
    same(size_bytes, found, Some(said))
}

fn same(
    size_bytes: u64,
    found: client::Sha256,
    said: Option<client::Sha256>,
) -> Result<(u64, client::Sha256), Failure> {
    match said {
        Some(said) if said == found => Ok((size_bytes, found)),
        _ => Err(
            Failure::local("what arrived is not what was sent: the digests differ")
                .next("nothing was changed; copy it again"),
        ),
    }
}

/// Where the bytes go.
struct Sink {
    file: File,
    hash: Sha256,
    size_bytes: u64,
    /// Of these the disk has been told.
    handed_bytes: u64,
    mode: u32,
    counter: Arc<AtomicU64>,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.size_bytes += bytes.len() as u64;
        if self.size_bytes - self.handed_bytes >= WRITE_BACK_BYTES {
            // The kernel begins to write what it is told nobody will read soon. Only an advice.
            let length = NonZeroU64::new(self.size_bytes - self.handed_bytes);
            let _ = rustix::fs::fadvise(&self.file, self.handed_bytes, length, Advice::DontNeed);
            self.handed_bytes = self.size_bytes;
        }
        self.counter.store(self.size_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Size and SHA-256 of what is on the disk now.
    fn finish(self) -> io::Result<(u64, client::Sha256)> {
        let mode = Permissions::from_mode(self.mode);
        self.file.set_permissions(mode)?;
        self.file.sync_all()?;
        Ok((self.size_bytes, self.hash.finalize().into()))
    }
}

/// A file beside the target, removed again unless it is put in place.
struct Temporary {
    path: PathBuf,
    placed: bool,
}

impl Temporary {
    fn create(target: &Path) -> Result<(Self, File), Failure> {
        let random = getrandom::u64()
            .map_err(|e| Failure::local(format!("no random name for a file: {e}")))?;
        let path = target.with_file_name(format!(".proximity-{random:016x}.part"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed("write", &path, &e))?;
        let placed = false;
        Ok((Self { path, placed }, file))
    }

    fn put_in_place(mut self, target: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, target).map_err(|e| failed("rename", &self.path, &e))?;
        self.placed = true;
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| Failure::local(format!("cannot flush {}: {e}", directory.display())))
    }
}

fn failed(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::local(format!("cannot {action} {}: {error}", path.display()))
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing more can be done about it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
