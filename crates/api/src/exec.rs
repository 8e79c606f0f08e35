//! Running a command in an instance.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `POST /instances/{name}/exec`: exactly one of `argv` and `command`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecRequest {
    /// The program and its arguments; no shell touches them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// A command line for the guest's own shell (`/bin/sh -c`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The environment beside PATH, HOME, USER, SHELL and LANG, which are set to sane values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working directory; the user's home when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Name or number of the user; root when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What the command reads from its standard input; empty when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// How `stdin` is written: `utf-8` (default) or `base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_encoding: Option<Encoding>,
    /// Deadline in milliseconds; ten minutes when left out. The whole process tree ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Force one channel instead of the instance's own list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
}

// Arguments, environment and input may hold secrets: Debug shows the shape only.
impl std::fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecRequest")
            .field("argv_len", &self.argv.len())
            .field("env_names", &self.env.keys().collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("user", &self.user)
            .field("timeout_ms", &self.timeout_ms)
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

/// How bytes are written in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Encoding {
    /// As text, when the bytes are valid UTF-8.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// Standard base64 with padding.
    #[serde(rename = "base64")]
    Base64,
}

/// What became of a command. It ran to an end: failures of ours are problems, not results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecResult {
    /// What it wrote to standard output, at most 8 MiB.
    pub stdout: String,
    /// What it wrote to standard error, at most 8 MiB.
    pub stderr: String,
    /// How `stdout` is written.
    pub stdout_encoding: Encoding,
    /// How `stderr` is written.
    pub stderr_encoding: Encoding,
    /// Its exit code; none when a signal or the deadline ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the deadline ended it.
    pub timed_out: bool,
    /// Whether output past the cap was dropped.
    pub truncated: bool,
    /// How long it ran.
    pub duration_ms: u64,
    /// The channel that ran it, like `lxc-attach`.
    pub channel: String,
}

/// One event of a running command: a line of the NDJSON stream of `POST /instances/{name}/exec`, or a
/// text message of a session. After the last event comes nothing; a stream that ends without
/// `exit` or `error` broke off, and the outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ExecEvent {
    /// It runs.
    Started {
        /// Its process id, as the guest counts.
        pid: u32,
        /// The channel that runs it; an agent leaves it empty.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        channel: String,
    },
    /// It wrote to standard output.
    Stdout {
        /// What it wrote.
        data: String,
        /// How `data` is written.
        #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
        encoding: Encoding,
    },
    /// It wrote to standard error.
    Stderr {
        /// What it wrote.
        data: String,
        /// How `data` is written.
        #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
        encoding: Encoding,
    },
    /// It ended. The last event.
    Exit {
        /// Its exit code; none when a signal or the deadline ended it.
        exit_code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
        /// Whether the deadline ended it.
        timed_out: bool,
        /// How long it ran.
        duration_ms: u64,
    },
    /// A failure of ours. The last event.
    Error {
        /// `nothing_ran` or `outcome_unknown`.
        code: String,
        /// Why, for people.
        message: String,
    },
}

/// Turns the bytes of one stream into events: text where it is UTF-8, else base64. A character that is cut
/// by the end of a piece waits for its rest.
#[derive(Debug, Default)]
pub struct Pieces {
    cut: Vec<u8>,
}

impl Pieces {
    /// The next bytes; at most one character of them is kept back.
    pub fn push(&mut self, bytes: &[u8]) -> Option<(String, Encoding)> {
        let mut all = std::mem::take(&mut self.cut);
        all.extend_from_slice(bytes);
        if let Err(e) = std::str::from_utf8(&all)
            && e.error_len().is_none()
        {
            self.cut = all.split_off(e.valid_up_to());
        }
        (!all.is_empty()).then(|| encode(all))
    }

    /// What was kept back, at the end of the stream.
    pub fn finish(&mut self) -> Option<(String, Encoding)> {
        let cut = std::mem::take(&mut self.cut);
        (!cut.is_empty()).then(|| encode(cut))
    }
}

/// How bytes are written in JSON: as text when they are UTF-8, else as base64.
pub fn encode(bytes: Vec<u8>) -> (String, Encoding) {
    use base64::Engine;
    match String::from_utf8(bytes) {
        Ok(text) => (text, Encoding::Utf8),
        Err(e) => (
            base64::engine::general_purpose::STANDARD.encode(e.as_bytes()),
            Encoding::Base64,
        ),
    }
}

/// The bytes that [`encode`] wrote; none when it is not the base64 it says it is.
pub fn decode(text: String, encoding: Encoding) -> Option<Vec<u8>> {
    use base64::Engine;
    match encoding {
        Encoding::Utf8 => Some(text.into_bytes()),
        Encoding::Base64 => base64::engine::general_purpose::STANDARD.decode(text).ok(),
    }
}

impl Encoding {
    fn is_utf8(&self) -> bool {
        *self == Self::Utf8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cut_character_waits_for_its_rest() {
        let mut pieces = Pieces::default();
        let euro = "a€b".as_bytes();
        assert_eq!(pieces.push(&euro[..2]), Some(("a".into(), Encoding::Utf8)));
        assert_eq!(pieces.push(&euro[2..3]), None);
        assert_eq!(pieces.push(&euro[3..]), Some(("€b".into(), Encoding::Utf8)));
        assert_eq!(pieces.push(&euro[1..3]), None);
        assert_eq!(pieces.finish(), Some(("4oI=".into(), Encoding::Base64)));
        assert_eq!(decode("*".into(), Encoding::Base64), None);
    }

    proptest! {
        #[test]
        fn bytes_come_back_whatever_the_pieces(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(0usize..300, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut pieces = Pieces::default();
            let mut back = Vec::new();
            for pair in cuts.windows(2) {
                let piece = pieces.push(&bytes[pair[0]..pair[1]]);
                back.extend(piece.and_then(|(t, e)| decode(t, e)).unwrap_or_default());
            }
            back.extend(pieces.finish().and_then(|(t, e)| decode(t, e)).unwrap_or_default());
            prop_assert_eq!(back, bytes);
        }
    }
}
