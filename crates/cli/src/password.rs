//! Asks for a secret on the terminal without showing it.
//!
//! Owns the terminal's settings while it asks and puts them back on every way out: an answer, an
//! error, a panic, Ctrl-C and the signals that end us. The terminal hands over single keys and
//! makes no signals of them meanwhile, so Ctrl-C and Ctrl-Z are keys too and nothing can end or
//! stop us with the echo off.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

const LONGEST: usize = 1024;

/// Whether there is a person to ask.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks once. The terminal is standard input; the question goes to standard error.
pub async fn ask(question: &str) -> Result<String, Failure> {
    let failed = |e: io::Error| Failure::local(format!("cannot ask for the password: {e}"));
    // Registered before the echo goes off: from here a signal wakes us instead of ending us.
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(failed)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
    let silence = Silence::begin().map_err(failed)?;
    let _ = write!(io::stderr(), "{question}");
    let _ = io::stderr().flush();
    let keys = tokio::task::spawn_blocking(|| read_line(io::stdin().lock()));
    let outcome = tokio::select! {
        line = keys => line.unwrap_or_else(|e| Err(io::Error::other(e))),
        _ = terminated.recv() => Err(io::ErrorKind::Interrupted.into()),
        _ = hung_up.recv() => Err(io::ErrorKind::Interrupted.into()),
        _ = interrupted.recv() => Err(io::ErrorKind::Interrupted.into()),
    };
    drop(silence);
    let _ = writeln!(io::stderr());
    outcome.map_err(|e| match e.kind() {
        io::ErrorKind::Interrupted => Failure::Interrupted {
            hint: Some("nothing was changed".to_owned()),
        },
        _ => failed(e),
    })
}

/// The terminal without echo; as it was before once dropped.
struct Silence(Termios);

impl Silence {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut during = before.clone();
        during
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        during.special_codes[SpecialCodeIndex::VMIN] = 1;
        during.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Flush, &during)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Reads keys up to Enter and does what the terminal's own line editing would: erase, kill,
/// end of file, interrupt.
fn read_line(keys: impl io::BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    for key in keys.bytes() {
        match key? {
            b'\n' | b'\r' => {
                return String::from_utf8(line)
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"));
            }
            0x03 => return Err(io::ErrorKind::Interrupted.into()),
            0x04 if line.is_empty() => break,
            0x04 => {}
            0x15 => line.clear(),
            0x08 | 0x7f => {
                // A character may be several bytes; its first one is no continuation byte.
                while line.pop().is_some_and(|b| b & 0xc0 == 0x80) {}
            }
            _ if line.len() >= LONGEST => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
            }
            byte => line.push(byte),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_make_a_line() {
        let check = |keys: &[u8], line: Result<&str, io::ErrorKind>| {
            let read = read_line(keys);
            assert_eq!(read.as_deref().map_err(io::Error::kind), line, "{keys:?}");
        };
        check(b"secret\n", Ok("secret"));
        check(b"secret\rmore", Ok("secret"));
        check("sü\x7fecret\n".as_bytes(), Ok("secret"));
        check(b"wrong\x15right\n", Ok("right"));
        check(b"\x7f\x7fa\n", Ok("a"));
        check(b"abc\x03", Err(io::ErrorKind::Interrupted));
        check(b"\x04", Err(io::ErrorKind::UnexpectedEof));
        check(b"abc", Err(io::ErrorKind::UnexpectedEof));
        check(b"\xff\n", Err(io::ErrorKind::InvalidData));
        check(&[b'x'; LONGEST + 1], Err(io::ErrorKind::InvalidData));
    }
}
