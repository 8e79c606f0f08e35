//! Why a command failed, what to say about it, and the exit code that follows.

use std::io;

use serde_json::{Value, json};

use crate::exit::Exit;

/// A command's failure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for something that cannot be.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// How to do it right.
        hint: Option<String>,
    },
    /// A call to the controller failed.
    #[error(transparent)]
    Call(#[from] client::Error),
    /// A session that did not begin: whatever the error is, nothing ran.
    #[error(transparent)]
    NothingRan(client::Error),
    /// A remote action over SSH failed.
    #[error(transparent)]
    Remote(#[from] ssh::Error),
    /// Something on this machine failed.
    #[error("{what}")]
    Local {
        /// What failed and why.
        what: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// Standard output could not be written; a reader that went away is not even said.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted {
        /// What goes on without us.
        hint: Option<String>,
    },
    /// `exec`: the controller answered, but not how the command ended.
    #[error("{what}")]
    OutcomeUnknown {
        /// What is known.
        what: String,
    },
    /// It has all been said and printed already.
    #[error("failed")]
    Reported(Exit),
}

impl Failure {
    /// A wrong command line.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// A failure on this machine.
    pub fn local(what: impl Into<String>) -> Self {
        Self::Local {
            what: what.into(),
            hint: None,
        }
    }

    /// Adds what to do next to a failure on this machine.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        if let Self::Local { hint, .. } = &mut self {
            *hint = Some(next.into());
        }
        self
    }

    /// The exit code of every command but `exec`.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::WRONG_USE,
            Self::Call(error) | Self::NothingRan(error) => match error {
                client::Error::Endpoint(_) => Exit::WRONG_USE,
                client::Error::Unreachable { .. } | client::Error::Interrupted { .. } => {
                    Exit::UNREACHABLE
                }
                client::Error::Problem(_) | client::Error::Protocol { .. } => Exit::FAILED,
            },
            Self::Remote(ssh::Error::Refused { .. }) => Exit::WRONG_USE,
            Self::Remote(error) if error.is_passing() => Exit::UNREACHABLE,
            Self::Remote(_) => Exit::FAILED,
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => Exit::OK,
            Self::Local { .. } | Self::Output(_) | Self::OutcomeUnknown { .. } => Exit::FAILED,
            Self::Interrupted { .. } => Exit::INTERRUPTED,
            Self::Reported(exit) => *exit,
        }
    }

    /// The exit code of `exec`, whose low codes belong to the command in the guest.
    pub fn exec_exit(&self) -> Exit {
        match self {
            Self::Reported(exit) => *exit,
            Self::Call(error) if error.outcome_unknown() => Exit::OUTCOME_UNKNOWN,
            Self::Remote(error) if error.may_have_run() => Exit::OUTCOME_UNKNOWN,
            Self::OutcomeUnknown { .. } | Self::Output(_) => Exit::OUTCOME_UNKNOWN,
            Self::Interrupted { .. } => Exit::INTERRUPTED,
            Self::Usage { .. }
            | Self::Call(_)
            | Self::NothingRan(_)
            | Self::Remote(_)
            | Self::Local { .. } => Exit::NOTHING_RAN,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } | Self::Local { hint, .. } | Self::Interrupted { hint } => {
                hint.clone()
            }
            Self::Call(error) | Self::NothingRan(error) => error.hint(),
            Self::Remote(error) => error.hint(),
            Self::Output(_) | Self::OutcomeUnknown { .. } | Self::Reported(_) => None,
        }
    }

    /// Whether there is anything left to say.
    pub fn is_silent(&self) -> bool {
        match self {
            Self::Reported(_) => true,
            Self::Output(e) => e.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }

    /// The document that `--json` prints in place of a result.
    pub fn document(&self, exit: Exit) -> Value {
        let code = match self {
            Self::Usage { .. } => "usage",
            Self::Call(error) | Self::NothingRan(error) => error.code(),
            Self::Remote(error) => error.code(),
            Self::Local { .. } | Self::Output(_) | Self::Reported(_) => "failed",
            Self::Interrupted { .. } => "cancelled",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
        };
        let mut error = json!({
            "code": code,
            "detail": self.to_string(),
            "hint": self.hint(),
            "exit_code": exit.code(),
        });
        if let (Self::Call(client::Error::Problem(problem)), Value::Object(fields)) =
            (self, &mut error)
        {
            fields.insert("status".to_owned(), problem.status.into());
        }
        json!({ "error": error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Problem;

    fn problem(code: &str) -> Failure {
        client::Error::Problem(Box::new(Problem::new(500, code, "x"))).into()
    }

    fn unreachable() -> Failure {
        client::Error::Unreachable {
            tried: String::new(),
            cause: String::new(),
            next: String::new(),
        }
        .into()
    }

    fn interrupted() -> Failure {
        client::Error::Interrupted {
            tried: String::new(),
            cause: String::new(),
        }
        .into()
    }

    #[test]
    fn exit_codes() {
        let check = |failure: Failure, plain: u8, exec: u8| {
            assert_eq!(
                (failure.exit().code(), failure.exec_exit().code()),
                (plain, exec),
                "{failure:?}"
            );
        };
        check(Failure::usage("x", "y"), 2, 125);
        check(unreachable(), 3, 125);
        check(interrupted(), 3, 123);
        check(problem("not_found"), 1, 125);
        check(problem("outcome_unknown"), 1, 123);
        check(client::InvalidEndpoint::Token.into_failure(), 2, 125);
        check(Failure::local("x"), 1, 125);
        check(Failure::Output(io::ErrorKind::BrokenPipe.into()), 0, 123);
        check(Failure::Output(io::ErrorKind::StorageFull.into()), 1, 123);
        check(Failure::OutcomeUnknown { what: "x".into() }, 1, 123);
        if let Failure::Call(error) = interrupted() {
            check(Failure::NothingRan(error), 3, 125);
        }
        check(Failure::Reported(Exit::FAILED), 1, 1);
    }

    trait IntoFailure {
        fn into_failure(self) -> Failure;
    }

    impl IntoFailure for client::InvalidEndpoint {
        fn into_failure(self) -> Failure {
            client::Error::from(self).into()
        }
    }
}
