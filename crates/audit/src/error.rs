//! Why the log could not be opened, written or read; one enum for the crate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::Finding;

/// What went wrong. For [`crate::Log::intent`] every variant means: refuse the action.
///
/// It can be cloned because one failed write is the answer to every record of its batch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A call to the operating system failed.
    #[error("cannot {operation} the audit log {}", path.display())]
    Io {
        /// The verb for what was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another writer, in this process or another, holds the file.
    #[error(
        "the audit log {} is being written by another process; stop it, or give this one a file of its own",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The path names something that is no regular file.
    #[error(
        "the audit log {} is not a regular file; links, devices and pipes are refused",
        path.display()
    )]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file on disk is not what this crate wrote; nothing is appended to it.
    #[error(
        "the audit log {} is broken and nothing may be appended to it: {finding}; keep the file as evidence and move it away to begin a new chain",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// The first thing that is wrong.
        finding: Box<Finding>,
    },
    /// The open file was moved, deleted, cut or appended to by somebody else.
    #[error(
        "the audit log {} was changed while it was open ({change}); nothing more is written to it until it is put back or opened again",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What differs.
        change: String,
    },
    /// So many intents are waiting for their outcomes that no new one is accepted.
    #[error("{limit} audited actions have no outcome yet; wait for some of them to end")]
    TooManyOpen {
        /// How many may be open.
        limit: usize,
    },
    /// The system gave no random bytes for a correlation id.
    #[error("the system has no random bytes for an audit id: {reason}")]
    NoRandom {
        /// What the system said.
        reason: String,
    },
    /// The writer ended: the log was closed, or a sync failed and what is on disk is uncertain.
    #[error("the audit log {} is closed ({reason}); open it again", path.display())]
    Closed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }

    pub(crate) fn closed(path: &Path, reason: &str) -> Self {
        Self::Closed {
            path: path.to_owned(),
            reason: reason.to_owned(),
        }
    }
}
