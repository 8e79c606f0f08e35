//! How a command travels through `lxc-attach`: a length (four bytes, big-endian) and an
//! [`AttachRequest`] as JSON on standard input, then the command's own input. The agent answers with
//! one line on standard output before it becomes the command.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The variable by which every process of a command can be found. Its value is random.
pub const COOKIE: &str = "PROXIMITY_EXEC";

/// A request is at most this long, in bytes.
pub const MAX_REQUEST: u32 = 4 << 20;

/// What the agent should become.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment beside the standard variables.
    pub env: BTreeMap<String, String>,
    /// Working directory; the user's home when left out.
    pub cwd: Option<String>,
    /// User name or number; root when left out.
    pub user: Option<String>,
    /// The value of [`COOKIE`].
    pub cookie: String,
}

/// The line that the agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The next bytes are the command's own output.
    Go,
    /// Nothing ran, for this reason.
    Refused(String),
}

impl Answer {
    /// The line with its newline. It begins with a NUL, which no text tool prints by accident.
    pub fn line(&self) -> String {
        match self {
            Self::Go => "\0go\n".into(),
            Self::Refused(cause) => {
                let cause: String = cause
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(500)
                    .collect();
                format!("\0no {cause}\n")
            }
        }
    }

    /// Reads a line.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line)
            .ok()?
            .strip_prefix('\0')?
            .strip_suffix('\n')?;
        match text.split_once(' ') {
            None if text == "go" => Some(Self::Go),
            Some(("no", cause)) => Some(Self::Refused(cause.to_owned())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_round_trip_and_nothing_else_parses() {
        for answer in [Answer::Go, Answer::Refused("no such user \"x\"".into())] {
            assert_eq!(Answer::parse(answer.line().as_bytes()), Some(answer));
        }
        assert_eq!(Answer::Refused("a\nb".into()).line(), "\0no ab\n");
        for bad in [&b""[..], b"go\n", b"\0go", b"\0goo\n", b"\0\xff\n"] {
            assert_eq!(Answer::parse(bad), None);
        }
    }
}
