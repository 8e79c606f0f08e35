//! Files of a guest over HTTP: the headers beside their bytes, the same between a client and the
//! controller and between the controller and the agent.
//!
//! A file travels as a chunked body whose trailer is `Repr-Digest` (RFC 9530) over its bytes. Whoever
//! receives compares before the file appears under its name. Trailers come to those who say
//! `TE: trailers`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The mode of a file in octal, like `0644`.
pub const MODE_HEADER: &str = "x-file-mode";
/// The size of the whole file in bytes.
pub const SIZE_HEADER: &str = "x-file-size";
/// The digest of the bytes: `sha-256=:BASE64:`.
pub const DIGEST_HEADER: &str = "repr-digest";

/// A SHA-256 as `Repr-Digest` has it.
pub fn repr_digest(sha256: &[u8; 32]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(sha256))
}

/// The SHA-256 among the digests of a `Repr-Digest`; none when there is none or it can't be read.
pub fn parse_repr_digest(value: &str) -> Option<[u8; 32]> {
    let ours = value
        .split(',')
        .find_map(|member| member.trim().strip_prefix("sha-256=:"))?;
    STANDARD
        .decode(ours.strip_suffix(':')?)
        .ok()?
        .try_into()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_come_back_and_nothing_else_is_one() {
        let digest = [7u8; 32];
        let text = repr_digest(&digest);
        assert_eq!(parse_repr_digest(&text), Some(digest));
        assert_eq!(
            parse_repr_digest(&format!("md5=:AA==:, {text}")),
            Some(digest)
        );
        for bad in ["", "sha-256=:AAAA:", "sha-256=:*:", &text[..text.len() - 1]] {
            assert_eq!(parse_repr_digest(bad), None, "{bad:?}");
        }
    }
}
