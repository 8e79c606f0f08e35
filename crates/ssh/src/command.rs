//! A command as a caller hands it in, and its result as the contract has it. Checked here, once; pure.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::evidence::Transcript;
use crate::hosts::is_user;
use crate::pool::Sharing;
use crate::supervisor::Order;

/// The longest order: argv, environment and directory together, in bytes. Linux takes 2 MiB of argv and
/// environment, one word of 128 KiB.
const MAX_ORDER_BYTES: usize = 1024 * 1024;
const MAX_WORD_BYTES: usize = 128 * 1024 - 1;
/// How much is kept of each output stream of a command whose output is collected, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 8 * 1024 * 1024;

/// What to run on a host, and how.
#[derive(Clone)]
pub struct Command {
    argv: Vec<Vec<u8>>,
    env: Vec<(String, Zeroizing<Vec<u8>>)>,
    cwd: Option<Vec<u8>>,
    user: Option<String>,
    /// The deadline; that of the configuration where nothing is said.
    pub timeout: Option<Duration>,
    /// How often a failed connection is tried again; as the configuration has it where nothing is said.
    pub retry: Option<u32>,
    /// Whether it does no harm to run it twice. Only then it is tried again after an unknown outcome.
    pub may_run_twice: bool,
    /// Where its output is written down, where evidence is wanted.
    pub(crate) transcript: Option<Transcript>,
}

/// What cannot be a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    /// No program.
    #[error("there is no program to run")]
    Empty,
    /// A NUL byte, which no argument on Unix can hold.
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    /// A program whose name is an option to others.
    #[error("a program's name cannot begin with a dash: write ./{0} or its path")]
    Dash(String),
    /// A variable that no shell can set.
    #[error("{0:?} is not the name of an environment variable")]
    Variable(String),
    /// A user name that is none.
    #[error("{0:?} is not a user name")]
    User(String),
    /// More than a kernel takes.
    #[error("the command is too long: at most 128 KiB an argument and 1 MiB in all")]
    TooLong,
}

impl Command {
    /// A program and its arguments, exactly as they are; no shell touches them.
    pub fn argv<W: Into<Vec<u8>>>(
        words: impl IntoIterator<Item = W>,
    ) -> Result<Self, InvalidCommand> {
        let argv: Vec<Vec<u8>> = words.into_iter().map(Into::into).collect();
        let program = argv.first().filter(|program| !program.is_empty());
        let program = program.ok_or(InvalidCommand::Empty)?;
        if program.starts_with(b"-") {
            let name = String::from_utf8_lossy(program).into_owned();
            return Err(InvalidCommand::Dash(name));
        }
        if argv.iter().any(|word| word.contains(&0)) {
            return Err(InvalidCommand::Nul("an argument"));
        }
        Ok(Self {
            argv,
            env: Vec::new(),
            cwd: None,
            user: None,
            timeout: None,
            retry: None,
            may_run_twice: false,
            transcript: None,
        })
    }

    /// A line for the far side's `/bin/sh`.
    pub fn shell(line: impl Into<Vec<u8>>) -> Result<Self, InvalidCommand> {
        Self::argv([b"/bin/sh".to_vec(), b"-c".to_vec(), line.into()])
    }

    /// With a variable in its environment. It does not matter whether the server takes `SetEnv`; the value stands on
    /// no command line.
    pub fn env(mut self, name: &str, value: impl Into<Vec<u8>>) -> Result<Self, InvalidCommand> {
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !begins || !name.chars().all(legal) {
            return Err(InvalidCommand::Variable(name.to_owned()));
        }
        let value = Zeroizing::new(value.into());
        if value.contains(&0) {
            return Err(InvalidCommand::Nul("an environment variable"));
        }
        self.env.push((name.to_owned(), value));
        Ok(self)
    }

    /// In this directory instead of the user's home.
    pub fn cwd(mut self, dir: impl Into<Vec<u8>>) -> Result<Self, InvalidCommand> {
        let dir = dir.into();
        if dir.contains(&0) {
            return Err(InvalidCommand::Nul("the working directory"));
        }
        self.cwd = (!dir.is_empty()).then_some(dir);
        Ok(self)
    }

    /// As another user than the one that logs in: by `sudo -n`, or by `runuser` where root logs in.
    pub fn user(mut self, user: &str) -> Result<Self, InvalidCommand> {
        if !is_user(user) {
            return Err(InvalidCommand::User(user.to_owned()));
        }
        self.user = Some(user.to_owned());
        Ok(self)
    }

    /// With a deadline.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn check_length(&self) -> Result<(), InvalidCommand> {
        let words = self.argv.iter().map(Vec::len);
        let values = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let mut whole = self.cwd.as_ref().map_or(0, Vec::len);
        for length in words.chain(values) {
            if length > MAX_WORD_BYTES {
                return Err(InvalidCommand::TooLong);
            }
            whole = whole.saturating_add(length);
        }
        if whole > MAX_ORDER_BYTES {
            return Err(InvalidCommand::TooLong);
        }
        Ok(())
    }

    pub(crate) fn order(&self, input: bool) -> Order<'_> {
        Order {
            argv: &self.argv,
            env: &self.env,
            cwd: self.cwd.as_deref(),
            input,
        }
    }

    pub(crate) fn as_user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The arguments as text, for records; what is not UTF-8 is marked.
    pub fn words(&self) -> Vec<String> {
        let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
        self.argv.iter().map(text).collect()
    }

    /// The names of its variables; their values are nobody's business.
    pub fn variables(&self) -> Vec<String> {
        self.env.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The directory as text.
    pub fn directory(&self) -> Option<String> {
        let text = |dir: &Vec<u8>| String::from_utf8_lossy(dir).into_owned();
        self.cwd.as_ref().map(text)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("arguments", &self.argv.len())
            .field("variables", &self.variables())
            .finish_non_exhaustive()
    }
}

