//! Files of a guest over HTTP: the headers beside their bytes, the same between a client and the
//! controller and between the controller and the agent.
//!
//! A file travels as a chunked body whose trailer is `Repr-Digest` (RFC 9530) over its bytes. Whoever
//! receives compares before the file appears under its name. Trailers come to those who say
//! `TE: trailers`.

//! # Straight
//!
//! Between two ends of a unix socket a file need not be wrapped. A request with `Upgrade: proximity-file`
//! ([`STRAIGHT`]) and, for a PUT, the size in [`SIZE_HEADER`] and no body, is answered by 101; then
//!
//! | | from | bytes |
//! |---|---|---|
//! | GET | client | [`GO`]: what comes now is no HTTP any more |
//! | | server | as many bytes as the 101 said in [`REST_HEADER`], and their SHA-256 (32 bytes) |
//! | PUT | client | as many bytes as it said, and their SHA-256 (32 bytes) |
//! | | server | [`UploadEnd`] as JSON, to the end of the connection |
//!
//! A connection that ends earlier broke off. A server that does not take a GET this way answers it as if nobody
//! had asked for it.

use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::Problem;

/// The mode of a file in octal, like `0644`.
pub const MODE_HEADER: &str = "x-file-mode";
/// The size of the whole file in bytes.
pub const SIZE_HEADER: &str = "x-file-size";
/// The digest of the bytes: `sha-256=:BASE64:`.
pub const DIGEST_HEADER: &str = "repr-digest";

/// How many bytes come straight, in an answer with status 101.
pub const REST_HEADER: &str = "x-file-rest";

/// The protocol of a file that travels straight; see above.
pub const STRAIGHT: &str = "proximity-file";
/// From the client of a straight GET: it has left HTTP behind.
pub const GO: u8 = b'g';
/// An [`UploadEnd`] is at most this long in bytes.
pub const UPLOAD_END_MAX_BYTES: usize = 64 << 10;

/// What became of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Written {
    /// The file's size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of what is on the disk, in hex.
    pub sha256: String,
}

/// The end of an upload that came straight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadEnd {
    /// The file is there.
    Written(Written),
    /// Nothing was changed.
    Problem(Problem),
}

impl UploadEnd {
    /// Reads one to the end of its connection. Who closes a socket before it has read everything leaves an
    /// error behind what it said, which then counts for nothing.
    pub fn read(from: impl Read) -> io::Result<Self> {
        let mut text = Vec::new();
        let limit = UPLOAD_END_MAX_BYTES as u64;
        match from.take(limit).read_to_end(&mut text) {
            Err(error) if text.is_empty() => Err(error),
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_slice(&text)?),
        }
    }
}

/// A SHA-256 as `Repr-Digest` has it.
pub fn repr_digest(sha256: &[u8; 32]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(sha256))
}

/// A path in a guest is at most this long in bytes: what Linux takes, without the NUL at its end.
pub const PATH_MAX_BYTES: usize = 4095;

/// A `Repr-Digest` that can't be read, holds no SHA-256, or holds two different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the digest can't be read: write it like Repr-Digest: sha-256=:BASE64:")]
pub struct UnreadableDigest;

/// The SHA-256 in the values of `Repr-Digest`, which may hold digests of other kinds beside it; none when
/// there are no values.
pub fn parse_repr_digest<V: AsRef<[u8]>>(
    values: impl IntoIterator<Item = V>,
) -> Result<Option<[u8; 32]>, UnreadableDigest> {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    let mut found = None;
    for value in values {
        let text = std::str::from_utf8(value.as_ref()).map_err(|_| UnreadableDigest)?;
        for member in text.split(',').map(str::trim) {
            if !member.starts_with("sha-256=") {
                continue;
            }
            let digest = sha256_of(member).ok_or(UnreadableDigest)?;
            if found.is_some_and(|other| other != digest) {
                return Err(UnreadableDigest);
            }
            found = Some(digest);
        }
    }
    found.map(Some).ok_or(UnreadableDigest)
}

fn sha256_of(member: &str) -> Option<[u8; 32]> {
    let text = member.strip_prefix("sha-256=:")?.strip_suffix(':')?;
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_strictly() {
        let check = |values: &[&str], expect: Result<Option<[u8; 32]>, UnreadableDigest>| {
            assert_eq!(parse_repr_digest(values), expect, "{values:?}");
        };
        let digest = [7u8; 32];
        let (ours, other) = (repr_digest(&digest), repr_digest(&[8; 32]));
        check(&[], Ok(None));
        check(&[&ours], Ok(Some(digest)));
        check(&[&ours, &ours], Ok(Some(digest)));
        check(&[&format!("sha-512=:AA==:, {ours}")], Ok(Some(digest)));
        check(&["sha-512=:AA==:", &ours], Ok(Some(digest)));
        let cut = &ours[..ours.len() - 1];
        for bad in [
            "",
            "sha-512=:AA==:",
            "sha-256=:AA==:",
            "sha-256=:*:",
            "sha-256=x",
            cut,
        ] {
            check(&[bad], Err(UnreadableDigest));
        }
        check(&[&ours, &other], Err(UnreadableDigest));
        check(&[&ours, "sha-256=:AA==:"], Err(UnreadableDigest));
        assert_eq!(parse_repr_digest([[0xff]]), Err(UnreadableDigest));
    }
}
