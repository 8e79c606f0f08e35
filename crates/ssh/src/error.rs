//! Why a remote action failed: which host, in which phase, and what to do next.
//!
//! One question matters more than all others: may the command have run? [`Error::may_have_run`] answers it,
//! and only [`Error::OutcomeUnknown`] says yes. Never holds a secret.

use std::path::PathBuf;

use crate::trust::HostKeyProblem;

/// A failure of a remote action.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration or the arguments do not allow it; nothing was tried.
    #[error("{vm}: refused: {reason}")]
    Refused {
        /// The host id as it was asked for.
        vm: String,
        /// Why.
        reason: String,
        /// What to change.
        hint: String,
    },
    /// The command itself cannot be: a NUL byte, a variable without a name.
    #[error("{vm}: the command can't be sent: {reason}")]
    InvalidCommand {
        /// The host id.
        vm: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The audit log took no intent, so nothing was done.
    #[error("{vm}: nothing was done, because the audit log cannot be written: {source}")]
    Audit {
        /// The host id.
        vm: String,
        /// What the log says.
        #[source]
        source: audit::Error,
    },
    /// No connection.
    #[error("{vm}: cannot connect to {address}: {reason}")]
    Connect {
        /// The host id.
        vm: String,
        /// Host and port.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The connection broke, or made no sense, before anybody was logged in.
    #[error("{vm}: the SSH handshake with {address} failed: {reason}")]
    Handshake {
        /// The host id.
        vm: String,
        /// Host and port.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The server offers only algorithms that are not good enough.
    #[error(
        "{vm}: {address} offers no {kind} that is strong enough; it offers {offered}, needed is one of {needed}"
    )]
    WeakServer {
        /// The host id.
        vm: String,
        /// Host and port.
        address: String,
        /// Key exchange, host key, cipher or MAC.
        kind: &'static str,
        /// What the server offers.
        offered: String,
        /// What would do.
        needed: String,
    },
    /// The server's key is not the one that is trusted.
    #[error("{vm}: {problem}")]
    HostKey {
        /// The host id.
        vm: String,
        /// What is wrong with the key.
        problem: Box<HostKeyProblem>,
    },
    /// There is no key to log in with, or one cannot be used.
    #[error("{vm}: {reason}")]
    Identity {
        /// The host id.
        vm: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// A key of ours, here or on the host, is not as it must be for what was asked.
    #[error("{vm}: {reason}")]
    Keys {
        /// The host id.
        vm: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The server took none of our keys.
    #[error("{vm}: {address} did not let {user} in: {reason}")]
    Login {
        /// The host id.
        vm: String,
        /// Host and port.
        address: String,
        /// The user of the login.
        user: String,
        /// What was tried, and what the server would take.
        reason: String,
    },
    /// The server took a key, which is not enough for it.
    #[error(
        "{vm}: {address} did not let {user} in: the key was taken, but the server wants a second factor, which only a person can give"
    )]
    SecondFactor {
        /// The host id.
        vm: String,
        /// Host and port.
        address: String,
        /// The user of the login.
        user: String,
    },
    /// A deadline passed before the command began.
    #[error("{vm}: the deadline of {limit_ms} ms passed while {phase}")]
    Deadline {
        /// The host id.
        vm: String,
        /// What was waited for.
        phase: &'static str,
        /// The deadline in milliseconds.
        limit_ms: u64,
    },
    /// The connection is there, but the command did not begin.
    #[error("{vm}: nothing ran: {reason}")]
    NotStarted {
        /// The host id.
        vm: String,
        /// Why not.
        reason: String,
    },
    /// The connection broke when the command may have been running.
    #[error("{vm}: nobody knows whether the command ran to its end: {reason}")]
    OutcomeUnknown {
        /// The host id.
        vm: String,
        /// What broke.
        reason: String,
    },
    /// A transfer failed; the target is as it was before.
    #[error("{vm}: {path}: {reason}")]
    Transfer {
        /// The host id.
        vm: String,
        /// The file.
        path: String,
        /// What went wrong.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A file of this machine.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file of this machine that does not say what it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the line where there is one.
        reason: String,
    },
}

