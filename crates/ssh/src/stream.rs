//! One stream of a command's output: what login files print before the marker, and what is the command's own.
//!
//! Holds a bounded part of either. Pure.

use bytes::{Bytes, BytesMut};

use crate::command::MAX_OUTPUT_BYTES;

/// How much of what comes before the marker is kept for a message, in bytes.
const MAX_NOISE_BYTES: usize = 16 * 1024;

/// One stream of output: what comes before the marker, and what comes after.
pub(crate) struct Stream {
    pub noise: BytesMut,
    /// Whether the marker has come.
    pub open: bool,
    pub kept: Vec<u8>,
    pub truncated: bool,
}

impl Stream {
    pub fn new() -> Self {
        Self {
            noise: BytesMut::new(),
            open: false,
            kept: Vec::new(),
            truncated: false,
        }
    }

    /// What of these bytes is the command's output.
    pub fn feed(&mut self, data: Bytes, marker: &[u8]) -> Option<Bytes> {
        if self.open {
            return Some(data);
        }
        self.noise.extend_from_slice(&data);
        let at = self
            .noise
            .windows(marker.len())
            .position(|window| window == marker);
        if let Some(at) = at {
            self.open = true;
            let rest = self.noise.split_off(at.saturating_add(marker.len()));
            self.noise.truncate(at);
            return (!rest.is_empty()).then(|| rest.freeze());
        }
        let excess = self.noise.len().saturating_sub(MAX_NOISE_BYTES);
        if excess > 0 {
            let _: BytesMut = self.noise.split_to(excess);
        }
        None
    }

    pub fn keep(&mut self, data: &[u8]) {
        let room = MAX_OUTPUT_BYTES.saturating_sub(self.kept.len());
        let taken = data.get(..room.min(data.len())).unwrap_or_default();
        self.kept.extend_from_slice(taken);
        self.truncated |= taken.len() < data.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(pieces: &[&str]) -> (String, String) {
        let mut stream = Stream::new();
        let mut out = Vec::new();
        for piece in pieces {
            let data = Bytes::copy_from_slice(piece.as_bytes());
            if let Some(data) = stream.feed(data, b"K S\n") {
                out.extend_from_slice(&data);
            }
        }
        let noise = String::from_utf8_lossy(&stream.noise).into_owned();
        (noise, String::from_utf8(out).unwrap())
    }

    #[test]
    fn output_begins_after_the_marker_however_it_is_cut() {
        assert_eq!(feed(&["K S\nhello"]), (String::new(), "hello".into()));
        assert_eq!(
            feed(&["Welcome\nK", " S", "\n", "a", "b"]),
            ("Welcome\n".into(), "ab".into())
        );
        assert_eq!(
            feed(&["no newlineK S\n\n"]),
            ("no newline".into(), "\n".into())
        );
        assert_eq!(feed(&["K S\nK S\n"]), (String::new(), "K S\n".into()));
        assert_eq!(feed(&["only noise"]), ("only noise".into(), String::new()));
    }

    #[test]
    fn noise_is_bounded_and_the_marker_still_found() {
        let noise = "x".repeat(3 * MAX_NOISE_BYTES);
        let (kept, out) = feed(&[&noise, "K S\nend"]);
        assert!(kept.len() <= MAX_NOISE_BYTES);
        assert_eq!(out, "end");
    }

    #[test]
    fn kept_output_is_bounded() {
        let mut stream = Stream::new();
        stream.keep(&vec![1; MAX_OUTPUT_BYTES - 1]);
        assert!(!stream.truncated);
        stream.keep(&[2, 3]);
        assert!(stream.truncated);
        assert_eq!(stream.kept.len(), MAX_OUTPUT_BYTES);
    }
}
