//! Files of a guest, in and out, as streams with a SHA-256 at their end (RFC 9530, `Repr-Digest`).
//!
//! Nothing is kept in memory but the part that is on its way, and nothing is hashed: who reads the file
//! and who writes it do that, and the receiver compares. What passes here is counted: a download of
//! another length than was said, or without a digest, is an error after its last byte; an upload is
//! compared with what the agent says it wrote.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use api::file::{DIGEST_HEADER, MODE_HEADER, SIZE_HEADER, parse_repr_digest, repr_digest};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{BoxStream, try_unfold};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout};
use wire::agent::Scope;

use crate::call::{Answer, Call, Lease, query_value};
use crate::connection::{Body, describe};
use crate::error::LinkError;
use crate::link::{Destination, Link, Peer};

pub(crate) const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// No part of a file moved for so long: the peer is gone.
pub(crate) const STALL: Duration = Duration::from_secs(30);
/// What a download may take beyond the time that its size allows at [`SLOWEST_BYTES_S`]. Only waiting
/// for the peer counts, not for whoever takes the parts.
const SLACK: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_S: u64 = 16 << 10;
/// After the last byte the agent flushes the file to its disk.
pub(crate) const FLUSH_DEADLINE: Duration = Duration::from_secs(120);
/// The whole upload, so that no peer holds one for ever.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
const ANSWER_MAX_BYTES: usize = 64 << 10;
/// Files of the kernel say that they have no bytes; so many are taken of them.
const UNSAID_MAX_BYTES: u64 = 16 << 20;

/// A piece of a file on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilePart {
    /// The next bytes.
    Bytes(Bytes),
    /// The SHA-256 of all bytes before; the last part.
    Sha256([u8; 32]),
}

/// The parts of a file. A stream that ends without its digest broke off.
pub type FileParts = BoxStream<'static, io::Result<FilePart>>;

/// A file that is being read.
pub struct Download {
    /// Its size in bytes, all of it.
    pub size_bytes: u64,
    /// Its permissions.
    pub mode: u32,
    /// Its content from the offset asked for. The digest at the end is what the agent says of these
    /// bytes; whoever takes them compares.
    pub parts: FileParts,
}

/// A file to be written.
pub struct Upload {
    /// Permissions; those of the file that is replaced, else 0644, when left out.
    pub mode: Option<u32>,
    /// Its content. The agent compares the digest in it with the bytes before it; a stream that ends
    /// without one broke off. In both cases nothing is written. How long it may pause is its maker's
    /// business.
    pub parts: FileParts,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of what is on the guest's disk.
    pub sha256: [u8; 32],
}

impl Link {
    /// Reads a file, or the rest of it from an offset in bytes.
    pub async fn read_file(
        &self,
        peer: &Peer,
        path: &str,
        user: Option<&str>,
        offset: u64,
    ) -> Result<Download, LinkError> {
        let to = Destination::agent(peer);
        let path = files_path(path, user, None);
        // Servers send trailers, and so the digest, only to those who say that they read them.
        let mut call = Call::new(Method::GET, &path, HEAD_DEADLINE)
            .scope(Scope::Files)
            .header(header::TE, HeaderValue::from_static("trailers"));
        if offset > 0 {
            let range = format!("bytes={offset}-");
            if let Ok(range) = HeaderValue::try_from(range) {
                call = call.header(header::RANGE, range);
            }
        }
        let answer = self.call(&to, call).await?;
        let status = answer.response.status();
        if !status.is_success() {
            return Err(answer.refusal().await);
        }
        let expected = if offset > 0 {
            StatusCode::PARTIAL_CONTENT
        } else {
            StatusCode::OK
        };
        let garbage = |reason: String| LinkError::Garbage {
            peer: to.name().to_owned(),
            reason,
        };
        if status != expected {
            return Err(garbage(format!("status {status} for a part of a file")));
        }
        let facts =
            Facts::of(&answer).ok_or_else(|| garbage("a file without size and mode".into()))?;
        let rest_bytes = match facts.size_bytes {
            0 => None,
            size => Some(size.saturating_sub(offset)),
        };
        Ok(Download {
            size_bytes: facts.size_bytes,
            mode: facts.mode,
            parts: parts(answer, rest_bytes),
        })
    }

