//! SHA-256 of a file's bytes, as RFC 9530 writes it in `Repr-Digest` and as people write it.

use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{DIGEST_HEADER, FileError};

/// A SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The sha-256 in headers or trailers; `None` when they have no digest at all.
    pub fn of_headers(headers: &HeaderMap) -> Result<Option<Self>, FileError> {
        let mut seen = None;
        for value in headers.get_all(DIGEST_HEADER) {
            let text = value.to_str().map_err(|_| FileError::Digest)?;
            for member in text.split(',') {
                match Self::of_member(member.trim()) {
                    Some(digest) if seen.is_none_or(|s| s == digest) => seen = Some(digest),
                    Some(_) => return Err(FileError::Digest),
                    // Another algorithm beside ours.
                    None if !member.trim().starts_with("sha-256=") => {}
                    None => return Err(FileError::Digest),
                }
            }
        }
        if seen.is_none() && headers.contains_key(DIGEST_HEADER) {
            return Err(FileError::Digest);
        }
        Ok(seen)
    }

    fn of_member(member: &str) -> Option<Self> {
        let text = member.strip_prefix("sha-256=:")?.strip_suffix(':')?;
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// `sha-256=:BASE64:`
    pub fn header(self) -> Option<HeaderValue> {
        let text = format!("sha-256=:{}:", STANDARD.encode(self.0));
        HeaderValue::from_str(&text).ok()
    }

    /// In hex.
    pub fn hex(self) -> String {
        use std::fmt::Write as _;
        self.0.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_strictly() {
        let check = |values: &[&str], expect: Result<Option<Digest>, ()>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(DIGEST_HEADER, value.parse().unwrap());
            }
            assert_eq!(
                Digest::of_headers(&headers).map_err(drop),
                expect,
                "{values:?}"
            );
        };
        let digest = Digest([7; 32]);
        let ours = digest.header().unwrap().to_str().unwrap().to_owned();
        let other = Digest([8; 32])
            .header()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        check(&[], Ok(None));
        check(&[&ours], Ok(Some(digest)));
        check(&[&format!("sha-512=:AA==:, {ours}")], Ok(Some(digest)));
        check(&["sha-512=:AA==:", &ours], Ok(Some(digest)));
        check(&[&ours, &other], Err(()));
        check(&["sha-512=:AA==:"], Err(()));
        check(&["sha-256=:AA==:"], Err(()));
        check(&["sha-256=x"], Err(()));
        check(&[""], Err(()));
        assert_eq!(digest.hex(), "07".repeat(32));
    }
}
