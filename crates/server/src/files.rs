//! `/instances/{name}/files`: files of a guest, streamed both ways with their digest behind them.
//!
//! Nothing is kept here: bytes and digest go through as they come. A file that breaks off on one side
//! breaks off on the other. What comes out of a guest is an attachment, never a page.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::audit::Outcome;
use api::Problem;
use api::file::{DIGEST_HEADER, MODE_HEADER, SIZE_HEADER, parse_repr_digest, repr_digest};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use engine::ports::{FilePart, FileParts, FileRequest, FileUpload};
use futures::stream::{Stream, StreamExt};
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    RANGE, TE, TRAILER,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::State;
use crate::answer::{Failed, Params};
use crate::audited::{self, Told};
use crate::auth::Actor;
use crate::sessions::outcome_of_problem;

pub(crate) fn routes() -> Router<State> {
    Router::new().route("/instances/{name}/files", get(read).put(write))
}

/// Which file.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Absolute path in the guest.
    path: String,
    /// As whom it is read or written; root when left out.
    user: Option<String>,
    /// Permissions of a new file in octal, like `0644`.
    mode: Option<String>,
}

impl Which {
    fn request(&self) -> FileRequest {
        FileRequest {
            path: self.path.clone(),
            user: self.user.clone(),
        }
    }

    fn octal_mode(&self) -> Result<Option<u32>, Box<Problem>> {
        let Some(text) = &self.mode else {
            return Ok(None);
        };
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
            _ => Err(bad(format!("{text:?} is no mode"), "octal, like 0644")),
        }
    }
}

fn bad(what: String, hint: &str) -> Box<Problem> {
    Box::new(Problem::new(422, "bad_request", what).hint(hint))
}

