//! A stream that `tar` takes apart: what one order needs to make many entries. Only written, never read.
//!
//! The format is that of GNU tar, which BusyBox reads too: headers of 512 bytes, names over 100 bytes in an entry of
//! their own before it. Pure.

/// The unit of the format, in bytes.
const BLOCK: usize = 512;
/// What a header holds of a name.
const NAME_BYTES: usize = 100;
/// The largest number of eleven octal digits.
const MAX_NUMBER: u64 = (1 << 33) - 1;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member<'a> {
    Directory,
    /// This many bytes follow.
    File(u64),
    Link(&'a [u8]),
}

/// Appends the header of an entry. The path is relative; modes are taken as they are.
pub(super) fn begin(to: &mut Vec<u8>, path: &[u8], member: Member<'_>, mode: u32, time_s: u64) {
    // So that no path is an option or absolute.
    let mut name = b"./".to_vec();
    name.extend_from_slice(path);
    let (kind, size, link) = match member {
        Member::Directory => {
            name.push(b'/');
            (b'5', 0, &b""[..])
        }
        Member::File(size) => (b'0', size, &b""[..]),
        Member::Link(text) => (b'2', 0, text),
    };
    long(to, b'K', link);
    long(to, b'L', &name);
    to.extend_from_slice(&header(&name, kind, size, link, mode, time_s));
}

/// Appends what fills the last block of a file of this size.
pub(super) fn pad(to: &mut Vec<u8>, size: u64) {
    let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
    let rest = usize::try_from(size % block).unwrap_or_default();
    if rest > 0 {
        to.resize(to.len().saturating_add(BLOCK - rest), 0);
    }
}

/// Appends the end of the archive.
pub(super) fn end(to: &mut Vec<u8>) {
    to.resize(to.len().saturating_add(2 * BLOCK), 0);
}

fn long(to: &mut Vec<u8>, kind: u8, text: &[u8]) {
    if text.len() <= NAME_BYTES {
        return;
    }
    let size = u64::try_from(text.len().saturating_add(1)).unwrap_or(u64::MAX);
    to.extend_from_slice(&header(b"././@LongLink", kind, size, b"", 0, 0));
    to.extend_from_slice(text);
    to.push(0);
    pad(to, size);
}

fn header(name: &[u8], kind: u8, size: u64, link: &[u8], mode: u32, time_s: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    let text = |block: &mut Vec<u8>, text: &[u8], width: usize| {
        let end = block.len().saturating_add(width);
        block.extend(text.iter().take(width));
        block.resize(end, 0);
    };
    let number = |value: u64, width: usize| format!("{value:0width$o}\0").into_bytes();
    text(&mut block, name, NAME_BYTES);
    block.extend(number(u64::from(mode & 0o7777), 7));
    // Owner and group: whoever takes it apart is told to be the owner.
    block.extend(number(0, 7));
    block.extend(number(0, 7));
    block.extend(number(size.min(MAX_NUMBER), 11));
    block.extend(number(time_s.min(MAX_NUMBER), 11));
    // The sum counts its own field as spaces.
    let sum_at = block.len();
    block.extend_from_slice(b"        ");
    block.push(kind);
    text(&mut block, link, NAME_BYTES);
    block.extend_from_slice(b"ustar  \0");
    block.resize(BLOCK, 0);
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (place, byte) in block.iter_mut().skip(sum_at).zip(sum.bytes()) {
        *place = byte;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_and_sums_are_right() {
        let long = "n".repeat(200);
        let mut archive = Vec::new();
        begin(&mut archive, b"d", Member::Directory, 0o755, 5);
        begin(&mut archive, long.as_bytes(), Member::File(3), 0o644, 5);
        archive.extend_from_slice(b"abc");
        pad(&mut archive, 3);
        begin(&mut archive, b"l", Member::Link(long.as_bytes()), 0o777, 5);
        end(&mut archive);
        // Directory; long name, its text, file, content; long text of a link, its text, link; end.
        assert_eq!(archive.len(), BLOCK * (1 + 4 + 3 + 2));
        let header = &archive[..BLOCK];
        assert_eq!(&header[..4], b"./d/");
        let stored = std::str::from_utf8(&header[148..154]).unwrap();
        let stored = u64::from_str_radix(stored, 8).unwrap();
        let mut blank = header.to_vec();
        blank[148..156].fill(b' ');
        assert_eq!(stored, blank.iter().map(|b| u64::from(*b)).sum::<u64>());
    }
}
