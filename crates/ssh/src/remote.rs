//! Remote execution as callers see it: a host id and a command in, a result or an error out; asked for, permitted,
//! recorded, tried, recorded again.
//!
//! ```text
//!   permitted? ─no─▶ record "refused"
//!      │ yes
//!   record the intent, on disk ─fails─▶ nothing is done
//!      │
//!   connect ─ passing failure, nothing ran ─▶ wait a little longer each time, again
//!      │
//!   run ─▶ record the outcome: exit code, failed (nothing ran), or unknown
//! ```
//!
//! Tries again only while nothing can have run, or where the command may run twice.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use audit::{Entry, Intent, Log, Outcome};
use jiff::Timestamp;
use russh::Channel;
use russh::client::Msg;
use serde::Serialize;
use serde_json::{Value, json};

use crate::command::{Command, ExecutionResult, Finished, Input, Output, encoded, typed};
use crate::connection::{self, Caller, Connection};
use crate::error::Error;
use crate::evidence::Evidence;
use crate::hosts::{Hosts, Vm};
use crate::identity::Passphrases;
use crate::pool::{Lease, Pool, Sharing};
use crate::running::{Begun, Limit};
use crate::supervisor;
use crate::trust::{self, HostKeyProblem, ShownKey};

/// The channel's name in audit records.
const CHANNEL: &str = "ssh";
/// The first wait before another try; it doubles, up to [`LONGEST_WAIT`], and each is cut by chance to half at most.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Remote execution on the hosts of one configuration. Keeps connections between commands; clones share them, and
/// they are cut when the last clone is gone.
#[derive(Clone)]
pub struct Remote {
    pub(crate) hosts: Hosts,
    log: Log,
    actor: String,
    passphrases: Option<Passphrases>,
    pub(crate) pool: Pool,
    evidence: Option<PathBuf>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("hosts", &self.hosts.vms.len())
            .field("actor", &self.actor)
            .finish_non_exhaustive()
    }
}

/// What [`Remote::look_at_key`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFound {
    /// The key that the host shows.
    pub shown: ShownKey,
    /// `None` if it is trusted already.
    pub problem: Option<HostKeyProblem>,
}

impl Remote {
    /// Over these hosts, recorded in this log as done by `actor`.
    pub fn new(hosts: Hosts, log: Log, actor: impl Into<String>) -> Self {
        Self {
            pool: Pool::new(hosts.settings.idle_timeout),
            hosts,
            log,
            actor: actor.into(),
            passphrases: None,
            evidence: None,
        }
    }

    /// Writes evidence of every command and transfer into this directory: the result, the transcript and the records
    /// of the audit log, in a directory of its own for each.
    #[must_use]
    pub fn evidence(mut self, dir: impl Into<PathBuf>) -> Self {
        self.evidence = Some(dir.into());
        self
    }

    /// With somebody who knows the passphrases of encrypted keys.
    #[must_use]
    pub fn passphrases(mut self, passphrases: Passphrases) -> Self {
        self.passphrases = Some(passphrases);
        self
    }

    /// The configuration.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Runs a command on a host.
    pub async fn execute(
        &self,
        id: &str,
        command: &Command,
        input: Input,
        output: Output,
    ) -> Result<ExecutionResult, Error> {
        let Some(evidence) = self.begin_evidence(id, true)? else {
            return self.perform(id, command, input, output).await;
        };
        let mut command = command.clone();
        command.transcript = Some(evidence.transcript());
        let result = self.perform(id, &command, input, output).await;
        let kept = self.keep_evidence(evidence, &result).await;
        result.map(|mut result| {
            result.warnings.extend(kept);
            result
        })
    }

    /// Where evidence is wanted, its beginning; that it cannot be written is heard of before anything is done. What is
    /// refused has its record in the audit log only.
    pub(crate) fn begin_evidence(
        &self,
        id: &str,
        with_output: bool,
    ) -> Result<Option<Evidence>, Error> {
        let dir = self.evidence.as_ref();
        let wanted = dir.filter(|_| self.hosts.permitted(id).is_ok());
        wanted
            .map(|dir| Evidence::begin(dir, id, self.log.redactor(), with_output))
            .transpose()
    }

