//! Writing a file: all of it, or nothing.
//!
//! ```text
//!   temporary file beside the target ▸ bytes ▸ digest ▸ mode ▸ fsync ▸ rename ▸ fsync of the directory
//!        └── any failure, or a caller that goes ──▶ it is removed, the target is as it was
//! ```
//!
//! * The digest may come before or after the bytes. Without one nothing is changed, unless the query
//!   says `digest=none`.
//! * The owner is the user, because the user makes the file. The mode is the given one, else that of the
//!   file that is replaced (without set-user-id and its like, which belong to the old owner), else 0644.
//! * A symbolic link at the target is itself replaced; what it leads to stays as it is.
//! * What bounds a file is the guest's disk; in memory are a few pieces only.

use std::fs::File;
use std::io::Write as _;

use api::file::SIZE_HEADER;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use wire::agent::Written;

use super::rights::run_as;
use super::straight::{self, Awaited, Connection, Straight};
use super::{
    DISK_DEADLINE, FileError, GuestPath, IDLE, PIECE_BYTES, QUEUE, Transfers, digest_of, from_disk,
};

/// After so many bytes the disk is given them, in bytes, so that little is left for the flush at the end.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// The mode of a new file.
const NEW_MODE: u32 = 0o644;
/// After a failure so much of the body is read and dropped: a sender that is cut off while it sends
/// would often not see the answer.
const DRAIN_BYTES: usize = 256 << 20;
const DRAIN_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// The query of PUT.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    path: String,
    user: Option<String>,
    mode: Option<String>,
    digest: Option<String>,
}

/// What goes to the thread that writes. A queue that ends without `End` is an upload that broke off.
enum Piece {
    Bytes(BytesMut),
    /// All bytes came; this is their digest as the sender says, if it has to be compared.
    End(Option<super::Sha256>),
}