    /// Replaces a file in one step, or changes nothing. An error that says that it may have run leaves
    /// open which of both happened; there is no third.
    pub async fn write_file(
        &self,
        peer: &Peer,
        path: &str,
        user: Option<&str>,
        upload: Upload,
    ) -> Result<Written, LinkError> {
        let to = Destination::agent(peer);
        let progress = Arc::new(Mutex::new(Progress::new()));
        let body = UploadBody {
            parts: upload.parts,
            progress: progress.clone(),
        };
        let call = Call::new(
            Method::PUT,
            files_path(path, user, upload.mode),
            UPLOAD_DEADLINE,
        )
        .scope(Scope::Files)
        .header(header::TRAILER, HeaderValue::from_static("Repr-Digest"))
        .stream(Body::new(body));
        let answered = tokio::select! {
            answered = async {
                self.call(&to, call).await?.json::<wire::agent::Written>(ANSWER_MAX_BYTES).await
            } => answered,
            reason = stalled(&progress) => Err(LinkError::OutcomeUnknown {
                peer: to.name().to_owned(),
                reason,
            }),
        };
        let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &progress.source_failed {
            // Without the end of the body and its digest, the agent drops what it got.
            return Err(LinkError::NothingRan {
                peer: to.name().to_owned(),
                reason: format!("the content broke off: {reason}"),
            });
        }
        let written = answered?;
        match progress.sha256 {
            Some(sha256)
                if written.size_bytes == progress.sent_bytes
                    && written.sha256 == hex::encode(sha256) =>
            {
                Ok(Written {
                    size_bytes: written.size_bytes,
                    sha256,
                })
            }
            _ => Err(LinkError::Garbage {
                peer: to.name().to_owned(),
                reason: "it wrote something else than what was sent".into(),
            }),
        }
    }
}

pub(crate) fn files_path(path: &str, user: Option<&str>, mode: Option<u32>) -> String {
    let mut query = format!("/files?path={}", query_value(path));
    if let Some(user) = user {
        query = format!("{query}&user={}", query_value(user));
    }
    if let Some(mode) = mode {
        query = format!("{query}&mode={mode:o}");
    }
    query
}

/// What the head of an answer says about a file.
pub(crate) struct Facts {
    pub size_bytes: u64,
    pub mode: u32,
}

impl Facts {
    pub fn of(answer: &Answer) -> Option<Self> {
        let headers = answer.response.headers();
        let text = |name| headers.get(name)?.to_str().ok();
        Some(Self {
            size_bytes: text(SIZE_HEADER)?.parse().ok()?,
            mode: u32::from_str_radix(text(MODE_HEADER)?, 8).ok()? & 0o7777,
        })
    }
}

struct Reading {
    body: Incoming,
    lease: Lease,
    /// From header or trailer.
    digest: Option<[u8; 32]>,
    taken_bytes: u64,
    /// How many there should be; not known of files of the kernel.
    expected_bytes: Option<u64>,
    waited: Duration,
}

fn parts(answer: Answer, expected_bytes: Option<u64>) -> FileParts {
    let digest = digest(answer.response.headers());
    let reading = Reading {
        body: answer.response.into_body(),
        lease: answer.lease,
        digest,
        taken_bytes: 0,
        expected_bytes,
        waited: Duration::ZERO,
    };
    try_unfold(Some(reading), |reading| async move {
        match reading {
            Some(reading) => reading.next().await.map(Some),
            None => Ok(None),
        }
    })
    .boxed()
}