    /// Puts it in place; what went wrong is a warning, since the action is done.
    pub(crate) async fn keep_evidence<T: Serialize>(
        &self,
        evidence: Evidence,
        result: &Result<T, Error>,
    ) -> Option<String> {
        let value = match result {
            Ok(result) => serde_json::to_value(result).unwrap_or_default(),
            Err(error) => json!({"error": {"code": error.code(), "message": error.to_string()}}),
        };
        let log = self.log.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let audit_id = evidence.transcript().audit_id();
            evidence.keep(&log, audit_id.as_deref(), &value)
        });
        match kept.await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("there is no evidence of it: {error}")),
            Err(e) => Some(format!("there is no evidence of it: {e}")),
        }
    }

    async fn perform(
        &self,
        id: &str,
        command: &Command,
        mut input: Input,
        output: Output,
    ) -> Result<ExecutionResult, Error> {
        let detail = json!({
            "argv": command.words(),
            "env": command.variables(),
            "cwd": command.directory(),
            "user": command.as_user(),
        });
        let vm = self.permitted(id, "remote.exec", &detail).await?;
        let invalid = |reason: String| Error::InvalidCommand {
            vm: id.to_owned(),
            reason,
        };
        command.check_length().map_err(|e| invalid(e.to_string()))?;
        let sharing = output.sharing();
        // On a connection that is there already the far side gets ready while the record goes to the disk. It gets its
        // order afterwards, or never.
        let early = async {
            if supervisor::other_user(&vm.user, command.as_user()).is_some() {
                // To become another user is to run a program.
                return None;
            }
            let leased = self.pool.kept(vm, &self.hosts, sharing).await?;
            Ready::on(leased, vm, command).await.ok()
        };
        let (intent, mut early) = tokio::join!(self.intent(vm, "remote.exec", detail), early);
        let intent = intent?;
        let audit_id = intent.id().to_owned();
        if let Some(transcript) = &command.transcript {
            transcript.recorded_as(&audit_id);
        }
        let timestamp = Timestamp::now().to_string();
        let began = Instant::now();
        let limit = Limit::Total(command.timeout.unwrap_or(self.hosts.settings.timeout));
        let retry = command.retry.unwrap_or(self.hosts.settings.retry);
        let (mut attempts, mut ran) = (0, false);
        let ended = loop {
            attempts += 1;
            let mut used_up = false;
            let ready = match early.take() {
                Some(ready) => Ok(ready),
                None => self.ready(vm, command, sharing, limit.duration()).await,
            };
            let ended = match ready {
                Err(error) => Err(error),
                Ok(ready) => {
                    used_up = matches!(input, Input::Stream(_));
                    ready
                        .run(command, (input.again(), output.again()), limit)
                        .await
                }
            };
            let Err(error) = &ended else { break ended };
            ran |= error.may_have_run();
            let may_repeat = error.is_passing() || (error.may_have_run() && command.may_run_twice);
            if !may_repeat || used_up || attempts > retry {
                break ended.map_err(|error| error.after(ran));
            }
            tokio::time::sleep(wait_before(attempts)).await;
        };
        self.record(vm, intent, &ended, attempts).await?;
        let finished = ended?;
        let words = self.log.redactor().argv(&command.words());
        Ok(result(Told {
            finished,
            vm,
            command: typed(&words),
            execution_time: began.elapsed().as_secs_f64(),
            timestamp,
            attempts,
            audit_id,
        }))
    }

    async fn ready<'a>(
        &self,
        vm: &'a Vm,
        command: &Command,
        sharing: Sharing,
        wait: Duration,
    ) -> Result<Ready<'a>, Error> {
        let leased = self.pool.lease(vm, self.caller(), sharing, wait).await?;
        Ready::on(leased, vm, command).await
    }

    /// A connection of the caller's own, made anew, that nobody keeps.
    pub(crate) async fn connect(&self, vm: &Vm) -> Result<Connection, Error> {
        Connection::open(vm, self.caller()).await
    }

    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller {
            hosts: &self.hosts,
            passphrases: self.passphrases.as_ref(),
        }
    }

    /// The host, if it may be used. A refusal is recorded.
    pub(crate) async fn permitted(
        &self,
        id: &str,
        action: &str,
        detail: &Value,
    ) -> Result<&Vm, Error> {
        let refusal = match self.hosts.permitted(id) {
            Ok(vm) => return Ok(vm),
            Err(refusal) => refusal,
        };
        let entry = Entry::new(self.actor.clone(), action, id)
            .channel(CHANNEL)
            .detail(detail.clone());
        let recorded = self.log.refused(entry, &refusal.message).await;
        recorded.map_err(|source| Error::Audit {
            vm: id.to_owned(),
            source,
        })?;
        Err(Error::Refused {
            vm: id.to_owned(),
            reason: refusal.message,
            hint: refusal.hint.unwrap_or_default(),
        })
    }

    pub(crate) async fn intent(
        &self,
        vm: &Vm,
        action: &str,
        detail: Value,
    ) -> Result<Intent, Error> {
        let entry = Entry::new(self.actor.clone(), action, vm.id.as_str())
            .channel(CHANNEL)
            .detail(detail);
        self.log.intent(entry).await.map_err(|source| Error::Audit {
            vm: vm.id.to_string(),
            source,
        })
    }

    async fn record(
        &self,
        vm: &Vm,
        intent: Intent,
        ended: &Result<Finished, Error>,
        attempts: u32,
    ) -> Result<(), Error> {
        let outcome = match ended {
            Ok(finished) => Outcome::exited(finished.exit_code).detail(json!({
                "attempts": attempts,
                "signal": finished.signal,
                "timed_out": finished.timed_out,
            })),
            Err(error) => outcome_of(error),
        };
        if let Err(error) = intent.finish(outcome).await {
            // It was done; the log writes the outcome with its next record, and says so.
            tracing::warn!(vm = %vm.id, %error, "the outcome of a remote command is not in the audit log yet");
        }
        Ok(())
    }

    /// The key that a host shows now. Nobody is logged in, and nothing is believed.
    pub async fn look_at_key(&self, id: &str) -> Result<KeyFound, Error> {
        let vm = self.permitted(id, "remote.trust", &Value::Null).await?;
        let (shown, problem) = connection::shown_key(vm, self.caller()).await?;
        Ok(KeyFound { shown, problem })
    }

    /// Pins a key after somebody who knows it said yes. Refuses whatever is not simply unknown.
    pub async fn pin_key(&self, id: &str, found: &KeyFound, how: &str) -> Result<(), Error> {
        let detail = json!({
            "fingerprint": found.shown.fingerprint,
            "key_type": found.shown.key_type,
            "confirmed_by": how,
        });
        let vm = self.permitted(id, "remote.trust", &detail).await?;
        match &found.problem {
            None => return Ok(()),
            Some(HostKeyProblem::Unknown { .. }) => {}
            Some(problem) => {
                return Err(Error::HostKey {
                    vm: id.to_owned(),
                    problem: Box::new(problem.clone()),
                });
            }
        }
        let intent = self.intent(vm, "remote.trust", detail).await?;
        let pinned = trust::pin(vm.known_hosts(&self.hosts.settings), vm, &found.shown);
        let outcome = match &pinned {
            Ok(()) => Outcome::ok(),
            Err(error) => Outcome::failed(error.to_string()),
        };
        intent
            .finish(outcome)
            .await
            .map_err(|source| Error::Audit {
                vm: id.to_owned(),
                source,
            })?;
        pinned
    }
}