/// `PUT /files`
pub async fn write(
    State(transfers): State<Transfers>,
    asked: Result<Query<Asked>, QueryRejection>,
    mut request: Request,
) -> Result<Response, FileError> {
    if let Some(straight) = straight::asked_for(&mut request) {
        return receive_straight(&transfers, asked, request.headers(), straight).await;
    }
    let (head, mut body) = request.into_parts();
    let outcome = receive(&transfers, asked, &head.headers, &mut body).await;
    let (replaced, written) = match outcome {
        Ok(done) => done,
        Err(error) => {
            tokio::spawn(drain(body));
            return Err(error);
        }
    };
    let status = if replaced {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let body = serde_json::to_vec(&written).unwrap_or_default();
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Whatever is wrong before a byte was asked for is told as ever; the rest over the socket.
async fn receive_straight(
    transfers: &Transfers,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: &HeaderMap,
    (straight, awaited): (Straight, Awaited),
) -> Result<Response, FileError> {
    let permit = transfers.begin()?;
    let Query(asked) = asked.map_err(|e| FileError::Query(e.body_text()))?;
    let size = headers.get(SIZE_HEADER).and_then(|size| size.to_str().ok());
    let size_bytes = size.and_then(|size| size.parse().ok()).ok_or_else(|| {
        FileError::Query(format!("the header {SIZE_HEADER} says how many bytes come"))
    })?;
    let path = GuestPath::parse(asked.path)?;
    path.split()?;
    let mode = asked.mode.map(parse_mode).transpose()?;
    let (opened, is_open) = oneshot::channel();
    let writer = Writer {
        path: path.clone(),
        mode,
        permit,
    };
    run_as(asked.user, move |rights| {
        if let Err(error) = writer.run_straight(rights, opened, awaited, size_bytes) {
            // The caller has gone, or sees that there is no end.
            tracing::debug!(%error, "an upload could not be answered");
        }
    })?;
    from_disk(is_open, &path).await?;
    Ok(straight.go())
}

async fn receive(
    transfers: &Transfers,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<(bool, Written), FileError> {
    let permit = transfers.begin()?;
    let Query(asked) = asked.map_err(|e| FileError::Query(e.body_text()))?;
    let path = GuestPath::parse(asked.path)?;
    path.split()?;
    let mode = asked.mode.map(parse_mode).transpose()?;
    let wants_digest = match asked.digest.as_deref() {
        None => true,
        Some("none") => false,
        Some(_) => return Err(FileError::Query("digest may be `none` only".into())),
    };
    let said = digest_of(headers)?;
    let (opened, is_open) = oneshot::channel();
    let (done, is_done) = oneshot::channel();
    let (pieces, queue) = mpsc::channel(QUEUE);
    let (written, spare) = mpsc::channel(QUEUE + 2);
    let writer = Writer {
        path: path.clone(),
        mode,
        permit,
    };
    run_as(asked.user, move |rights| {
        let outcome = writer.run(rights, opened, queue, written);
        // The caller may have gone.
        let _ = done.send(outcome);
    })?;
    // Before a byte is asked for: a caller that waits for `100 Continue` need not send in vain. When the
    // thread failed instead, its outcome says why.
    let fed = match timeout(DISK_DEADLINE, is_open).await {
        Ok(Ok(())) => {
            let feed = Feed {
                path: &path,
                pieces: &pieces,
                gathered: BytesMut::new(),
                spare,
            };
            feed.run(body, said, wants_digest).await
        }
        Ok(Err(_)) | Err(_) => Ok(()),
    };
    // Without an end the thread removes what it wrote; the answer waits until it has.
    drop(pieces);
    match timeout(DISK_DEADLINE, is_done).await {
        Ok(Ok(outcome)) => fed.and(outcome),
        Ok(Err(_)) | Err(_) => Err(FileError::DiskDeadline {
            path: path.as_str().to_owned(),
        }),
    }
}

fn parse_mode(mode: String) -> Result<u32, FileError> {
    let octal = mode.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(&mode, 8) {
        Ok(bits) if octal && bits <= 0o7777 => Ok(bits),
        _ => Err(FileError::Mode { mode }),
    }
}

/// What goes from the body to the thread.
struct Feed<'a> {
    path: &'a GuestPath,
    pieces: &'a mpsc::Sender<Piece>,
    /// Frames are gathered: a wake-up of the thread for each would cost more than the copy.
    gathered: BytesMut,
    /// Pieces that were written and can be filled again: fresh memory costs as much as hashing it.
    spare: mpsc::Receiver<BytesMut>,
}

impl Feed<'_> {
    /// Passes the whole body on, and its end if it is one. When the thread has ended it stops without
    /// an error: the thread's outcome says why.
    async fn run(
        mut self,
        body: &mut Body,
        mut said: Option<super::Sha256>,
        wants_digest: bool,
    ) -> Result<(), FileError> {
        let path = || self.path.as_str().to_owned();
        while let Some(frame) =
            timeout(IDLE, body.frame())
                .await
                .map_err(|_| FileError::BodyDeadline {
                    path: path(),
                    seconds: IDLE.as_secs(),
                })?
        {
            let frame = frame.map_err(|e| FileError::Body {
                path: path(),
                cause: e.to_string(),
            })?;
            let goes_on = match frame.into_data() {
                Ok(bytes) => self.bytes(&bytes).await?,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    said = digest_of(&trailers)?.or(said);
                    true
                }
            };
            if !goes_on {
                return Ok(());
            }
        }
        if said.is_none() && wants_digest {
            return Err(FileError::DigestMissing { path: path() });
        }
        if self.flush().await? {
            self.send(Piece::End(said)).await?;
        }
        Ok(())
    }

    async fn bytes(&mut self, mut bytes: &[u8]) -> Result<bool, FileError> {
        while !bytes.is_empty() {
            if self.gathered.capacity() == 0 {
                let spare = self.spare.try_recv();
                self.gathered = spare.unwrap_or_else(|_| BytesMut::with_capacity(PIECE_BYTES));
            }
            let room = PIECE_BYTES.saturating_sub(self.gathered.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() >= PIECE_BYTES && !self.flush().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn flush(&mut self) -> Result<bool, FileError> {
        if self.gathered.is_empty() {
            return Ok(true);
        }
        let gathered = std::mem::take(&mut self.gathered);
        self.send(Piece::Bytes(gathered)).await
    }

    /// Whether the thread takes more.
    async fn send(&self, piece: Piece) -> Result<bool, FileError> {
        match timeout(DISK_DEADLINE, self.pieces.send(piece)).await {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => Err(FileError::DiskDeadline {
                path: self.path.as_str().to_owned(),
            }),
        }
    }
}

async fn drain(mut body: Body) {
    let deadline = Instant::now() + DRAIN_DEADLINE;
    let mut dropped = 0;
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        dropped += frame.data_ref().map_or(0, Bytes::len);
        if dropped > DRAIN_BYTES {
            return;
        }
    }
}

/// The thread of a PUT.
struct Writer {
    path: GuestPath,
    mode: Option<u32>,
    permit: OwnedSemaphorePermit,
}

impl Writer {
    /// Pieces that are written go back into `written`.
    fn run(
        self,
        rights: Result<(), FileError>,
        opened: oneshot::Sender<()>,
        mut queue: mpsc::Receiver<Piece>,
        written: mpsc::Sender<BytesMut>,
    ) -> Result<(bool, Written), FileError> {
        rights?;
        let mut temporary = Temporary::create(&self.path)?;
        if opened.send(()).is_err() {
            return Err(self.broken("the caller has gone"));
        }
        let mut hash = Sha256::new();
        let said = loop {
            match queue.blocking_recv() {
                Some(Piece::Bytes(mut bytes)) => {
                    temporary.write(&bytes).map_err(self.path.failed("write"))?;
                    hash.update(&bytes);
                    bytes.clear();
                    // There is room for every piece; without a feed nobody needs it.
                    let _ = written.try_send(bytes);
                }
                Some(Piece::End(said)) => break said,
                None => return Err(self.broken("the caller has gone")),
            }
        };
        self.settle(temporary, hash, said)
    }

    /// The same with a socket of its own, on which it answers, too. An error is one of answering.
    fn run_straight(
        self,
        rights: Result<(), FileError>,
        opened: oneshot::Sender<Result<(), FileError>>,
        awaited: Awaited,
        size_bytes: u64,
    ) -> std::io::Result<()> {
        let temporary = match rights.and_then(|()| Temporary::create(&self.path)) {
            Ok(temporary) => temporary,
            Err(error) => {
                // The caller may have gone.
                let _ = opened.send(Err(error));
                return Ok(());
            }
        };
        if opened.send(Ok(())).is_err() {
            return Ok(());
        }
        let mut connection = awaited.wait()?;
        let outcome = self.take(temporary, &mut connection, size_bytes);
        connection.end(outcome.map(|(_, written)| written))
    }

    fn take(
        self,
        mut temporary: Temporary,
        connection: &mut Connection,
        size_bytes: u64,
    ) -> Result<(bool, Written), FileError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; PIECE_BYTES];
        while temporary.size_bytes < size_bytes {
            let left = usize::try_from(size_bytes - temporary.size_bytes).unwrap_or(usize::MAX);
            let most = left.min(PIECE_BYTES);
            let space = buffer.get_mut(..most).unwrap_or_default();
            let taken = connection.take(space);
            let length = taken.map_err(|e| self.broken(&e.to_string()))?;
            let bytes = space.get(..length).unwrap_or_default();
            temporary.write(bytes).map_err(self.path.failed("write"))?;
            hash.update(bytes);
        }
        let said = connection.take_digest();
        let said = said.map_err(|e| self.broken(&e.to_string()))?;
        self.settle(temporary, hash, Some(said))
    }

    /// Compares, and puts the file in place.
    fn settle(
        self,
        temporary: Temporary,
        hash: Sha256,
        said: Option<super::Sha256>,
    ) -> Result<(bool, Written), FileError> {
        let size_bytes = temporary.size_bytes;
        let found: super::Sha256 = hash.finalize().into();
        if let Some(said) = said.filter(|said| *said != found) {
            return Err(FileError::DigestMismatch {
                path: self.path.as_str().to_owned(),
                found: hex::encode(found),
                said: hex::encode(said),
            });
        }
        let replaced = temporary.put_in_place(&self.path, self.mode)?;
        drop(self.permit);
        let sha256 = hex::encode(found);
        Ok((replaced, Written { size_bytes, sha256 }))
    }

    fn broken(&self, cause: &str) -> FileError {
        FileError::Body {
            path: self.path.as_str().to_owned(),
            cause: cause.to_owned(),
        }
    }
}

