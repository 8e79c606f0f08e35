//! Why a file was not read or not written, and the problem that says so. The old file is whole in
//! every case.

use std::io;

use api::Problem;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rustix::io::Errno;

/// A request about a file that failed. The code of its problem stands beside each variant.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// `bad_request`: the query can't be read.
    #[error("the query can't be read: {0}")]
    Query(String),
    /// `bad_path`: no path that could name a file.
    #[error("{path:?} is no path of a file: {reason}")]
    Path {
        /// What was given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `bad_mode`: the mode is not octal.
    #[error("{mode:?} is no mode: write it in octal, like 0644")]
    Mode {
        /// What was given.
        mode: String,
    },
    /// `bad_digest`: a digest that can't be read or holds no sha-256.
    #[error(transparent)]
    Digest(#[from] api::file::UnreadableDigest),
    /// `digest_missing`: a body that nobody vouches for.
    #[error("no Repr-Digest came before or after the bytes of {path}")]
    DigestMissing {
        /// The file.
        path: String,
    },
    /// `digest_mismatch`: other bytes than were sent.
    #[error("the bytes of {path} have SHA-256 {found}, not {said}")]
    DigestMismatch {
        /// The file.
        path: String,
        /// SHA-256 of what arrived, in hex.
        found: String,
        /// SHA-256 as the sender says, in hex.
        said: String,
    },
    /// `body_broken`: the body broke off.
    #[error("the bytes of {path} broke off: {cause}")]
    Body {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// `body_deadline`: nothing came for too long.
    #[error("no bytes of {path} came for {seconds} s")]
    BodyDeadline {
        /// The file.
        path: String,
        /// How long that is.
        seconds: u64,
    },
    /// `no_such_user`: nobody of that name or number.
    #[error("{0}")]
    NoSuchUser(String),
    /// `is_a_directory`.
    #[error("{path} is a directory")]
    IsADirectory {
        /// The path.
        path: String,
    },
    /// `not_a_file`: a FIFO, a socket, a device.
    #[error("{path} is no regular file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// `range_not_satisfiable`: the file ends before the range begins.
    #[error("{path} has {size} bytes and none from {from} on")]
    Range {
        /// The path.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The first byte asked for.
        from: u64,
    },
    /// `not_found`, `permission_denied`, `no_space` or `io_error`, by the system's error.
    #[error("cannot {action} {path}: {source}")]
    System {
        /// What was tried ("open").
        action: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `disk_deadline`: the disk does not answer. The only failure after which the file may change yet.
    #[error("the disk did not answer in time for {path}")]
    DiskDeadline {
        /// The file.
        path: String,
    },
    /// `busy`: too many transfers.
    #[error("{limit} transfers run already")]
    Busy {
        /// How many run.
        limit: usize,
    },
    /// `no_such_method`.
    #[error("a file can be read (GET), looked at (HEAD) and written (PUT)")]
    Method,
}

impl FileError {
    /// Status and code of the problem.
    fn kind(&self) -> (u16, &'static str) {
        match self {
            Self::Query(_) => (400, "bad_request"),
            Self::Path { .. } => (400, "bad_path"),
            Self::Mode { .. } => (400, "bad_mode"),
            Self::Digest(_) => (400, "bad_digest"),
            Self::DigestMissing { .. } => (400, "digest_missing"),
            Self::DigestMismatch { .. } => (422, "digest_mismatch"),
            Self::Body { .. } => (400, "body_broken"),
            Self::BodyDeadline { .. } => (408, "body_deadline"),
            Self::NoSuchUser(_) => (422, "no_such_user"),
            Self::IsADirectory { .. } => (409, "is_a_directory"),
            Self::NotAFile { .. } => (409, "not_a_file"),
            Self::Range { .. } => (416, "range_not_satisfiable"),
            Self::System { source, .. } => of_system(source),
            Self::DiskDeadline { .. } => (504, "disk_deadline"),
            Self::Busy { .. } => (503, "busy"),
            Self::Method => (405, "no_such_method"),
        }
    }

    /// The problem that says so.
    pub fn problem(&self) -> Problem {
        let (status, code) = self.kind();
        let mut problem = Problem::new(status, code, self.to_string());
        problem.hint = self.hint().map(str::to_owned);
        problem
    }

    fn hint(&self) -> Option<&'static str> {
        match self.kind().1 {
            "digest_missing" => {
                Some("send Repr-Digest as header or trailer, or say digest=none in the query")
            }
            "digest_mismatch" | "body_broken" | "body_deadline" => {
                Some("nothing was changed; send the file again")
            }
            "no_space" => Some("nothing was changed; free space in the guest"),
            "busy" => Some("try again in a moment"),
            _ => None,
        }
    }
}

fn of_system(error: &io::Error) -> (u16, &'static str) {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) => (404, "not_found"),
        Some(Errno::ISDIR) => (409, "is_a_directory"),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::LOOP) => (403, "permission_denied"),
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => (507, "no_space"),
        Some(Errno::NAMETOOLONG | Errno::INVAL) => (400, "bad_path"),
        _ => (500, "io_error"),
    }
}

impl IntoResponse for FileError {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = HeaderValue::from_static("application/problem+json");
        let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
        if let Self::Range { size, .. } = self
            && let Ok(range) = HeaderValue::from_str(&format!("bytes */{size}"))
        {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
        response
    }
}
