//! Files of a guest, in and out, as streams with a SHA-256 at their end (RFC 9530, `Repr-Digest`).
//!
//! Nothing is kept in memory but the part that is on its way. Neither direction trusts the other: a
//! download without a fitting digest is an error after its last byte, an upload is compared with what
//! the agent says it wrote.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{BoxStream, try_unfold};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout};
use wire::agent::Scope;

use crate::call::{Answer, Call, Lease, query_value};
use crate::connection::{Body, describe};
use crate::error::LinkError;
use crate::link::{Destination, Link, Peer};

const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// No part of a file moved for so long: the peer is gone.
const STALL: Duration = Duration::from_secs(30);
/// What a download may take beyond the time that its size allows at [`SLOWEST_BYTES_S`]. Only waiting
/// for the peer counts, not for whoever takes the parts.
const SLACK: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_S: u64 = 16 << 10;
/// After the last byte the agent flushes the file to its disk.
const FLUSH_DEADLINE: Duration = Duration::from_secs(120);
/// The whole upload, so that no peer holds one for ever.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
const ANSWER_MAX_BYTES: usize = 64 << 10;
const GROWTH_MAX_BYTES: u64 = 16 << 20;
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const FILE_MODE: HeaderName = HeaderName::from_static("x-file-mode");

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
    /// Its content from the offset asked for. The digest at the end is that of these bytes, and was
    /// compared with the agent's.
    pub parts: FileParts,
}

/// A file to be written.
pub struct Upload {
    /// Permissions; those of the file that is replaced, else 0644, when left out.
    pub mode: Option<u32>,
    /// Its content. A digest in it is compared with the bytes before it; a stream that ends without
    /// one broke off, and nothing is written. How long it may pause is its maker's business.
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
        let head = Call::new(Method::HEAD, &path, HEAD_DEADLINE).scope(Scope::Files);
        let head = self.call(&to, head).await?;
        // A refused HEAD has no body that says why; the GET has.
        let facts = Facts::of(&head);
        drop_body(head).await;
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
        let facts = facts.ok_or_else(|| garbage("a file without size and mode".into()))?;
        Ok(Download {
            size_bytes: facts.size_bytes,
            mode: facts.mode,
            parts: parts(answer, facts.size_bytes.saturating_sub(offset)),
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
            hash: Sha256::new(),
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

fn files_path(path: &str, user: Option<&str>, mode: Option<u32>) -> String {
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
struct Facts {
    size_bytes: u64,
    mode: u32,
}

impl Facts {
    fn of(answer: &Answer) -> Option<Self> {
        let headers = answer.response.headers();
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
        Some(Self {
            size_bytes: text(&header::CONTENT_LENGTH)?.parse().ok()?,
            mode: u32::from_str_radix(text(&FILE_MODE)?, 8).ok()? & 0o7777,
        })
    }
}

/// An answer to HEAD has no body, so its connection is free at once.
async fn drop_body(answer: Answer) {
    let mut body = answer.response.into_body();
    if let Ok(None) = timeout(STALL, body.frame()).await.map_err(|_| ()) {
        answer.lease.give_back();
    }
}

struct Reading {
    body: Incoming,
    lease: Lease,
    hash: Sha256,
    /// From header or trailer.
    promised: Option<[u8; 32]>,
    taken_bytes: u64,
    most_bytes: u64,
    waited: Duration,
}

fn parts(answer: Answer, expected_bytes: u64) -> FileParts {
    let promised = digest(answer.response.headers());
    let reading = Reading {
        body: answer.response.into_body(),
        lease: answer.lease,
        hash: Sha256::new(),
        promised,
        taken_bytes: 0,
        // A file may grow while it is read, but not without end.
        most_bytes: expected_bytes
            .saturating_mul(2)
            .saturating_add(GROWTH_MAX_BYTES),
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
                        if self.taken_bytes > self.most_bytes {
                            return Err(bad("it sends more than the file has"));
                        }
                        self.hash.update(&bytes);
                        return Ok((FilePart::Bytes(bytes), Some(self)));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.promised = self.promised.or_else(|| digest(&trailers));
                        }
                    }
                },
                None => {
                    let sha256: [u8; 32] = self.hash.finalize().into();
                    return match self.promised {
                        Some(promised) if promised == sha256 => {
                            self.lease.give_back();
                            Ok((FilePart::Sha256(sha256), None))
                        }
                        Some(_) => Err(bad("the bytes do not have the digest that was sent")),
                        None => Err(bad("it sent no digest, so the file may be cut off")),
                    };
                }
            }
        }
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
    hash: Sha256,
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
                this.hash.update(&bytes);
                progress.sent_bytes += bytes.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Ok(FilePart::Sha256(promised))) => {
                let sha256: [u8; 32] = this.hash.clone().finalize().into();
                if sha256 == promised {
                    progress.sha256 = Some(sha256);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers(&sha256)))));
                }
                "the bytes do not have the digest that was sent".to_owned()
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
    let text = format!("sha-256=:{}:", STANDARD.encode(sha256));
    if let Ok(value) = HeaderValue::try_from(text) {
        trailers.insert(REPR_DIGEST, value);
    }
    trailers
}

/// The SHA-256 in `Repr-Digest`, which may hold other digests beside it.
fn digest(headers: &HeaderMap) -> Option<[u8; 32]> {
    let value = headers.get(REPR_DIGEST)?.to_str().ok()?;
    value
        .split(',')
        .find_map(|item| item.trim().strip_prefix("sha-256=:"))
        .and_then(|rest| rest.strip_suffix(':'))
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|bytes| bytes.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_rfc_9530_writes_them() {
        let sha256: [u8; 32] = Sha256::digest(b"x").into();
        assert_eq!(digest(&trailers(&sha256)), Some(sha256));
        let check = |value: &str, expect: Option<[u8; 32]>| {
            let mut headers = HeaderMap::new();
            headers.insert(REPR_DIGEST, HeaderValue::from_str(value).unwrap());
            assert_eq!(digest(&headers), expect, "{value}");
        };
        let text = STANDARD.encode(sha256);
        check(&format!("sha-512=:AAAA:, sha-256=:{text}:"), Some(sha256));
        check(&format!("sha-256={text}"), None);
        check("sha-256=:AAAA:", None);
    }

    #[test]
    fn the_query_holds_path_user_and_octal_mode() {
        assert_eq!(
            files_path("/a b", Some("www&data"), Some(0o750)),
            "/files?path=/a%20b&user=www%26data&mode=750"
        );
    }
}
