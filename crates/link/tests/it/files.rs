//! Files in and out, with their digests.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use link::{Download, FilePart, FileParts, LinkError, Upload};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use wire::agent::Written;

use crate::lab::Lab;

#[derive(Deserialize)]
struct Asked {
    path: String,
    user: Option<String>,
    mode: Option<String>,
}

fn content() -> Vec<u8> {
    (0..400_000_u32).map(|n| (n / 7) as u8).collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(bytes)))
}

/// `/good`, `/bad` (a digest that is none), `/none` (no digest), `/cut` (breaks off), `/longer` and `/shorter` (than
/// was said).
async fn file(headers: HeaderMap, Query(asked): Query<Asked>) -> Response {
    let content = content();
    if asked.path == "/missing" {
        let problem = api::Problem::new(404, "not_found", "no such file");
        return (StatusCode::NOT_FOUND, axum::Json(problem)).into_response();
    }
    let size = match asked.path.as_str() {
        "/longer" => content.len() - 1,
        "/shorter" => content.len() + 1,
        _ => content.len(),
    };
    let facts = [
        ("x-file-mode", "0640".to_owned()),
        ("x-file-size", size.to_string()),
    ];
    let from = headers.get(header::RANGE).map_or(0, |range| {
        let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
        range.strip_suffix('-').unwrap().parse().unwrap()
    });
    let status = match from {
        0 => StatusCode::OK,
        _ => StatusCode::PARTIAL_CONTENT,
    };
    let sent = Bytes::copy_from_slice(&content[from..]);
    let mut frames: Vec<Result<Frame<Bytes>, io::Error>> = sent
        .chunks(30_000)
        .map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk))))
        .collect();
    let promised = match asked.path.as_str() {
        "/good" | "/longer" | "/shorter" => Some(digest(&sent)),
        "/bad" => Some("sha-256=:AAAA:".to_owned()),
        _ => None,
    };
    if asked.path == "/cut" {
        frames.push(Err(io::Error::other("cut")));
    }
    if let Some(promised) = promised {
        let mut trailers = HeaderMap::new();
        trailers.insert("repr-digest", promised.parse().unwrap());
        frames.push(Ok(Frame::trailers(trailers)));
    }
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    let trailer = [(header::TRAILER, HeaderValue::from_static("Repr-Digest"))];
    (status, facts, trailer, body).into_response()
}

/// Takes a body as an agent would; `/full` is refused, `/else` writes something else.
async fn put(Query(asked): Query<Asked>, headers: HeaderMap, body: Body) -> Response {
    assert_eq!(headers[header::TRAILER], "Repr-Digest");
    let Ok(collected) = body.collect().await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let bytes = collected.to_bytes();
    if trailers["repr-digest"] != digest(&bytes).as_str() {
        let problem = api::Problem::new(422, "digest_mismatch", "other bytes");
        return (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(problem)).into_response();
    }
    if asked.path == "/full" {
        let problem = api::Problem::new(507, "no_space", "the disk is full");
        return (StatusCode::INSUFFICIENT_STORAGE, axum::Json(problem)).into_response();
    }
    assert_eq!(
        (asked.user.as_deref(), asked.mode.as_deref()),
        (Some("www"), Some("755"))
    );
    let written = match asked.path.as_str() {
        "/else" => b"else".as_slice(),
        _ => &bytes,
    };
    let written = Written {
        size_bytes: written.len() as u64,
        sha256: hex::encode(Sha256::digest(written)),
    };
    (StatusCode::CREATED, axum::Json(written)).into_response()
}

/// A file without end, as far as anybody here takes it; counts how much was asked of it.
fn endless(given: Arc<AtomicUsize>) -> Router {
    let get = async move || {
        let piece = Bytes::from(vec![7; 64 << 10]);
        let frames = stream::repeat_with(move || {
            given.fetch_add(piece.len(), Ordering::Relaxed);
            Ok::<_, Infallible>(Frame::data(piece.clone()))
        });
        let facts = [
            ("x-file-mode", "0640".to_owned()),
            ("x-file-size", u64::MAX.to_string()),
        ];
        (facts, Body::new(StreamBody::new(frames))).into_response()
    };
    Router::new().route("/files", axum::routing::get(get))
}

