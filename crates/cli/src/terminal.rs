//! The terminal of a person who works in a guest: raw mode and back, its size, and the escape that leaves.
//!
//! Raw mode ends when its guard is dropped: on every return, on every signal that is handled
//! (`signals`), and when a panic unwinds.

use std::io;

use api::session::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input is raw as long as this lives.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes standard input raw: every key goes to the guest, nothing is echoed here.
    pub fn enter() -> io::Result<Self> {
        let mode = Self {
            before: tcgetattr(rustix::stdio::stdin())?,
        };
        mode.again()?;
        Ok(mode)
    }

    /// Makes it raw again, after a stop in which somebody else may have used the terminal.
    pub fn again(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        Ok(tcsetattr(
            rustix::stdio::stdin(),
            OptionalActions::Now,
            &raw,
        )?)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal, by what is shown or typed there.
pub fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| tcgetwinsize(rustix::stdio::stdin()))
        .ok()?;
    let (rows, cols) = (size.ws_row, size.ws_col);
    (rows > 0 && cols > 0).then_some(WindowSize { rows, cols })
}

/// Looks for `~.` at the beginning of a line in what is typed. `~~` there is one `~`.
///
/// ```text
///   Start ── ~ ──▶ Tilde ── . ──▶ left
///     ▲  ╲           │ other: both go to the guest
///     CR, LF ◀── Within ◀──┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// A line begins.
    Start,
    /// A `~` at the beginning of a line was held back.
    Tilde,
    /// Somewhere in a line.
    Within,
}

impl Escape {
    /// What goes to the guest, and whether the person leaves after it.
    pub fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (*self, byte) {
                (Self::Tilde, b'.') => return (passed, true),
                (Self::Start, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'~') => {}
                (Self::Tilde, _) => passed.push(b'~'),
                _ => {}
            }
            passed.push(byte);
            *self = if matches!(byte, b'\r' | b'\n') {
                Self::Start
            } else {
                Self::Within
            };
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_counts_at_the_beginning_of_a_line_only() {
        let check = |typed: &[&str], expect: &str, left: bool| {
            let mut escape = Escape::Start;
            let mut all = Vec::new();
            let mut leaves = false;
            for piece in typed {
                let (passed, left) = escape.pass(piece.as_bytes());
                all.extend(passed);
                leaves = left;
            }
            assert_eq!(
                (String::from_utf8(all).unwrap().as_str(), leaves),
                (expect, left),
                "{typed:?}"
            );
        };
        check(&["~."], "", true);
        check(&["ls\r~."], "ls\r", true);
        check(&["ls\r", "~", "."], "ls\r", true);
        check(&["ls ~.\r"], "ls ~.\r", false);
        check(&["~~."], "~.", false);
        check(&["~x\r~"], "~x\r", false);
        check(&["~\r~."], "~\r", true);
    }
}
