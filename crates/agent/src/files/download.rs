//! Reading a file, and looking at it.
//!
//! A caller that takes trailers (`TE: trailers`) gets a chunked body and after it `Repr-Digest` over the
//! bytes that were sent. Any other gets `Content-Length`, and no digest, since that is not known
//! before the end. A body that could not be read to its end breaks off; it never ends as if it were whole.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use api::file::{DIGEST_HEADER, MODE_HEADER, REST_HEADER, SIZE_HEADER, repr_digest};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body::{Frame, SizeHint};
use rustix::fs::{Advice, Mode, OFlags};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;

use super::rights::run_as;
use super::straight::{self, Awaited};
use super::{FileError, GuestPath, IDLE, PIECE_BYTES, QUEUE, Transfers, from_disk};

/// The query of GET and HEAD.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    path: String,
    user: Option<String>,
}

/// What is said about a file before its bytes.
#[derive(Debug, Clone, Copy)]
struct Facts {
    size: u64,
    mode: u32,
    modified: Option<SystemTime>,
}

impl Facts {
    /// Where a file of the kernel ends is not known before.
    fn can_go_straight(&self) -> bool {
        self.size > 0
    }
}

/// What comes from the thread that reads.
enum Piece {
    Bytes(Bytes),
    /// All bytes came; this is their digest.
    End(super::Sha256),
}

/// `HEAD /files`
pub async fn look(
    State(transfers): State<Transfers>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, FileError> {
    let permit = transfers.begin()?;
    let (path, user) = parse(asked)?;
    let (answer, answered) = oneshot::channel();
    let looked_at = path.clone();
    run_as(user, move |rights| {
        // The caller may have gone.
        let _ = answer.send(rights.and_then(|()| stat(&looked_at)));
        drop(permit);
    })?;
    let facts = from_disk(answered, &path).await?;
    let mut response = Response::new(Body::empty());
    describe(&mut response, &facts);
    set(&mut response, header::CONTENT_LENGTH, facts.size);
    Ok(response)
}

/// `GET /files`
pub async fn read(
    State(transfers): State<Transfers>,
    asked: Result<Query<Asked>, QueryRejection>,
    mut request: Request,
) -> Result<Response, FileError> {
    let permit = transfers.begin()?;
    let (path, user) = parse(asked)?;
    let (straight, awaited) = straight::asked_for(&mut request).unzip();
    let headers = request.headers();
    let from = range(headers);
    let (answer, answered) = oneshot::channel();
    let (pieces, read) = mpsc::channel(QUEUE);
    let reader = Reader {
        path: path.clone(),
        from,
        pieces,
        awaited,
        permit,
    };
    run_as(user, move |rights| reader.run(rights, answer))?;
    let facts = from_disk(answered, &path).await?;
    let rest = facts.size.saturating_sub(from.unwrap_or(0));
    if let Some(straight) = straight.filter(|_| facts.can_go_straight()) {
        let mut response = straight.go();
        describe(&mut response, &facts);
        set(&mut response, HeaderName::from_static(REST_HEADER), rest);
        return Ok(response);
    }
    let trailers = takes_trailers(headers);
    let (to_body, from_relay) = mpsc::channel(1);
    tokio::spawn(relay(read, to_body));
    let mut response = Response::new(Body::new(FileBody {
        pieces: from_relay,
        ended: false,
        trailers,
        // A file of the kernel says 0 and has bytes; its end is where it ends.
        rest: (!trailers && facts.size > 0).then_some(rest),
    }));
    describe(&mut response, &facts);
    if trailers {
        let name = HeaderValue::from_static(DIGEST_HEADER);
        response.headers_mut().insert(header::TRAILER, name);
    } else if facts.size > 0 {
        set(&mut response, header::CONTENT_LENGTH, rest);
    }
    if let Some(from) = from {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let (last, size) = (facts.size.saturating_sub(1), facts.size);
        let range = format!("bytes {from}-{last}/{size}");
        set(&mut response, header::CONTENT_RANGE, range);
    }
    Ok(response)
}

fn parse(
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<(GuestPath, Option<String>), FileError> {
    let Query(asked) = asked.map_err(|e| FileError::Query(e.body_text()))?;
    Ok((GuestPath::parse(asked.path)?, asked.user))
}

/// N of `bytes=N-`. Other ranges may be ignored (RFC 9110, 14.2) and are.
fn range(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::RANGE)?.to_str().ok()?;
    let from = text.strip_prefix("bytes=")?.strip_suffix('-')?;
    from.parse().ok()
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

fn describe(response: &mut Response, facts: &Facts) {
    set(
        response,
        header::CONTENT_TYPE,
        "application/octet-stream".to_owned(),
    );
    set(
        response,
        HeaderName::from_static(MODE_HEADER),
        format!("{:04o}", facts.mode),
    );
    set(
        response,
        HeaderName::from_static(SIZE_HEADER),
        facts.size.to_string(),
    );
    set(response, header::ACCEPT_RANGES, "bytes".to_owned());
    // Dates before 1970 can't be written in a header.
    if let Some(modified) = facts
        .modified
        .filter(|m| m.duration_since(SystemTime::UNIX_EPOCH).is_ok())
    {
        let date = httpdate::fmt_http_date(modified);
        set(response, header::LAST_MODIFIED, date);
    }
}

fn set(response: &mut Response, name: HeaderName, value: impl ToString) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        response.headers_mut().insert(name, value);
    }
}

fn stat(path: &GuestPath) -> Result<Facts, FileError> {
    let metadata = std::fs::metadata(path.as_str()).map_err(path.failed("look at"))?;
    facts(path, &metadata)
}

