//! Lines of a file with a bound on memory, read forwards (for the chain) or backwards (for the tail).

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

/// The longest line that a log has, without its newline. A longer one was not written by us.
pub const MAX_LINE_BYTES: usize = 128 * 1024;
const BLOCK_BYTES: u64 = 64 * 1024;

/// What stood between two newlines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line, without its newline.
    Whole(Vec<u8>),
    /// More than [`MAX_LINE_BYTES`].
    TooLong,
    /// The end of the file without a newline.
    Torn {
        /// Where it begins in the file.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
}

/// Reads lines from the beginning.
pub(crate) struct Lines<R> {
    reader: R,
    offset: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, offset: 0 }
    }

    pub fn next(&mut self) -> io::Result<Option<Line>> {
        let begin = self.offset;
        let mut line = Vec::new();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let mut bytes = (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut line)? as u64;
        let mut ended = line.last() == Some(&b'\n');
        let fits = ended || bytes < limit;
        if !fits {
            line = Vec::new();
            let (rest, newline) = self.skip_line()?;
            bytes += rest;
            ended = newline;
        }
        self.offset += bytes;
        Ok(match (bytes, ended, fits) {
            (0, ..) => None,
            (_, false, _) => Some(Line::Torn {
                offset: begin,
                bytes,
            }),
            (_, true, false) => Some(Line::TooLong),
            (_, true, true) => {
                line.pop();
                Some(Line::Whole(line))
            }
        })
    }

    /// Consumes up to and with the next newline; says how much and whether there was one.
    fn skip_line(&mut self) -> io::Result<(u64, bool)> {
        let mut skipped = 0;
        loop {
            let block = self.reader.fill_buf()?;
            let end = block.iter().position(|b| *b == b'\n');
            let used = end.map_or(block.len(), |at| at + 1);
            self.reader.consume(used);
            skipped += used as u64;
            if end.is_some() || used == 0 {
                return Ok((skipped, end.is_some()));
            }
        }
    }
}

/// Reads lines from the end of a file, the last one first.
pub(crate) struct LinesBack {
    file: File,
    /// Everything from here on is in `held` or was given out.
    begin: u64,
    held: Vec<u8>,
    /// The line in `held` is longer than its bound and only its beginning is looked for.
    too_long: bool,
    done: bool,
}

impl LinesBack {
    /// Whatever stands after the last newline is no line; its size is the second value.
    pub fn new(mut file: File) -> io::Result<(Self, bool)> {
        let begin = file.seek(SeekFrom::End(0))?;
        let mut lines = Self {
            file,
            begin,
            held: Vec::new(),
            too_long: false,
            done: begin == 0,
        };
        let torn = match lines.next()? {
            None => false,
            Some(Line::Whole(line)) => !line.is_empty(),
            Some(_) => true,
        };
        Ok((lines, torn))
    }

    pub fn next(&mut self) -> io::Result<Option<Line>> {
        while !self.done {
            if let Some(at) = self.held.iter().rposition(|b| *b == b'\n') {
                let line = self.held.split_off(at + 1);
                self.held.pop();
                return Ok(Some(self.give(line)));
            }
            if self.begin == 0 {
                self.done = true;
                let line = std::mem::take(&mut self.held);
                return Ok(Some(self.give(line)));
            }
            if self.held.len() > MAX_LINE_BYTES {
                self.too_long = true;
                self.held.clear();
            }
            self.read_block()?;
        }
        Ok(None)
    }

    fn give(&mut self, line: Vec<u8>) -> Line {
        if std::mem::take(&mut self.too_long) || line.len() > MAX_LINE_BYTES {
            Line::TooLong
        } else {
            Line::Whole(line)
        }
    }

    fn read_block(&mut self) -> io::Result<()> {
        let size = self.begin.min(BLOCK_BYTES);
        self.begin -= size;
        self.file.seek(SeekFrom::Start(self.begin))?;
        let mut block = Vec::new();
        (&mut self.file).take(size).read_to_end(&mut block)?;
        if block.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        block.append(&mut self.held);
        self.held = block;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn forwards(text: &[u8]) -> Vec<Line> {
        let mut lines = Lines::new(text);
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    fn backwards(text: &[u8]) -> (Vec<Line>, bool) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let (mut lines, torn) = LinesBack::new(file).unwrap();
        let mut all: Vec<_> = std::iter::from_fn(|| lines.next().unwrap()).collect();
        all.reverse();
        (all, torn)
    }

    #[test]
    fn a_line_beyond_the_bound_is_skipped_and_the_next_one_read() {
        let long = vec![b'x'; MAX_LINE_BYTES * 3];
        let text = [b"a\n", long.as_slice(), b"\nb\n"].concat();
        let expect = vec![
            Line::Whole(b"a".to_vec()),
            Line::TooLong,
            Line::Whole(b"b".to_vec()),
        ];
        assert_eq!(forwards(&text), expect);
        assert_eq!(backwards(&text), (expect, false));
        let torn = [b"a\n", long.as_slice()].concat();
        assert_eq!(
            forwards(&torn).last(),
            Some(&Line::Torn {
                offset: 2,
                bytes: long.len() as u64
            })
        );
        assert_eq!(backwards(&torn), (vec![Line::Whole(b"a".to_vec())], true));
        let exact = [&vec![b'x'; MAX_LINE_BYTES], b"\n".as_slice()].concat();
        assert!(matches!(forwards(&exact).as_slice(), [Line::Whole(_)]));
    }

    proptest! {
        #[test]
        fn both_ways_read_the_same(text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200)) {
            let mut ahead = forwards(&text);
            let torn = matches!(ahead.last(), Some(Line::Torn { .. }));
            if torn {
                ahead.pop();
            }
            prop_assert_eq!(backwards(&text), (ahead, torn));
        }
    }
}