/// Reads a file of a guest. With `Range: bytes=N-` its rest from byte N on. The digest of what is sent is a trailer.
#[utoipa::path(get, path = "/api/v1/instances/{name}/files", tag = "instances", operation_id = "read_file",
    params(("name" = String, Path), Which), responses(
    (status = 200, content_type = "application/octet-stream", description = "the bytes; `Repr-Digest` as a trailer for callers that say `TE: trailers`"),
    (status = 206, content_type = "application/octet-stream"), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn read(
    Extract(state): Extract<State>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    Params(which): Params<Which>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    let offset = offset_of(&headers)?;
    let detail = json!({ "path": which.path, "user": which.user, "offset": offset });
    let intent = audited::begin(&state, &actor, "instance.file.read", &name, detail).await?;
    let found = state
        .controller
        .read_file(&name, &which.request(), offset)
        .await;
    let download = match found {
        Ok(download) => download,
        Err(e) => {
            let problem = e.problem();
            audited::finish(intent, outcome_of_problem(&problem)).await;
            return Err(e.into());
        }
    };
    // What follows is a copy of bytes; that they were handed out is what the log is for.
    audited::finish(intent, Outcome::ok()).await;
    let size = download.size_bytes;
    let trailers = headers.get_all(TE).iter().any(|v| {
        v.to_str()
            .is_ok_and(|t| t.to_ascii_lowercase().contains("trailers"))
    });
    let body = Body::new(FileBody {
        parts: download.parts,
        trailers,
        whole: false,
    });
    let mut response = (
        [
            (CONTENT_TYPE, "application/octet-stream"),
            (CONTENT_DISPOSITION, "attachment"),
            (CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'"),
            (ACCEPT_RANGES, "bytes"),
        ],
        body,
    )
        .into_response();
    let mode = format!("{:04o}", download.mode & 0o7777);
    let mut set = |name: http::HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(http::HeaderName::from_static(MODE_HEADER), mode);
    set(http::HeaderName::from_static(SIZE_HEADER), size.to_string());
    if trailers {
        set(TRAILER, "Repr-Digest".into());
    }
    if offset > 0 {
        let last = size.saturating_sub(1);
        set(CONTENT_RANGE, format!("bytes {offset}-{last}/{size}"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The offset of `Range: bytes=N-`, the only form there is here.
fn offset_of(headers: &HeaderMap) -> Result<u64, Box<Problem>> {
    let Some(range) = headers.get(RANGE) else {
        return Ok(0);
    };
    let offset = range
        .to_str()
        .ok()
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    offset.ok_or_else(|| bad("the range can't be read".into(), "Range: bytes=N-"))
}

/// What was written.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Written {
    /// The file's size in bytes.
    size_bytes: u64,
    /// SHA-256 of what is on the guest's disk, in hex.
    sha256: String,
}

/// Replaces a file of a guest in one step, or changes nothing. The digest of the body comes as header or trailer `Repr-Digest` and is compared before the file appears.
#[utoipa::path(put, path = "/api/v1/instances/{name}/files", tag = "instances", operation_id = "write_file",
    params(("name" = String, Path), Which), request_body(content = String, content_type = "application/octet-stream"), responses(
    (status = 200, body = Written), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem), (status = 507, body = Problem)))]
pub(crate) async fn write(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Params(which): Params<Which>,
    headers: HeaderMap,
    body: Body,
) -> Result<(Extension<Told>, Json<Written>), Failed> {
    let ahead = parse_repr_digest(headers.get_all(DIGEST_HEADER))
        .map_err(|unreadable| bad(unreadable.to_string(), "sha-256=:BASE64:"))?;
    let upload = FileUpload {
        mode: which.octal_mode()?,
        parts: parts_of(body, ahead),
    };
    let written = state
        .controller
        .write_file(&name, &which.request(), upload)
        .await?;
    let written = Written {
        size_bytes: written.size_bytes,
        sha256: hex::encode(written.sha256),
    };
    let told = Extension(Told::wrote(written.size_bytes, &written.sha256));
    Ok((told, Json(written)))
}

/// A request's body as parts, the digest last: from the trailer, or the one that came ahead.
fn parts_of(body: Body, ahead: Option<[u8; 32]>) -> FileParts {
    let start = (body, ahead, false);
    futures::stream::try_unfold(start, |(mut body, ahead, done)| async move {
        if done {
            return Ok(None);
        }
        loop {
            let frame = http_body_util::BodyExt::frame(&mut body).await;
            match frame.transpose().map_err(io::Error::other)? {
                None => {
                    let missing = || {
                        io::Error::new(
                            io::ErrorKind::InvalidData,
                            "no Repr-Digest came with the body",
                        )
                    };
                    let digest = ahead.ok_or_else(missing)?;
                    return Ok(Some((FilePart::Sha256(digest), (body, ahead, true))));
                }
                Some(frame) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some((FilePart::Bytes(bytes), (body, ahead, false)))),
                    Err(frame) => {
                        let trailer = frame.into_trailers().unwrap_or_default();
                        let digest = parse_repr_digest(trailer.get_all(DIGEST_HEADER));
                        let digest = digest.map_err(|unreadable| {
                            io::Error::new(io::ErrorKind::InvalidData, unreadable)
                        })?;
                        if let Some(digest) = digest {
                            return Ok(Some((FilePart::Sha256(digest), (body, ahead, true))));
                        }
                    }
                },
            }
        }
    })
    .boxed()
}

/// Parts as a response's body.
struct FileBody {
    parts: FileParts,
    trailers: bool,
    whole: bool,
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.whole {
            return Poll::Ready(None);
        }
        let part = std::task::ready!(Pin::new(&mut self.parts).poll_next(context));
        Poll::Ready(match part {
            Some(Ok(FilePart::Bytes(bytes))) => Some(Ok(Frame::data(bytes))),
            Some(Ok(FilePart::Sha256(digest))) => {
                self.whole = true;
                let value = HeaderValue::from_str(&repr_digest(&digest)).map_err(io::Error::other);
                match (self.trailers, value) {
                    (true, Ok(value)) => {
                        let name = http::HeaderName::from_static(DIGEST_HEADER);
                        Some(Ok(Frame::trailers(HeaderMap::from_iter([(name, value)]))))
                    }
                    (true, Err(e)) => Some(Err(e)),
                    (false, _) => None,
                }
            }
            Some(Err(e)) => Some(Err(e)),
            // No digest: it broke off, and must not look as if it were whole.
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }
}
