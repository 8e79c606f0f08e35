//! Cuts a stream of bytes into pieces for JSON, without cutting through a character.

use api::exec::Encoding;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A piece and how it is written. The bytes of all pieces, one after the other, are those of the stream.
pub type Piece = (String, Encoding);

/// Holds at most three bytes back: the beginning of a character whose rest has not come yet.
#[derive(Default)]
pub struct Cutter {
    held: Vec<u8>,
}

impl Cutter {
    /// The next piece; none when all there is may still become a character.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Piece> {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        self.held = all.split_off(all.len() - unfinished(&all));
        (!all.is_empty()).then(|| encode(all))
    }

    /// What is still held when the stream has ended.
    pub fn finish(&mut self) -> Option<Piece> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| encode(held))
    }
}

/// Bytes as text when they are UTF-8, else as base64.
pub fn encode(bytes: Vec<u8>) -> Piece {
    match String::from_utf8(bytes) {
        Ok(text) => (text, Encoding::Utf8),
        Err(e) => (STANDARD.encode(e.as_bytes()), Encoding::Base64),
    }
}

/// How many bytes at the end begin a character that more bytes could complete: 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    for (length, byte) in (1..=3).zip(bytes.iter().rev()) {
        let whole = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if whole > length { length } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(chunks: &[&[u8]]) -> Vec<Piece> {
        let mut cutter = Cutter::default();
        let mut pieces: Vec<Piece> = chunks.iter().filter_map(|c| cutter.push(c)).collect();
        pieces.extend(cutter.finish());
        pieces
    }

    fn bytes(pieces: &[Piece]) -> Vec<u8> {
        let decode = |(data, encoding): &Piece| match encoding {
            Encoding::Utf8 => data.clone().into_bytes(),
            Encoding::Base64 => STANDARD.decode(data).unwrap(),
        };
        pieces.iter().flat_map(decode).collect()
    }

    #[test]
    fn a_character_in_two_chunks_stays_text() {
        let text = |s: &str| (s.to_owned(), Encoding::Utf8);
        assert_eq!(
            pieces(&[b"a\xe2", b"\x82", b"\xacb"]),
            [text("a"), text("€b")]
        );
        assert_eq!(
            pieces(&[b"\xff\xe2\x82", b"\xac"]),
            [("/w==".into(), Encoding::Base64), text("€")]
        );
        assert_eq!(pieces(&[b"\xe2"]), [("4g==".into(), Encoding::Base64)]);
        assert_eq!(pieces(&[b"a\r\n\0\n"]), [text("a\r\n\0\n")]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(chunks: Vec<Vec<u8>>) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(bytes(&pieces(&chunks)), chunks.concat());
        }

        #[test]
        fn text_stays_text_wherever_it_is_cut(text in "\\PC{0,40}", cuts: Vec<prop::sample::Index>) {
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> =
                cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            let pieces = pieces(&chunks);
            prop_assert!(pieces.iter().all(|(_, encoding)| *encoding == Encoding::Utf8));
            prop_assert_eq!(bytes(&pieces), text.as_bytes());
        }
    }
}
