//! One running command, from its start to its one end.
//!
//! ```text
//!   running ──status──▶ ended ──output that is there, 200 ms for what still comes──▶ done
//!      ├──deadline──▶ whole tree killed ──▶ the same, timed out
//!      ├──the agent stops──▶ whole tree killed ──▶ failure
//!      └──dropped───▶ whole tree killed in the background
//! ```
//! What a command that ended by itself left running on purpose is its own business.
//!
//! The whole tree is what is in the command's control group, where it has one ([`super::cgroup`]), and
//! what [`process_tree`] finds: descendants, and those that left the family by the cookie in their
//! environment or the mark among their limits. Without a control group a process is missed that has done
//! away with all of that, parents, environment and the limit of resident memory, on purpose.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use process_tree::Guard;
use rustix::process::{Pid, Signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::Slot;
use super::cgroup::Group;
use super::children::{self, Status};
use super::failure::Failure;
use super::order::Order;
use super::spawn::Started;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its exit code, unless a signal or the deadline ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it, unless the deadline did.
    pub signal: Option<i32>,
    /// Whether the deadline ended it.
    pub timed_out: bool,
    /// How long it ran.
    pub duration_ms: u64,
}

impl End {
    /// Of a program that could not be run.
    pub fn unrunnable(exit_code: i32) -> Self {
        Self {
            exit_code: Some(exit_code),
            signal: None,
            timed_out: false,
            duration_ms: 0,
        }
    }
}

/// See the module's documentation.
pub struct Process {
    pid: Pid,
    status: oneshot::Receiver<Status>,
    group: Option<Group>,
    cookie: String,
    began: Instant,
    deadline: Option<Instant>,
    ended: watch::Sender<bool>,
    /// Its tree ends when this is dropped.
    armed: bool,
    slot: Slot,
}

impl Process {
    /// Takes over a process that was just started.
    pub fn new(started: Started, order: &Order, slot: Slot) -> Self {
        let began = Instant::now();
        Self {
            pid: started.pid,
            status: started.status,
            group: started.group,
            cookie: order.cookie.clone(),
            began,
            deadline: order.timeout.map(|t| began + t),
            ended: watch::Sender::new(false),
            armed: true,
            slot,
        }
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Becomes true when it has ended: no new output is waited for much longer.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// A way to signal its process group while it runs.
    pub fn signaller(&self) -> impl Fn(Signal) + Send + Sync + use<> {
        let pid = self.pid;
        move |signal| {
            if let Err(error) = children::signal_group(pid, signal) {
                tracing::debug!(%error, "a process group could not be signalled");
            }
        }
    }

    /// Runs it to its end. `output` passes on what it writes and ends soon after [`Self::ended`] became
    /// true; `input` gives it what it reads, and is given up when it ends.
    pub async fn conduct(
        mut self,
        output: impl Future<Output = ()>,
        input: impl Future<Output = ()>,
    ) -> Result<End, Failure> {
        let (mut output, mut input) = (pin!(output), pin!(input));
        let (mut read, mut fed) = (false, false);
        let status = loop {
            tokio::select! {
                status = &mut self.status => break Some(status),
                () = self.slot.stopped() => {
                    self.end_tree().await;
                    return Err(Failure::Stopped);
                }
                () = &mut output, if !read => read = true,
                () = &mut input, if !fed => fed = true,
                () = at(self.deadline) => break None,
            }
        };
        let duration = self.began.elapsed();
        let (exit_code, signal) = match status {
            Some(Ok(Status::Exited(code))) => (Some(code), None),
            Some(Ok(Status::Signalled(signal))) => (None, Some(signal)),
            Some(Err(_)) => {
                self.armed = false;
                return Err(Failure::Lost);
            }
            None => {
                self.end_tree().await;
                (None, None)
            }
        };
        self.armed = false;
        self.ended.send_replace(true);
        if !read {
            output.await;
        }
        Ok(End {
            exit_code,
            signal,
            timed_out: status.is_none(),
            duration_ms: milliseconds(duration),
        })
    }

    /// Ends the tree and waits until it is gone. Goes on in the background when it is dropped meanwhile.
    async fn end_tree(&mut self) {
        let tree = self.tree();
        self.armed = false;
        if let Some(group) = self.group.take() {
            group.end().await;
        }
        tree.kill().await;
    }

    /// Made only when it is used: from the moment at which the status is taken the number may mean
    /// another process.
    fn tree(&mut self) -> Guard {
        let root = children::is_running(self.pid).then(|| self.pid.as_raw_nonzero().get());
        let root = root.and_then(|pid| u32::try_from(pid).ok());
        Guard::new(root, std::mem::take(&mut self.cookie))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A command whose status is there has ended by itself, though nobody heard of it.
        if self.armed && self.status.try_recv().is_err() {
            if let Some(group) = &mut self.group {
                group.kill();
            }
            drop(self.tree());
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
