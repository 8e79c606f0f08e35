//! The person's `~/.ssh/config`, as far as it says how hosts are reached, on request.
//!
//! ```text
//!   files ─ read (bounded) ─▶ lines ─ resolve(alias) ─▶ Resolved ─ borrow ─▶ hosts of the configuration
//! ```
//! Read as ssh_config(5) describes it: the first value wins, `IdentityFile` adds up, `Host` and plain `Match` choose.
//! What runs a program or weakens the check of host keys is refused by name and line; what is not known here is not
//! used, and said to be so. Runs nothing.

mod borrow;
mod read;
mod resolve;
mod words;

pub use borrow::Borrowed;
pub(crate) use borrow::add;
pub use read::{MAX_FILE_BYTES, parse, read};
pub use resolve::Resolved;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A file and a line, as people write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line; the first is 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct BadConfig {
    /// Where.
    pub place: Place,
    /// What.
    pub reason: String,
}

/// A whole configuration, with what it includes.
#[derive(Debug, Clone, Default)]
pub struct SshConfig {
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    place: Place,
    says: Says,
}

#[derive(Debug, Clone)]
enum Says {
    Host(Vec<Pattern>),
    Match(Vec<Criterion>),
    Include(Vec<SshConfig>),
    Option { name: String, words: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    glob: String,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let (negated, glob) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        Self {
            negated,
            glob: glob.to_owned(),
        }
    }

    /// Whether any pattern matches, and none that is negated.
    fn choose(patterns: &[Self], name: &str) -> bool {
        let matches =
            |p: &&Self| crate::known_hosts::glob_matches(p.glob.as_bytes(), name.as_bytes());
        let mut found = false;
        for pattern in patterns.iter().filter(matches) {
            if pattern.negated {
                return false;
            }
            found = true;
        }
        found
    }
}

#[derive(Debug, Clone)]
enum Criterion {
    All,
    Host(Vec<Pattern>),
    OriginalHost(Vec<Pattern>),
}
