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

impl Encoding {
    fn is_utf8(&self) -> bool {
        *self == Self::Utf8
    }
}