impl Reading {
    async fn next(mut self) -> io::Result<(FilePart, Option<Self>)> {
        loop {
            match self.frame().await? {
                Some(frame) => match frame.into_data() {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => {
                        self.taken_bytes += bytes.len() as u64;
                        if self.taken_bytes > self.expected_bytes.unwrap_or(UNSAID_MAX_BYTES) {
                            return Err(bad("it sends more than the file has"));
                        }
                        return Ok((FilePart::Bytes(bytes), Some(self)));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.digest = self.digest.or_else(|| digest(&trailers));
                        }
                    }
                },
                None => return self.end(),
            }
        }
    }

    fn end(self) -> io::Result<(FilePart, Option<Self>)> {
        if self
            .expected_bytes
            .is_some_and(|all| all != self.taken_bytes)
        {
            return Err(bad("it sent less than the file has"));
        }
        let digest = self
            .digest
            .ok_or_else(|| bad("it sent no digest, so the file may be cut off"))?;
        self.lease.give_back();
        Ok((FilePart::Sha256(digest), None))
    }

    async fn frame(&mut self) -> io::Result<Option<Frame<Bytes>>> {
        let begun = Instant::now();
        let frame = timeout(STALL, self.body.frame())
            .await
            .map_err(|_| bad("nothing came for 30 s"))?;
        self.waited += begun.elapsed();
        if self.waited > SLACK + Duration::from_secs(self.taken_bytes / SLOWEST_BYTES_S) {
            return Err(bad("it sends too slowly"));
        }
        frame
            .transpose()
            .map_err(|e| io::Error::other(describe(&e)))
    }
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// How an upload goes, told by its body to who waits for the answer.
struct Progress {
    /// When the connection last took something, while it is to take something.
    since: Instant,
    /// The content is not there yet: the peer is not to blame.
    waits_for_source: bool,
    sent_bytes: u64,
    sha256: Option<[u8; 32]>,
    source_failed: Option<String>,
}

impl Progress {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            waits_for_source: false,
            sent_bytes: 0,
            sha256: None,
            source_failed: None,
        }
    }

    /// When the peer's time is over, if it is its turn.
    fn until(&self) -> Option<Instant> {
        let patience = if self.sha256.is_some() {
            FLUSH_DEADLINE
        } else {
            STALL
        };
        (!self.waits_for_source).then(|| self.since + patience)
    }
}

/// Returns when the peer takes nothing any more.
async fn stalled(progress: &Mutex<Progress>) -> String {
    loop {
        let until = progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .until();
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return "the upload does not get on".into(),
            Some(left) => sleep(left).await,
            None => sleep(Duration::from_secs(1)).await,
        }
    }
}

struct UploadBody {
    parts: FileParts,
    progress: Arc<Mutex<Progress>>,
}

impl http_body::Body for UploadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let mut progress = this.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.sha256.is_some() {
            return Poll::Ready(None);
        }
        let polled = this.parts.poll_next_unpin(context);
        progress.since = Instant::now();
        progress.waits_for_source = polled.is_pending();
        let reason = match std::task::ready!(polled) {
            Some(Ok(FilePart::Bytes(bytes))) => {
                progress.sent_bytes += bytes.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Ok(FilePart::Sha256(sha256))) => {
                progress.sha256 = Some(sha256);
                return Poll::Ready(Some(Ok(Frame::trailers(trailers(&sha256)))));
            }
            Some(Err(error)) => error.to_string(),
            None => "it ended without a digest".to_owned(),
        };
        progress.source_failed = Some(reason.clone());
        Poll::Ready(Some(Err(io::Error::other(reason))))
    }
}

fn trailers(sha256: &[u8; 32]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(repr_digest(sha256)) {
        trailers.insert(DIGEST_HEADER, value);
    }
    trailers
}

/// The digest in headers or trailers. One that can't be read vouches for nothing.
fn digest(headers: &HeaderMap) -> Option<[u8; 32]> {
    parse_repr_digest(headers.get_all(DIGEST_HEADER)).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_holds_path_user_and_octal_mode() {
        assert_eq!(
            files_path("/a b", Some("www&data"), Some(0o750)),
            "/files?path=/a%20b&user=www%26data&mode=750"
        );
    }
}