#[tokio::test]
async fn who_takes_a_download_slowly_holds_it_up() {
    let given = Arc::new(AtomicUsize::new(0));
    let lab = Lab::with(endless(given.clone())).await;
    let mut download = read(&lab, "/endless", 0).await.unwrap();
    download.parts.next().await.unwrap().unwrap();
    // It comes to rest, and what was given until then is in the sockets on the way.
    let mut before = 0;
    loop {
        let now = given.load(Ordering::Relaxed);
        assert!(now < 128 << 20, "{now} bytes are kept somewhere");
        if now == before {
            break;
        }
        before = now;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let mut taken = 0;
    while taken < before {
        let part = download.parts.next().await.unwrap().unwrap();
        let FilePart::Bytes(bytes) = part else {
            panic!("it has no end");
        };
        assert!(bytes.iter().all(|byte| *byte == 7));
        taken += bytes.len();
    }
}

async fn lab() -> Lab {
    Lab::with(Router::new().route("/files", get(file).put(put))).await
}

async fn read(lab: &Lab, path: &str, offset: u64) -> Result<Download, LinkError> {
    lab.link
        .read_file(&lab.peer, path, Some("www"), offset)
        .await
}

fn upload(parts: Vec<io::Result<FilePart>>) -> Upload {
    let parts: FileParts = stream::iter(parts).boxed();
    Upload {
        mode: Some(0o755),
        parts,
    }
}

fn whole(bytes: &[u8]) -> Vec<io::Result<FilePart>> {
    bytes
        .chunks(70_000)
        .map(|chunk| FilePart::Bytes(Bytes::copy_from_slice(chunk)))
        .chain([FilePart::Sha256(Sha256::digest(bytes).into())])
        .map(Ok::<_, Infallible>)
        .map(|part| part.map_err(|never| match never {}))
        .collect()
}

#[tokio::test]
async fn a_download_is_whole_and_checked_or_an_error() {
    let lab = lab().await;
    let content = content();
    for offset in [0, 399_999] {
        let download = read(&lab, "/good", offset).await.unwrap();
        assert_eq!((download.size_bytes, download.mode), (400_000, 0o640));
        let parts: Vec<FilePart> = download.parts.try_collect().await.unwrap();
        let mut taken = Vec::new();
        for part in &parts {
            if let FilePart::Bytes(bytes) = part {
                taken.extend_from_slice(bytes);
            }
        }
        let sent = &content[offset as usize..];
        assert!(taken == sent);
        let sha256 = Sha256::digest(sent).into();
        assert_eq!(parts.last(), Some(&FilePart::Sha256(sha256)));
    }
    assert_eq!(lab.seen.tunnels(), 1);
    for (path, expect) in [
        ("/bad", "no digest"),
        ("/none", "no digest"),
        ("/longer", "more than the file has"),
        ("/shorter", "less than the file has"),
    ] {
        let download = read(&lab, path, 0).await.unwrap();
        let failed = download.parts.try_collect::<Vec<_>>().await.unwrap_err();
        assert!(failed.to_string().contains(expect), "{path}: {failed}");
    }
    // The end may come before the head was read.
    let cut = match read(&lab, "/cut", 0).await {
        Ok(download) => download.parts.try_collect::<Vec<_>>().await.map_err(|_| ()),
        Err(_) => Err(()),
    };
    assert!(cut.is_err());
    let missing = read(&lab, "/missing", 0).await.map(|_| ());
    let Err(LinkError::Refused { problem, .. }) = missing else {
        panic!("{missing:?}");
    };
    assert_eq!(problem.code, "not_found");
}

#[tokio::test]
async fn an_upload_is_what_was_sent_or_an_error() {
    let lab = lab().await;
    let content = content();
    let write = async |path: &str, parts| {
        let upload = upload(parts);
        lab.link
            .write_file(&lab.peer, path, Some("www"), upload)
            .await
    };
    for bytes in [content.as_slice(), b""] {
        let written = write("/good", whole(bytes)).await.unwrap();
        assert_eq!(written.size_bytes, bytes.len() as u64);
        assert_eq!(written.sha256, <[u8; 32]>::from(Sha256::digest(bytes)));
    }
    assert_eq!(lab.seen.tunnels(), 1);
    let full = write("/full", whole(&content)).await;
    assert!(matches!(full, Err(LinkError::Refused { .. })), "{full:?}");
    let other = write("/else", whole(&content)).await;
    assert!(matches!(other, Err(LinkError::Garbage { .. })), "{other:?}");

    let bytes = || Ok(FilePart::Bytes(Bytes::from_static(b"abc")));
    let wrong = vec![bytes(), Ok(FilePart::Sha256([0; 32]))];
    let wrong = write("/good", wrong).await;
    assert!(matches!(wrong, Err(LinkError::Refused { .. })), "{wrong:?}");
    for (case, parts) in [
        ("no digest", vec![bytes()]),
        ("broken", vec![bytes(), Err(io::Error::other("gone"))]),
    ] {
        let failed = write("/good", parts).await;
        assert!(
            matches!(failed, Err(LinkError::NothingRan { .. })),
            "{case}: {failed:?}"
        );
    }
}
