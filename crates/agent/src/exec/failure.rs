//! Why no command ran, or why its outcome is not known: as problems for a caller over HTTP and as
//! last events of a stream.

use api::Problem;
use api::exec::ExecEvent;
use axum::response::{IntoResponse, Response};

use crate::answer;

/// See the module's documentation.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request is wrong.
    #[error("{what}")]
    Request {
        /// The HTTP status for it.
        status: u16,
        /// What is wrong, for people.
        what: String,
    },
    /// As many commands run as may.
    #[error("{0} commands run already")]
    Full(usize),
    /// The kernel made no pipe, terminal or process.
    #[error("{what} can't be made: {cause}")]
    Kernel {
        /// What could not be made.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        cause: std::io::Error,
    },
    /// The process ended and nobody knows how.
    #[error("the command's status is lost")]
    Lost,
    /// The agent was told to stop and ended the command.
    #[error("the agent stops, and the command was ended with it")]
    Stopped,
    /// The agent was told to stop before there was a command.
    #[error("the agent stops and starts no more commands")]
    Stopping,
    /// The caller did not take what the command wrote before it ended.
    #[error("the output was not read within {0} s of the command's end")]
    Unread(u64),
}

impl Failure {
    /// A request that contradicts itself or the guest.
    pub fn request(what: impl Into<String>) -> Self {
        Self::Request {
            status: 422,
            what: what.into(),
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Request { .. } | Self::Full(_) | Self::Kernel { .. } | Self::Stopping => {
                "nothing_ran"
            }
            Self::Lost | Self::Stopped | Self::Unread(_) => "outcome_unknown",
        }
    }

    fn problem(&self) -> Problem {
        let (status, hint) = match self {
            Self::Request { status, .. } => (*status, "nothing was started; correct the request"),
            Self::Full(_) => (503, "nothing was started; try again when some have ended"),
            Self::Kernel { .. } => (
                503,
                "nothing was started; the guest may lack memory or processes",
            ),
            Self::Stopping => (503, "nothing was started; try again when the agent is back"),
            Self::Lost | Self::Stopped | Self::Unread(_) => (
                500,
                "the command may have done all, some or none of its work",
            ),
        };
        Problem::new(status, self.code(), self.to_string()).hint(hint)
    }

    /// As the last event of a stream.
    pub fn event(&self) -> ExecEvent {
        ExecEvent::Error {
            code: self.code().into(),
            message: self.to_string(),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        answer::Failure(self.problem()).into_response()
    }
}