/// What a command reads.
pub enum Input {
    /// Nothing: `/dev/null`.
    None,
    /// These bytes, then the end.
    Bytes(Bytes),
    /// What comes; the end when the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl Input {
    /// For one try. Bytes can be sent again, a stream is gone then.
    pub(crate) fn again(&mut self) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.clone()),
            other => std::mem::replace(other, Self::None),
        }
    }
}

impl Output {
    /// For one try.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Collect => Self::Collect,
            Self::Stream(to) => Self::Stream(to.clone()),
        }
    }

    /// A receiver may stand still, and then the whole connection does.
    pub(crate) fn sharing(&self) -> Sharing {
        match self {
            Self::Collect => Sharing::Shared,
            Self::Stream(_) => Sharing::Own,
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Bytes(_) => "Bytes",
            Self::Stream(_) => "Stream",
        })
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
}

/// Where output goes.
#[derive(Debug)]
pub enum Output {
    /// Into the result, 8 MiB of each stream.
    Collect,
    /// To the receiver, as it comes, all of it. A slow reader slows the command. A receiver that is gone ends it.
    Stream(mpsc::Sender<Chunk>),
}

/// A command that ended, and was seen to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its exit code; 128 + N where signal N ended it.
    pub exit_code: i32,
    /// The signal's name without `SIG`, where the server said so.
    pub signal: Option<String>,
    /// Collected standard output.
    pub stdout: Vec<u8>,
    /// Collected standard error.
    pub stderr: Vec<u8>,
    /// Whether more came than was kept.
    pub truncated: bool,
    /// Whether the deadline ended it. Its process tree is gone then.
    pub timed_out: bool,
    /// What the caller should hear besides.
    pub warnings: Vec<String>,
    /// From the order to the end, in milliseconds.
    pub took_ms: u64,
}

/// The result of a run, as the contract has it: the first nine fields, then ours.
#[derive(Debug, Clone, Serialize)]
pub struct ExecutionResult {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit code; 128 + N where signal N ended it.
    pub exit_code: i32,
    /// Seconds from the first attempt to the end.
    pub execution_time: f64,
    /// When it began: RFC 3339 in UTC.
    pub timestamp: String,
    /// The host's id.
    pub vm_id: String,
    /// The command, secrets hidden.
    pub command: String,
    /// Whether it ended by itself with code 0.
    pub success: bool,
    /// How many times a connection was tried.
    pub attempts: u32,
    /// `utf-8` or `base64`.
    pub stdout_encoding: &'static str,
    /// `utf-8` or `base64`.
    pub stderr_encoding: &'static str,
    /// The signal that ended it, without `SIG`.
    pub signal: Option<String>,
    /// Whether the deadline ended it.
    pub timed_out: bool,
    /// Whether output past 8 MiB was dropped.
    pub truncated: bool,
    /// The id that joins the records of this run in the audit log.
    pub audit_id: String,
    /// What else to know.
    pub warnings: Vec<String>,
}

/// Output as JSON can hold it: the text and its encoding.
pub(crate) fn encoded(bytes: Vec<u8>) -> (String, &'static str) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, "utf-8"),
        Err(e) => (STANDARD.encode(e.as_bytes()), "base64"),
    }
}

/// Words as a person would type them into a shell.
pub(crate) fn typed(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    let word = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused() {
        let argv = |words: &[&str]| Command::argv(words.iter().copied()).map(|_| ());
        assert_eq!(argv(&[]), Err(InvalidCommand::Empty));
        assert_eq!(argv(&[""]), Err(InvalidCommand::Empty));
        assert_eq!(argv(&["-x"]), Err(InvalidCommand::Dash("-x".into())));
        assert_eq!(argv(&["a", "b\0"]), Err(InvalidCommand::Nul("an argument")));
        assert_eq!(argv(&["a", "", "-x", "\n"]), Ok(()));
        let id = || Command::argv(["id"]).unwrap();
        for name in ["", "1A", "A B", "A=B", "A;id"] {
            assert!(id().env(name, "x").is_err(), "{name}");
        }
        assert!(id().env("A", "x\0").is_err());
        assert!(id().env("_a1", "x y").is_ok());
        for user in ["", "-u", "a b", "a;b"] {
            assert!(id().user(user).is_err(), "{user}");
        }
        let long = Command::argv(["echo".to_owned(), "x".repeat(MAX_WORD_BYTES + 1)]).unwrap();
        assert_eq!(long.check_length(), Err(InvalidCommand::TooLong));
    }

    #[test]
    fn values_of_variables_are_never_printed() {
        let command = Command::argv(["id"]).unwrap().env("A", "hunter2").unwrap();
        assert!(!format!("{command:?}").contains("hunter2"));
    }

    #[test]
    fn words_are_typed_as_a_person_would() {
        let typed =
            |words: &[&str]| typed(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(typed(&["ls", "-l", "/srv"]), "ls -l /srv");
        assert_eq!(
            typed(&["echo", "", "it's", "$x"]),
            "echo '' 'it'\\''s' '$x'"
        );
    }
}