/// A file that is removed again unless it is put in place.
struct Temporary {
    directory: OwnedFd,
    name: String,
    file: File,
    size_bytes: u64,
    /// Of these the disk has been told.
    handed_bytes: u64,
    placed: bool,
}

impl Temporary {
    fn create(path: &GuestPath) -> Result<Self, FileError> {
        let (directory, target) = path.split()?;
        // A directory need not be readable for somebody who may write in it.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())
            .map_err(path.failed("open the directory of"))?;
        replaceable(&directory, target, path)?;
        let name = format!(".proximity-{:016x}.part", random(path)?);
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        // For its owner alone until it is whole.
        let file = rustix::fs::openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(path.failed("write beside"))?;
        Ok(Self {
            directory,
            name,
            file: File::from(file),
            size_bytes: 0,
            handed_bytes: 0,
            placed: false,
        })
    }

    /// Adds to its end.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.size_bytes += bytes.len() as u64;
        let new = self.size_bytes - self.handed_bytes;
        if new >= WRITE_BACK_BYTES {
            // The kernel begins to write what it is told nobody will read soon, and waits for nothing. Only
            // an advice.
            let length = std::num::NonZeroU64::new(new);
            let _ = rustix::fs::fadvise(&self.file, self.handed_bytes, length, Advice::DontNeed);
            self.handed_bytes = self.size_bytes;
        }
        Ok(())
    }

    /// Makes it the target; says whether there was one.
    fn put_in_place(mut self, path: &GuestPath, mode: Option<u32>) -> Result<bool, FileError> {
        let (_, target) = path.split()?;
        let old = replaceable(&self.directory, target, path)?;
        let mode = mode.or(old.flatten()).unwrap_or(NEW_MODE);
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))
            .map_err(path.failed("set the mode of"))?;
        self.file.sync_all().map_err(path.failed("flush"))?;
        rustix::fs::renameat(&self.directory, &self.name, &self.directory, target)
            .map_err(path.failed("replace"))?;
        self.placed = true;
        self.flush_directory()
            .map_err(path.failed("flush the directory of"))?;
        Ok(old.is_some())
    }

    fn flush_directory(&self) -> rustix::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.directory, ".", flags, Mode::empty()) {
            Ok(directory) => rustix::fs::fsync(directory),
            // Nobody can flush a directory that may not be read; the file system's whole flush can.
            Err(Errno::ACCESS) => rustix::fs::syncfs(&self.file),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        if let Err(error) = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty()) {
            tracing::warn!(%error, name = self.name, "a temporary file could not be removed");
        }
    }
}

/// What stands at the target: nothing, or something that may be replaced, with its mode if it is a file.
fn replaceable(
    directory: &OwnedFd,
    target: &str,
    path: &GuestPath,
) -> Result<Option<Option<u32>>, FileError> {
    let stat = match rustix::fs::statat(directory, target, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(path.failed("look at")(error)),
    };
    let shown = || path.as_str().to_owned();
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(Some(stat.st_mode & 0o777))),
        FileType::Symlink => Ok(Some(None)),
        FileType::Directory => Err(FileError::IsADirectory { path: shown() }),
        _ => Err(FileError::NotAFile { path: shown() }),
    }
}

fn random(path: &GuestPath) -> Result<u64, FileError> {
    getrandom::u64().map_err(|e| {
        let source = std::io::Error::other(e.to_string());
        path.failed("name a temporary file beside")(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        let check = |text: &str, mode: Option<u32>| {
            assert_eq!(parse_mode(text.to_owned()).ok(), mode, "{text:?}");
        };
        check("0644", Some(0o644));
        check("755", Some(0o755));
        check("4755", Some(0o4755));
        for bad in ["", "+644", "0o644", "rwx", "888", "17777", "-1"] {
            check(bad, None);
        }
    }
}