/// The facts of a regular file; anything else is refused.
fn facts(path: &GuestPath, metadata: &std::fs::Metadata) -> Result<Facts, FileError> {
    let path = path.as_str().to_owned();
    if metadata.is_dir() {
        return Err(FileError::IsADirectory { path });
    }
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path });
    }
    // Past what a header can say (the year 9999) a time is left out.
    let seconds = u64::try_from(metadata.mtime())
        .ok()
        .filter(|s| *s < 253_402_300_800);
    Ok(Facts {
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        modified: seconds.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s)),
    })
}

/// The thread of a GET.
struct Reader {
    path: GuestPath,
    from: Option<u64>,
    pieces: mpsc::Sender<Piece>,
    /// Where a socket comes from, when none of the pieces are wanted.
    awaited: Option<Awaited>,
    permit: OwnedSemaphorePermit,
}

impl Reader {
    fn run(
        mut self,
        rights: Result<(), FileError>,
        answer: oneshot::Sender<Result<Facts, FileError>>,
    ) {
        let (file, facts) = match rights.and_then(|()| self.open()) {
            Ok(opened) => opened,
            Err(error) => {
                // The caller may have gone.
                let _ = answer.send(Err(error));
                return;
            }
        };
        if answer.send(Ok(facts)).is_err() {
            return;
        }
        let passed_on = match self.awaited.take().filter(|_| facts.can_go_straight()) {
            Some(awaited) => self.pass_straight(file, facts, awaited),
            None => self.pass_on(file, facts),
        };
        if let Err(error) = passed_on {
            // The caller sees a body that breaks off.
            tracing::warn!(%error, path = self.path.as_str(), "a file was not read to its end");
        }
        drop(self.permit);
    }

    fn open(&self) -> Result<(File, Facts), FileError> {
        // Before it is opened, for opening alone makes some devices do something.
        stat(&self.path)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.path.as_str(), flags, Mode::empty())
            .map_err(self.path.failed("open"))?;
        let mut file = File::from(file);
        let metadata = file.metadata().map_err(self.path.failed("look at"))?;
        let facts = facts(&self.path, &metadata)?;
        if let Some(from) = self.from {
            if from >= facts.size {
                return Err(FileError::Range {
                    path: self.path.as_str().to_owned(),
                    size: facts.size,
                    from,
                });
            }
            file.seek(SeekFrom::Start(from))
                .map_err(self.path.failed("read"))?;
        }
        // Only an advice.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        Ok((file, facts))
    }

    /// Reads to where the file ended when it was opened.
    fn pass_straight(&self, mut file: File, facts: Facts, awaited: Awaited) -> io::Result<()> {
        let mut connection = awaited.wait()?;
        connection.wait_for_go()?;
        let mut left = facts.size.saturating_sub(self.from.unwrap_or(0));
        let mut hash = Sha256::new();
        let mut buffer = vec![0; PIECE_BYTES];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let space = buffer.get_mut(..most).unwrap_or_default();
            let length = file.read(space)?;
            if length == 0 {
                return Err(shortened());
            }
            let bytes = space.get(..length).unwrap_or_default();
            hash.update(bytes);
            connection.give(bytes)?;
            left = left.saturating_sub(length as u64);
        }
        connection.give(&hash.finalize())
    }

    /// Reads to where the file ended when it was opened. One of the kernel's says 0 and is read to its end.
    fn pass_on(&self, file: File, facts: Facts) -> io::Result<()> {
        let rest = facts.size.saturating_sub(self.from.unwrap_or(0));
        let rest = if facts.size == 0 { u64::MAX } else { rest };
        let mut file = file.take(rest);
        let mut hash = Sha256::new();
        loop {
            let piece_bytes = usize::try_from(file.limit())
                .unwrap_or(usize::MAX)
                .min(PIECE_BYTES);
            let mut piece = Vec::with_capacity(piece_bytes);
            let length = file
                .by_ref()
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut piece)?;
            if length == 0 {
                break;
            }
            hash.update(&piece);
            if self
                .pieces
                .blocking_send(Piece::Bytes(piece.into()))
                .is_err()
            {
                // The caller has gone, which is no failure of the file.
                return Ok(());
            }
        }
        if facts.size > 0 && file.limit() > 0 {
            return Err(shortened());
        }
        let _ = self
            .pieces
            .blocking_send(Piece::End(hash.finalize().into()));
        Ok(())
    }
}

fn shortened() -> io::Error {
    io::Error::other("it became shorter while it was read")
}

/// Between the thread, which can't wait with a deadline, and the body, which can't either.
async fn relay(mut from: mpsc::Receiver<Piece>, to: mpsc::Sender<Piece>) {
    while let Some(piece) = from.recv().await {
        if !matches!(timeout(IDLE, to.send(piece)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// The bytes of a file, and after them their digest if the caller takes one.
struct FileBody {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
    trailers: bool,
    rest: Option<u64>,
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(context));
        Poll::Ready(match piece {
            Some(Piece::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End(digest)) => {
                self.ended = true;
                self.trailers.then(|| {
                    let name = HeaderName::from_static(DIGEST_HEADER);
                    let value = HeaderValue::from_str(&repr_digest(&digest));
                    let value = value.map_err(io::Error::other)?;
                    Ok(Frame::trailers(HeaderMap::from_iter([(name, value)])))
                })
            }
            None => {
                self.ended = true;
                Some(Err(io::ErrorKind::UnexpectedEof.into()))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.rest
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