impl Error {
    /// Whether the command may have run, wholly or in part. Everything else happened before it began.
    pub fn may_have_run(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. })
    }

    /// The host id that it is about, as far as it is about one.
    fn vm(&self) -> &str {
        match self {
            Self::Refused { vm, .. }
            | Self::InvalidCommand { vm, .. }
            | Self::Audit { vm, .. }
            | Self::Connect { vm, .. }
            | Self::Handshake { vm, .. }
            | Self::WeakServer { vm, .. }
            | Self::HostKey { vm, .. }
            | Self::Identity { vm, .. }
            | Self::Keys { vm, .. }
            | Self::Login { vm, .. }
            | Self::SecondFactor { vm, .. }
            | Self::Deadline { vm, .. }
            | Self::NotStarted { vm, .. }
            | Self::OutcomeUnknown { vm, .. }
            | Self::Transfer { vm, .. } => vm,
            Self::File { .. } | Self::Content { .. } => "",
        }
    }

    /// The same at the end of several tries: what an earlier one may have done is not undone by a later one that
    /// could not even begin.
    #[must_use]
    pub(crate) fn after(self, an_earlier_try_may_have_run: bool) -> Self {
        if !an_earlier_try_may_have_run || self.may_have_run() {
            return self;
        }
        Self::OutcomeUnknown {
            vm: self.vm().to_owned(),
            reason: format!("an earlier try may have run, and the last one ended so: {self}"),
        }
    }

    /// Whether trying again can help and is safe: nothing can have run, and the cause may pass.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::Handshake { .. } | Self::Deadline { .. }
        )
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::InvalidCommand { .. } => "invalid_command",
            Self::Audit { .. } => "audit_unavailable",
            Self::Connect { .. } => "unreachable",
            Self::Handshake { .. } => "handshake_failed",
            Self::WeakServer { .. } => "weak_server",
            Self::HostKey { problem, .. } => problem.code(),
            Self::Identity { .. } => "no_usable_key",
            Self::Keys { .. } => "key_management",
            Self::Login { .. } => "login_refused",
            Self::SecondFactor { .. } => "second_factor",
            Self::Deadline { .. } => "deadline",
            Self::NotStarted { .. } => "not_started",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::Transfer { .. } => "transfer_failed",
            Self::File { .. } => "file",
            Self::Content { .. } => "content",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Refused { hint, .. }
            | Self::Identity { hint, .. }
            | Self::Keys { hint, .. } => hint.clone(),
            Self::InvalidCommand { .. } | Self::Content { .. } | Self::File { .. } => return None,
            Self::Audit { .. } => {
                "remote actions are done only when they can be recorded; free the log's disk or mend its directory".to_owned()
            }
            Self::Connect { vm, .. } => format!(
                "is the host up, and are ip and ssh_port of vms.{vm} right? A firewall that drops looks like this too"
            ),
            Self::Handshake { .. } => {
                "the server's log (journalctl -u ssh) says why; too many connections at once (MaxStartups) look like this".to_owned()
            }
            Self::WeakServer { .. } => {
                "update the server's OpenSSH, or allow modern algorithms in its sshd_config; there is no switch to accept weak ones".to_owned()
            }
            Self::HostKey { vm, problem } => problem.hint(vm),
            Self::Login { vm, user, .. } => format!(
                "put the public key into ~{user}/.ssh/authorized_keys on the host, or name another key with vms.{vm}.key_file"
            ),
            Self::SecondFactor { .. } => {
                "let keys be enough for this user: AuthenticationMethods of its sshd_config".to_owned()
            }
            Self::Deadline { phase, .. } => format!(
                "nothing ran; if {phase} is slow there, raise remote_execution.connect_timeout"
            ),
            Self::NotStarted { .. } => {
                "the login shell or a forced command of the user may stand in between: try ssh with the same user and key".to_owned()
            }
            Self::OutcomeUnknown { .. } => {
                "look on the host before you run it again; it is never run again by itself".to_owned()
            }
            Self::Transfer { hint, .. } => return hint.clone(),
        };
        Some(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_run_stays_unknown_whatever_comes_later() {
        let refused = || Error::NotStarted {
            vm: "vm01".into(),
            reason: "no".into(),
        };
        assert!(!refused().after(false).may_have_run());
        let unknown = refused().after(true);
        assert!(unknown.may_have_run());
        assert!(unknown.to_string().contains("vm01"), "{unknown}");
    }
}