/// A channel whose far side waits for its order, and the place on the connection that carries it.
struct Ready<'a> {
    lease: Lease,
    begun: Begun<'a>,
}

impl<'a> Ready<'a> {
    /// Under the connection's warden where it has one. A command of another user is nobody's whom the login may
    /// signal, so it has a watcher of its own.
    async fn on(
        (lease, channel): (Lease, Channel<Msg>),
        vm: &'a Vm,
        command: &Command,
    ) -> Result<Self, Error> {
        let other_user = supervisor::other_user(&vm.user, command.as_user());
        let warden = lease.connection().warden().filter(|_| other_user.is_none());
        let ward = warden.map(|warden| warden.ward());
        let begun = Begun::on(vm.id.as_str(), &vm.user, channel, command, ward).await?;
        Ok(Self { lease, begun })
    }

    async fn run(
        self,
        command: &Command,
        (input, output): (Input, Output),
        limit: Limit,
    ) -> Result<Finished, Error> {
        let ended = self.begun.run(command, input, output, limit).await;
        if ended.is_ok() {
            self.lease.finished();
        }
        ended
    }
}

pub(crate) fn outcome_of(error: &Error) -> Outcome {
    if error.may_have_run() {
        Outcome::unknown(error.to_string())
    } else {
        Outcome::failed(error.to_string())
    }
}

/// Doubles each time, and chance takes up to half of it, so that many callers do not come back at once.
pub(crate) fn wait_before(attempt: u32) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
    let longest = doubled.min(LONGEST_WAIT);
    let mut byte = [0];
    // Without chance it waits the whole time.
    let _: Result<(), _> = getrandom::fill(&mut byte);
    let [cut] = byte;
    longest.saturating_sub(longest.saturating_mul(u32::from(cut)) / 512)
}

struct Told<'a> {
    finished: Finished,
    vm: &'a Vm,
    command: String,
    execution_time: f64,
    timestamp: String,
    attempts: u32,
    audit_id: String,
}

fn result(told: Told<'_>) -> ExecutionResult {
    let finished = told.finished;
    let (stdout, stdout_encoding) = encoded(finished.stdout);
    let (stderr, stderr_encoding) = encoded(finished.stderr);
    ExecutionResult {
        stdout,
        stderr,
        exit_code: finished.exit_code,
        execution_time: told.execution_time,
        timestamp: told.timestamp,
        vm_id: told.vm.id.to_string(),
        command: told.command,
        success: finished.exit_code == 0 && !finished.timed_out,
        attempts: told.attempts,
        stdout_encoding,
        stderr_encoding,
        signal: finished.signal,
        timed_out: finished.timed_out,
        truncated: finished.truncated,
        audit_id: told.audit_id,
        warnings: finished.warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded() {
        for attempt in 1..40 {
            let wait = wait_before(attempt);
            assert!(wait <= LONGEST_WAIT, "{attempt}: {wait:?}");
            assert!(wait >= FIRST_WAIT / 2, "{attempt}: {wait:?}");
        }
    }
}
