//! The guest's files over HTTP: read, look at, write.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /files?path=&user=` | 200 the file; with `Range: bytes=N-` 206 the file from byte N on |
//! | `HEAD /files?path=&user=` | 200 size, mode and time |
//! | `PUT /files?path=&user=&mode=&digest=` | 201 (new) or 200 (replaced) `wire::agent::Written` |
//!
//! Errors are RFC 9457 problems, see [`FileError`]. Who may call is decided where the router is served.
//!
//! Each request has one thread of its own for as long as it lasts. There the file is opened, read,
//! written and renamed with the rights of the user, and there its bytes are hashed; between it and the
//! connection is a short queue of large pieces:
//!
//! ```text
//!   GET   thread: open ▸ read ▸ hash ──▶ queue ──▶ body
//!   PUT   body ──▶ queue ──▶ thread: temporary file ▸ write ▸ hash ▸ compare ▸ fsync ▸ rename
//! ```
//!
//! Over a unix socket a caller may leave TLS, HTTP and the queue out: see [`straight`].
//!
//! Only regular files are read or replaced. A path is absolute and UTF-8. Never changes a file in place,
//! and never leaves a half-written one behind: whatever ends a request ends its thread, and the
//! thread's last act is to remove its temporary file.

mod download;
mod failure;
mod rights;
mod straight;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use api::file::{DIGEST_HEADER, PATH_MAX_BYTES};
use axum::http::HeaderMap;
pub use failure::FileError;

/// Transfers at a time; each has a thread and at most [`QUEUE`] + 2 pieces in memory.
const TRANSFERS: usize = 64;
/// How much is read, hashed and passed on at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces between a thread and its connection.
const QUEUE: usize = 3;
/// A peer that neither sends nor takes a byte for so long has gone.
const IDLE: Duration = Duration::from_secs(60);
/// Opening a file and putting one in place: longer than any disk, not for ever.
const DISK_DEADLINE: Duration = Duration::from_secs(120);

/// What the handlers share.
#[derive(Clone)]
struct Transfers(Arc<Semaphore>);

impl Transfers {
    fn begin(&self) -> Result<OwnedSemaphorePermit, FileError> {
        let permit = Arc::clone(&self.0).try_acquire_owned();
        permit.map_err(|_| FileError::Busy { limit: TRANSFERS })
    }
}

/// The router of `/files`. It holds 64 transfers at a time and does not ask who calls.
pub fn router() -> Router {
    let route = get(download::read)
        .head(download::look)
        .put(upload::write)
        .fallback(async || FileError::Method);
    Router::new()
        .route("/files", route)
        .with_state(Transfers(Arc::new(Semaphore::new(TRANSFERS))))
}

/// A SHA-256.
type Sha256 = [u8; 32];

/// The digest in headers or trailers; none when they have none.
fn digest_of(headers: &HeaderMap) -> Result<Option<Sha256>, FileError> {
    let values = headers.get_all(DIGEST_HEADER);
    Ok(api::file::parse_repr_digest(values)?)
}

/// What a request's thread says when it has opened its file.
async fn from_disk<T>(
    answered: oneshot::Receiver<Result<T, FileError>>,
    path: &GuestPath,
) -> Result<T, FileError> {
    match timeout(DISK_DEADLINE, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(FileError::DiskDeadline {
            path: path.as_str().to_owned(),
        }),
    }
}

/// A path as the caller gave it, checked: absolute, without NUL.
#[derive(Debug, Clone)]
struct GuestPath(String);

impl GuestPath {
    fn parse(path: String) -> Result<Self, FileError> {
        let reason = if !path.starts_with('/') {
            "it is not absolute"
        } else if path.contains('\0') {
            "it holds a NUL"
        } else if path.len() > PATH_MAX_BYTES {
            "it is longer than 4095 bytes"
        } else {
            return Ok(Self(path));
        };
        Err(FileError::Path { path, reason })
    }

    fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory and the name in it, which must be the name of a file.
    fn split(&self) -> Result<(&str, &str), FileError> {
        match self.0.rsplit_once('/') {
            Some((_, "" | "." | "..")) | None => Err(FileError::IsADirectory {
                path: self.0.clone(),
            }),
            Some(("", name)) => Ok(("/", name)),
            Some((directory, name)) => Ok((directory, name)),
        }
    }

    /// Names what was tried with this path when the system refuses it.
    fn failed<E: Into<std::io::Error>>(&self, action: &'static str) -> impl FnOnce(E) -> FileError {
        let path = self.0.clone();
        move |source| FileError::System {
            action,
            path,
            source: source.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_name_a_file() {
        let check = |path: &str, expect: Option<(&str, &str)>| {
            let parsed = GuestPath::parse(path.to_owned());
            let split = parsed.as_ref().ok().and_then(|p| p.split().ok());
            assert_eq!(split, expect, "{path:?}");
        };
        check("/a", Some(("/", "a")));
        check("/a/b.c", Some(("/a", "b.c")));
        check("/a//b", Some(("/a/", "b")));
        for bad in ["", "a", "./a", "/", "/a/", "/a/.", "/a/..", "/a\0b"] {
            check(bad, None);
        }
        assert!(GuestPath::parse(format!("/{}", "x".repeat(PATH_MAX_BYTES))).is_err());
    }
}
