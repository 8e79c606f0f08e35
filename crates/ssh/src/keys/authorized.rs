//! The text of an `authorized_keys` file, read as sshd(8) describes it: options, kind, key, comment.
//!
//! Pure. What is not the line that is meant stays byte for byte, whatever it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A line that holds a key.
struct Line<'a> {
    /// What stands before the kind, without the space behind it; empty for most.
    options: &'a [u8],
    blob: Vec<u8>,
}

/// Whether a line lets this key in.
pub fn holds(text: &[u8], blob: &[u8]) -> bool {
    options_of(text, blob).is_some()
}

/// The options of the first line of this key.
pub fn options_of<'a>(text: &'a [u8], blob: &[u8]) -> Option<&'a [u8]> {
    lines(text)
        .filter_map(read)
        .find(|line| line.blob == blob)
        .map(|line| line.options)
}

/// With one line more at its end, which gets these options.
pub fn with(text: &[u8], options: &[u8], line: &str) -> Vec<u8> {
    let mut whole = text.to_vec();
    if !text.is_empty() && !text.ends_with(b"\n") {
        whole.push(b'\n');
    }
    if !options.is_empty() {
        whole.extend_from_slice(options);
        whole.push(b' ');
    }
    whole.extend_from_slice(line.as_bytes());
    whole.push(b'\n');
    whole
}

/// Without any line of this key.
pub fn without(text: &[u8], blob: &[u8]) -> Vec<u8> {
    let others = lines(text).filter(|line| read(line).is_none_or(|line| line.blob != blob));
    others.flatten().copied().collect()
}

/// Lines with their ends.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n')
}

fn read(line: &[u8]) -> Option<Line<'_>> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return None;
    }
    if let Some(blob) = key(line) {
        return Some(Line { options: b"", blob });
    }
    let (options, rest) = line.split_at(end_of_options(line));
    key(rest.trim_ascii_start()).map(|blob| Line { options, blob })
}

/// The key with which a text begins: its kind, and Base64 that names the same kind.
fn key(text: &[u8]) -> Option<Vec<u8>> {
    let mut words = text
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let kind = words.next()?;
    let blob = STANDARD.decode(words.next()?).ok()?;
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    (rest.get(..length)? == kind).then_some(blob)
}

/// Where the options end: at the first blank outside of quotes. A quote behind a backslash is none.
fn end_of_options(line: &[u8]) -> usize {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in line.iter().enumerate() {
        match byte {
            b'"' if !escaped => quoted = !quoted,
            b' ' | b'\t' if !quoted => return at,
            _ => {}
        }
        escaped = *byte == b'\\' && !escaped;
    }
    line.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const OTHER: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn blob(key: &str) -> Vec<u8> {
        super::key(key.as_bytes()).unwrap()
    }

    #[test]
    fn keys_are_found_behind_options_and_not_in_comments() {
        let ours = blob(OURS);
        let check = |line: &str, options: Option<&str>| {
            let found = options_of(line.as_bytes(), &ours);
            assert_eq!(found, options.map(str::as_bytes), "{line:?}");
        };
        check(OURS, Some(""));
        check(&format!("  {OURS} a comment\r\n"), Some(""));
        check(&format!("# {OURS}"), None);
        check(&format!("{OTHER} {OURS}"), None);
        check(&format!("no-pty {OURS}"), Some("no-pty"));
        let quoted = r#"command="echo \"a b\" # c",from="192.0.2.0/24""#;
        check(&format!("{quoted}\t{OURS} x"), Some(quoted));
        check(&format!("command=\"{OURS}\" {OTHER}"), None);
        check("ssh-ed25519 AAAA", None);
        check(&OURS.replace("ssh-ed25519", "ssh-rsa"), None);
    }

    #[test]
    fn lines_come_and_go_and_others_stay_as_they_are() {
        let ours = blob(OURS);
        let before: &[u8] = b"# who\n\nno-pty\xff junk\n";
        let after = with(before, b"no-pty", OURS);
        assert_eq!(after, [before, b"no-pty ", OURS.as_bytes(), b"\n"].concat());
        assert_eq!(without(&after, &ours), before);
        let open_end = with(b"x", b"", OURS);
        assert!(open_end.starts_with(b"x\nssh-ed25519 "));
        let twice = format!("{OURS} a\n{OTHER}\nno-pty {OURS} b");
        assert_eq!(
            without(twice.as_bytes(), &ours),
            format!("{OTHER}\n").as_bytes()
        );
    }

    proptest! {
        #[test]
        fn whatever_is_there_stays(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let ours = blob(OURS);
            let after = with(&text, b"", OURS);
            prop_assert!(holds(&after, &ours));
            prop_assert!(after.starts_with(&text));
            let again = without(&after, &ours);
            prop_assert!(again == text || again == [text.as_slice(), b"\n"].concat());
        }
    }
}
