//! How a call can fail, as the caller has to tell it apart: nothing was sent, the controller said
//! no, the answer was lost, or the answer made no sense.

use std::fmt::Write as _;

use api::Problem;

use crate::endpoint::InvalidEndpoint;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint or the token was refused before anything was sent.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// Nobody answered: nothing was carried out.
    #[error("cannot reach the controller at {tried}: {cause}")]
    Unreachable {
        /// The address that was tried.
        tried: String,
        /// What the system said.
        cause: String,
        /// What to do next.
        next: String,
    },
    /// The controller answered that it cannot or will not.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The request left, its answer did not come: it may have been carried out.
    #[error("the connection to {tried} was lost while waiting for the answer: {cause}")]
    Interrupted {
        /// The address that was spoken to.
        tried: String,
        /// What the system said.
        cause: String,
    },
    /// An answer that does not follow the API. The request may have been carried out.
    #[error("unexpected answer from {tried}: {what}")]
    Protocol {
        /// The address that was spoken to.
        tried: String,
        /// The HTTP status, when that is what was unexpected.
        status: Option<u16>,
        /// What was wrong with the answer.
        what: String,
    },
}

impl Error {
    /// What to do next, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Endpoint(e) => Some(e.hint().to_owned()),
            Self::Unreachable { next, .. } => Some(next.clone()),
            Self::Problem(problem) => problem.hint.clone(),
            Self::Interrupted { .. } => Some(
                "see what became of it: `proximity operation list`, `proximity status`".to_owned(),
            ),
            Self::Protocol { .. } => Some(
                "is this a Proximity controller of the same version? see `proximity version`"
                    .to_owned(),
            ),
        }
    }

    /// Whether the request may have been carried out although there is no answer that says so.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Endpoint(_) | Self::Unreachable { .. } => false,
            Self::Interrupted { .. } | Self::Protocol { .. } => true,
            Self::Problem(problem) => problem.code == "outcome_unknown",
        }
    }

    /// A stable word for programs: the problem's own code, or one for each failure of ours.
    pub fn code(&self) -> &str {
        match self {
            Self::Endpoint(InvalidEndpoint::PlainHttp { .. }) => "plain_http_refused",
            Self::Endpoint(InvalidEndpoint::Url { .. }) => "invalid_url",
            Self::Endpoint(InvalidEndpoint::Token) => "invalid_token",
            Self::Unreachable { .. } => "unreachable",
            Self::Problem(problem) => &problem.code,
            Self::Interrupted { .. } => "interrupted",
            Self::Protocol { .. } => "protocol",
        }
    }
}

/// An error and its sources in one line, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        source = cause.source();
    }
    text
}

/// The input/output error at the bottom of a chain.
pub(crate) fn io_kind(error: &dyn std::error::Error) -> Option<std::io::ErrorKind> {
    let mut source = error.source();
    let mut kind = None;
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            kind = Some(io.kind());
        }
        source = cause.source();
    }
    kind
}
