//! A session: one command in a guest with its streams open, over a websocket. The same messages
//! travel between a client and the controller and between the controller and the agent.
//!
//! ```text
//!   client                                   server
//!     ── text   SessionStart ─────────────────▶      first message, within ten seconds
//!     ◀── text   ExecEvent::Started ───────────
//!     ── binary 0 + bytes (standard input) ───▶
//!     ── text   SessionControl ───────────────▶
//!     ◀── binary 1 + bytes (standard output, or the terminal)
//!     ◀── binary 2 + bytes (standard error) ───
//!     ◀── text   ExecEvent::Exit or ::Error ───      exactly one, then close
//! ```
//!
//! Whoever asks for the subprotocol [`ACKNOWLEDGED`] and gets it is told how much of the standard input was
//! taken, and keeps at most [`WINDOW_BYTES`] of it on the way. So the other end can always read on, and neither
//! a signal nor a hang-up waits behind input that the command does not read:
//!
//! ```text
//!     ◀── binary 0 + bytes taken so far (64 bits, big-endian)
//! ```
//!
//! When the websocket closes before the final event, the command and its whole process tree end. A
//! session without a final event is an error, never success.

use serde::{Deserialize, Serialize};

use crate::exec::ExecRequest;

/// The first byte of a binary message: which stream the rest belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    /// From the client to the command.
    Stdin = 0,
    /// From the command; all output, when it has a terminal.
    Stdout = 1,
    /// From the command, never when it has a terminal.
    Stderr = 2,
}

impl Stream {
    /// The stream of a message's first byte.
    pub fn of(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// The most payload of one binary message, in bytes, in either direction.
pub const MESSAGE_MAX_BYTES: usize = 64 << 10;

/// The websocket subprotocol in which standard input is acknowledged.
pub const ACKNOWLEDGED: &str = "proximity.acknowledged";

/// How much standard input may be on the way that is not acknowledged yet, in bytes.
pub const WINDOW_BYTES: u64 = 256 << 10;

/// How much standard input is kept for a command that does not read it, in bytes. Then the websocket is not
/// read either, until the command reads: signals of a peer that heeds no [`WINDOW_BYTES`] wait so long.
pub const KEPT_MAX_BYTES: usize = 1 << 20;

/// The message that says how many bytes of standard input were taken since the session began.
pub fn acknowledgement(taken_bytes: u64) -> [u8; 9] {
    let mut message = [Stream::Stdin as u8; 9];
    for (to, from) in message.iter_mut().skip(1).zip(taken_bytes.to_be_bytes()) {
        *to = from;
    }
    message
}

/// What such a message says behind its first byte.
pub fn acknowledged_bytes(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_be_bytes)
}

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionStart {
    /// The command; its `stdin` must be left out. No deadline unless `timeout_ms` is given.
    pub exec: ExecRequest,
    /// A terminal of this size; pipes when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// What a client says while the command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SessionControl {
    /// The terminal's window changed.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        cols: u16,
    },
    /// Nothing more will come on standard input.
    StdinEof,
    /// Send this signal to the command's process group.
    Signal {
        /// Its number, 1 to 64.
        signal: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_documented() {
        let start: SessionStart =
            serde_json::from_str(r#"{"exec":{"argv":["bash","-l"]},"tty":{"rows":24,"cols":80}}"#)
                .unwrap();
        assert_eq!(start.exec.argv, ["bash", "-l"]);
        assert_eq!(start.tty, Some(WindowSize { rows: 24, cols: 80 }));
        let check = |json: &str, expect: SessionControl| {
            let parsed: SessionControl = serde_json::from_str(json).unwrap();
            assert_eq!(parsed, expect);
        };
        check(r#"{"type":"stdin_eof"}"#, SessionControl::StdinEof);
        check(
            r#"{"type":"resize","rows":2,"cols":3}"#,
            SessionControl::Resize { rows: 2, cols: 3 },
        );
        assert!(serde_json::from_str::<SessionControl>(r#"{"type":"reboot"}"#).is_err());
        let message = acknowledgement(0x0102_0304_0506_0708);
        assert_eq!(message, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let taken = acknowledged_bytes(&message[1..]);
        assert_eq!(taken, Some(0x0102_0304_0506_0708));
        assert_eq!(acknowledged_bytes(&message), None);
        assert_eq!(Stream::of(2), Some(Stream::Stderr));
        assert_eq!(Stream::of(3), None);
    }
}
