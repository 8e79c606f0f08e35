//! What can go wrong with a virtual host, in words for the person at the terminal.
//!
//! Owns no state. An error never carries the output of a guest or an environment variable.

use std::path::{Path, PathBuf};
use std::process::Output;

/// A failed operation on a virtual host; its text says what failed and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller is not root.
    #[error(
        "virtual hosts need root: namespaces, cgroups and mounts are made. Run this as root (sudo)"
    )]
    NotRoot,
    /// A program that the host is made of is not installed.
    #[error("{program} is not installed: apt-get install {package}")]
    MissingProgram {
        /// The program that was looked for in `PATH`.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The `testbed` binary, which every process of a host runs, was not found.
    #[error(
        "the testbed binary was not found beside this program: run `cargo build -p testbed`, \
         or name it in PROXIMITY_TESTBED_BIN"
    )]
    MissingBinary,
    /// A host name that cannot be one.
    #[error("{0:?} is no host name: take 1 to 40 of a-z, 0-9 and -, a letter or digit first")]
    BadName(String),
    /// A host of that name runs already.
    #[error("host {0} runs already: take another --name, or end it with `testbed rm {0}`")]
    Exists(String),
    /// No host of that name runs.
    #[error("no host {0} runs here: `testbed list` shows those that do")]
    Unknown(String),
    /// A listening address outside loopback.
    #[error(
        "{0} is not a loopback address: a virtual host may be reached from this machine only, listen on 127.0.0.1"
    )]
    NotLoopback(std::net::SocketAddr),
    /// The host did not come up.
    #[error("host {name} did not start: {message}")]
    Start {
        /// The host's name.
        name: String,
        /// What its keeper or its init said last.
        message: String,
    },
    /// A program that the testbed ran failed.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// The program's name.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// A system call or a file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation, as a verb.
        what: &'static str,
        /// The file, directory or object it was for.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
}

impl Error {
    /// The error with all of its causes, for one line of text that goes to another process.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// The result of an operation on a virtual host.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Turns the error of a system call into an [`Error::Io`] that says what it was for.
pub(crate) trait During<T> {
    fn during(self, what: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io {
            what,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        })
    }
}

/// Refuses the output of a program that did not end with 0.
pub(crate) fn succeeded(program: &str, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let mut last: Vec<&str> = stderr.lines().rev().take(3).collect();
    last.reverse();
    Err(Error::Program {
        program: program.to_owned(),
        status: output.status.to_string(),
        stderr: last.join("; "),
    })
}
