//! `GET` and `PUT /instances/{name}/files`: files of any size, with SHA-256 over their bytes.
//!
//! The digest travels after the bytes, as the trailer `Repr-Digest` (RFC 9530). A download without one is
//! an error and never a file. Whoever writes a download to the disk hashes it there and compares; see
//! [`Download::digest`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use api::InstanceName;
pub use api::file::Written;
use api::file::{DIGEST_HEADER, MODE_HEADER, SIZE_HEADER, parse_repr_digest, repr_digest};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, TRAILER};
use hyper::{Method, Response};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::connection::Client;
use crate::error::{Error, chain};
use crate::stream::StreamCall;

/// No bytes for so long are the end of a download.
const SILENCE: Duration = Duration::from_secs(90);
const WRITTEN_LIMIT: usize = 64 << 10;

/// A SHA-256.
pub type Sha256 = [u8; 32];

/// A file on its way out of an instance.
#[derive(Debug)]
pub struct Download {
    /// The file's size in bytes when it was opened, if the instance said it.
    pub size_bytes: Option<u64>,
    /// Its permissions.
    pub mode: Option<u32>,
    body: Incoming,
    digest: Option<Sha256>,
    client: Client,
}

/// What an upload is fed with. A queue that ends without `End` cuts the upload, and nothing is changed.
#[derive(Debug)]
pub enum UploadPiece {
    /// The next bytes.
    Bytes(Bytes),
    /// All bytes were given; this is their SHA-256.
    End(Sha256),
}

/// Where an uploaded file goes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The absolute path in the instance.
    pub path: &'a str,
    /// Whose it will be; root's when left out.
    pub user: Option<&'a str>,
    /// Its permissions; those of the file it replaces, or 0644, when left out.
    pub mode: Option<u32>,
}

impl Client {
    /// Opens a file of an instance for reading, with the rights of `user`.
    pub async fn download(
        &self,
        instance: &InstanceName,
        path: &str,
        user: Option<&str>,
    ) -> Result<Download, Error> {
        let call = Download::call(instance, path, user).header(CONNECTION, "TE");
        let response = self.stream(call).await?;
        Ok(Download::of(self, response))
    }

    /// Writes a file in an instance, whole or not at all. The pieces come from `pieces`.
    pub async fn upload(
        &self,
        instance: &InstanceName,
        target: Target<'_>,
        pieces: mpsc::Receiver<UploadPiece>,
    ) -> Result<Written, Error> {
        let mut call = target
            .call(instance)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(TRAILER, DIGEST_HEADER);
        call.body = UploadBody {
            pieces,
            ended: false,
        }
        .boxed();
        // As long as bytes are taken it goes on; what takes none is found by TCP.
        call.deadline = None;
        let response = self.stream(call).await?;
        let body = Limited::new(response.into_body(), WRITTEN_LIMIT).collect();
        let body = timeout(SILENCE, body)
            .await
            .map_err(|_| self.lost("the answer broke off".to_owned()))?
            .map_err(|e| self.lost(chain(e.as_ref())))?;
        serde_json::from_slice(&body.to_bytes())
            .map_err(|e| self.protocol(format!("what was written can't be read: {e}")))
    }
}

impl<'a> Target<'a> {
    pub(crate) fn call(self, instance: &'a InstanceName) -> StreamCall<'a> {
        StreamCall::new(Method::PUT, &["instances", instance.as_str(), "files"])
            .query("path", Some(self.path))
            .query("user", self.user)
            .query("mode", self.mode.map(|mode| format!("{mode:04o}")))
    }
}

impl Download {
    pub(crate) fn call<'a>(
        instance: &'a InstanceName,
        path: &str,
        user: Option<&str>,
    ) -> StreamCall<'a> {
        StreamCall::new(Method::GET, &["instances", instance.as_str(), "files"])
            .query("path", Some(path))
            .query("user", user)
            .header(TE, "trailers")
    }

    pub(crate) fn of(client: &Client, response: Response<Incoming>) -> Self {
        let text = |name| header(&response, name);
        Self {
            size_bytes: text(SIZE_HEADER).and_then(|size| size.parse().ok()),
            mode: text(MODE_HEADER).and_then(|mode| u32::from_str_radix(mode, 8).ok()),
            digest: digest_of(response.headers()),
            body: response.into_body(),
            client: client.clone(),
        }
    }

    /// The next bytes; nothing when all have come, and with them their digest.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = timeout(SILENCE, self.body.frame())
                .await
                .map_err(|_| self.broken(format!("no bytes for {} s", SILENCE.as_secs())))?;
            match frame {
                None if self.digest.is_none() => {
                    return Err(self.client.protocol(
                        "a file without a digest: nobody knows whether it is whole".into(),
                    ));
                }
                None => return Ok(None),
                Some(Err(error)) => return Err(self.broken(chain(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.digest = digest_of(&trailers).or(self.digest);
                    }
                },
            }
        }
    }

    /// SHA-256 of the bytes as they were sent; known when all have come.
    pub fn digest(&self) -> Option<Sha256> {
        self.digest
    }

    fn broken(&self, cause: String) -> Error {
        self.client.lost(cause)
    }
}

pub(crate) fn header<'a>(response: &'a Response<Incoming>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The digest in headers or trailers. One that can't be read vouches for nothing.
fn digest_of(headers: &HeaderMap) -> Option<Sha256> {
    parse_repr_digest(headers.get_all(DIGEST_HEADER)).ok()?
}

struct UploadBody {
    pieces: mpsc::Receiver<UploadPiece>,
    ended: bool,
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.pieces.poll_recv(context)) {
            Some(UploadPiece::Bytes(bytes)) => Ok(Frame::data(bytes)),
            Some(UploadPiece::End(digest)) => {
                self.ended = true;
                let name = HeaderName::from_static(DIGEST_HEADER);
                HeaderValue::from_str(&repr_digest(&digest))
                    .map(|value| Frame::trailers(HeaderMap::from_iter([(name, value)])))
                    .map_err(io::Error::other)
            }
            None => {
                self.ended = true;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        };
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
