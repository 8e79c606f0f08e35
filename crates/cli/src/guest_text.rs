//! Text that a guest or a peer may have written, made safe to show on a terminal.
//!
//! What could move the cursor, change colours, reorder or hide text is written as an escape.

use std::fmt::Write as _;

/// One line: every control and invisible character is escaped, newlines too.
pub fn line(text: &str) -> String {
    escaped(text, |_| false)
}

/// Several lines: newlines and tabs stay.
pub fn lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if stays(c) => safe.push(c),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if c.is_control() && c.is_ascii() => {
                let _ = write!(safe, "\\x{:02x}", u32::from(c));
            }
            c if c.is_control() || is_invisible(c) => {
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// Characters that show nothing but change how their neighbours show: direction marks, zero-width
/// marks, line and paragraph separators, tags.
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0x00ad | 0x061c | 0x180e
        | 0x200b..=0x200f
        | 0x2028..=0x202e
        | 0x2060..=0x206f
        | 0xfeff
        | 0xfff9..=0xfffb
        | 0xe0000..=0xe0fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_is_escaped() {
        let check = |text: &str, shown: &str| assert_eq!(line(text), shown);
        check("web", "web");
        check("grüße 日本", "grüße 日本");
        check("a\x1b[2Jb", "a\\x1b[2Jb");
        check("a\r\nb\tc\0", "a\\r\\nb\\tc\\x00");
        check("a\u{9b}31mb\x7f", "a\\u{9b}31mb\\x7f");
        check("x\u{202e}gpj.exe", "x\\u{202e}gpj.exe");
        check("a\u{200b}b\u{e0041}", "a\\u{200b}b\\u{e0041}");
        assert_eq!(lines("a\n\tb\r\x1b"), "a\n\tb\\r\\x1b");
    }
}
