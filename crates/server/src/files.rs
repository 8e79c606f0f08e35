//! `/instances/{name}/files`: files of a guest, streamed both ways with their digest behind them.
//!
//! Nothing is kept here: bytes and digest go through as they come. A file that breaks off on one side
//! breaks off on the other. What comes out of a guest is an attachment, never a page.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::audit::Outcome;
use api::Problem;
use api::file::{
    DIGEST_HEADER, MODE_HEADER, REST_HEADER, SIZE_HEADER, UploadEnd, Written, parse_repr_digest,
    repr_digest,
};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use engine::ports::{
    FileContent, FileDownload, FilePart, FileParts, FileRequest, FileSocket, FileUpload,
    FileWritten,
};
use futures::stream::{Stream, StreamExt};
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    RANGE, TE, TRAILER,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use hyper::upgrade::OnUpgrade;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use crate::State;
use crate::answer::{Failed, Params};
use crate::audited::{self, Pending, Told};
use crate::auth::Actor;
use crate::sessions::outcome_of_problem;
use crate::straight;

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
    mut request: Request,
) -> Result<Response, Failed> {
    let upgrade = straight::asked_for(&mut request);
    let headers = request.headers();
    let offset = offset_of(headers)?;
    let detail = json!({ "path": which.path, "user": which.user, "offset": offset });
    let intent = audited::begin(&state, &actor, "instance.file.read", &name, detail).await?;
    let found = state
        .controller
        .read_file(&name, &which.request(), offset, upgrade.is_some())
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
    let FileDownload {
        size_bytes: size,
        mode,
        content,
    } = download;
    let mode = format!("{:04o}", mode & 0o7777);
    let described = [(MODE_HEADER, mode), (SIZE_HEADER, size.to_string())];
    let parts = match (content, upgrade) {
        (FileContent::Socket(file), Some(upgrade)) => {
            let mut response = straight::switching();
            set(&mut response, described);
            set(&mut response, [(REST_HEADER, file.size_bytes.to_string())]);
            tokio::spawn(straight::give(upgrade, file));
            return Ok(response);
        }
        (content, _) => content.into_parts(),
    };
    let trailers = headers.get_all(TE).iter().any(|v| {
        v.to_str()
            .is_ok_and(|t| t.to_ascii_lowercase().contains("trailers"))
    });
    let body = Body::new(FileBody {
        parts,
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
    set(&mut response, described);
    if trailers {
        let name = HeaderValue::from_static("Repr-Digest");
        response.headers_mut().insert(TRAILER, name);
    }
    if offset > 0 {
        let last = size.saturating_sub(1);
        let range = format!("bytes {offset}-{last}/{size}");
        set(&mut response, [(CONTENT_RANGE.as_str(), range)]);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

fn set<const N: usize>(response: &mut Response, headers: [(&'static str, String); N]) {
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            let name = http::HeaderName::from_static(name);
            response.headers_mut().insert(name, value);
        }
    }
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

/// Replaces a file of a guest in one step, or changes nothing. The digest of the body comes as header or trailer `Repr-Digest` and is compared before the file appears.
#[utoipa::path(put, path = "/api/v1/instances/{name}/files", tag = "instances", operation_id = "write_file",
    params(("name" = String, Path), Which), request_body(content = String, content_type = "application/octet-stream"), responses(
    (status = 200, body = Written), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem), (status = 507, body = Problem)))]
pub(crate) async fn write(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Params(which): Params<Which>,
    mut request: Request,
) -> Result<Response, Failed> {
    let upgrade = straight::asked_for(&mut request);
    let (head, body) = request.into_parts();
    let mode = which.octal_mode()?;
    if let Some(upgrade) = upgrade {
        let size_bytes = straight_size(&head.headers)?;
        let intent = head.extensions.get::<Pending>().and_then(Pending::take);
        tokio::spawn(async move {
            let written = write_straight(&state, &name, &which, mode, size_bytes, upgrade).await;
            if let Some(intent) = intent {
                audited::finish(intent, written.into_outcome()).await;
            }
        });
        return Ok(straight::switching());
    }
    let ahead = parse_repr_digest(head.headers.get_all(DIGEST_HEADER))
        .map_err(|unreadable| bad(unreadable.to_string(), "sha-256=:BASE64:"))?;
    let content = FileContent::Parts(parts_of(body, ahead));
    let upload = FileUpload { mode, content };
    let written = state
        .controller
        .write_file(&name, &which.request(), upload)
        .await?;
    let written = told_of(&written);
    let told = Extension(Told::wrote(written.size_bytes, &written.sha256));
    Ok((told, Json(written)).into_response())
}

fn told_of(written: &FileWritten) -> Written {
    Written {
        size_bytes: written.size_bytes,
        sha256: hex::encode(written.sha256),
    }
}

fn straight_size(headers: &HeaderMap) -> Result<u64, Box<Problem>> {
    let size = headers.get(SIZE_HEADER).and_then(|size| size.to_str().ok());
    size.and_then(|size| size.parse().ok()).ok_or_else(|| {
        let hint = format!("{SIZE_HEADER}: BYTES");
        bad("how many bytes come is not said".into(), &hint)
    })
}

/// From the `101` on: what went wrong is told over the socket.
async fn write_straight(
    state: &State,
    name: &str,
    which: &Which,
    mode: Option<u32>,
    size_bytes: u64,
    upgrade: OnUpgrade,
) -> Told {
    let broken = |e: io::Error| Told::from(Outcome::failed(format!("no socket: {e}")));
    let caller = match straight::socket(upgrade).await {
        Ok(caller) => caller,
        Err(error) => return broken(error),
    };
    let socket = match caller.try_clone() {
        Ok(socket) => socket,
        Err(error) => return broken(error),
    };
    let content = FileContent::Socket(FileSocket { size_bytes, socket });
    let upload = FileUpload { mode, content };
    let request = which.request();
    match state.controller.write_file(name, &request, upload).await {
        Ok(written) => {
            let written = told_of(&written);
            let told = Told::wrote(written.size_bytes, &written.sha256);
            straight::end(caller, UploadEnd::Written(written)).await;
            told
        }
        Err(error) => {
            let problem = error.problem();
            let told = Told::problem(&problem);
            straight::end(caller, UploadEnd::Problem(problem)).await;
            told
        }
    }
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
