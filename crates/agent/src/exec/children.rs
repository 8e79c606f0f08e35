//! The processes that this process is the parent of: those it started, and orphans that came to it
//! because it is process 1 or a subreaper.
//!
//! ```text
//!   start ──say that one starts──▶ make it ──(under the lock: enter in table)──▶ table: pid → who waits
//!   SIGCHLD ──▶ reap ──(under the lock: who has ended?) ─┬─ in the table ──▶ status to who waits
//!                                                       ├─ may be one that starts ──▶ stays for now
//!                                                       └─ stranger ──▶ status dropped
//! ```
//! A process has one parent, so there is one table, whoever uses it. Starts do not wait for each
//! other. A number stays its process's own until the status is taken, and a status is only taken of a
//! process that is in the table, or that has ended before every start under way began and so is a
//! stranger, an orphan: no status is lost or told to the wrong one. Nothing else in a
//! process that uses this may wait for children of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroI32;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, set_child_subreaper, waitpid,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::fork::ended_child;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// See the module's documentation.
struct Table {
    waiting: BTreeMap<NonZeroI32, oneshot::Sender<Status>>,
    /// The starts under way, by their order.
    starting: BTreeSet<u64>,
    /// The number of the next start.
    next: u64,
    /// One that ended and is not in the table, and the start that was next when it was seen: if it is no
    /// stranger, then an earlier one made it.
    doubtful: Option<(Pid, u64)>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    waiting: BTreeMap::new(),
    starting: BTreeSet::new(),
    next: 0,
    doubtful: None,
});

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes in orphans from now on, and takes statuses as long as the runtime runs.
pub fn adopt() -> io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    let mut died = signal(SignalKind::child())?;
    tokio::spawn(async move {
        // One signal may stand for many children, so each round goes on until nobody is left.
        while died.recv().await.is_some() {
            reap();
        }
    });
    Ok(())
}

/// Starts a process and tells its number and, once, its status. A receiver without a status means
/// that the status is lost.
pub fn start<E>(
    spawn: impl FnOnce() -> Result<Pid, E>,
) -> Result<(Pid, oneshot::Receiver<Status>), E> {
    let number = table().begin();
    let spawned = spawn();
    let mut table = table();
    table.starting.remove(&number);
    let started = spawned.map(|pid| {
        let (tell, status) = oneshot::channel();
        table.waiting.insert(pid.as_raw_nonzero(), tell);
        (pid, status)
    });
    if table.doubtful.is_some() {
        table.reap();
    }
    started
}

/// Signals the process group that `pid` leads, unless its status was taken already.
pub fn signal_group(pid: Pid, signal: Signal) -> io::Result<()> {
    // Under the lock: as long as it is in the table, its number is its own.
    let table = table();
    if table.waiting.contains_key(&pid.as_raw_nonzero()) {
        kill_process_group(pid, signal)?;
    }
    Ok(())
}

/// Whether the process is there and its number its own.
pub fn is_running(pid: Pid) -> bool {
    table().waiting.contains_key(&pid.as_raw_nonzero())
}

/// Takes every status that is there. True when this process has no children at all.
pub fn reap() -> bool {
    table().reap()
}

impl Table {
    fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.starting.insert(number);
        number
    }

    fn reap(&mut self) -> bool {
        loop {
            match ended_child() {
                Ok(Some(pid)) if self.may_be_starting(pid) => return false,
                Ok(Some(pid)) => self.take(pid),
                Ok(None) => return false,
                Err(Errno::INTR) => {}
                Err(error) => {
                    if !self.waiting.is_empty() {
                        let lost = self.waiting.len();
                        tracing::error!(%error, lost, "statuses of processes are lost");
                        // Who waits sees its sender go.
                        self.waiting.clear();
                    }
                    return true;
                }
            }
        }
    }

    /// Whether a start under way may have made this process, which has ended. It is asked again
    /// when the next one of these is done.
    fn may_be_starting(&mut self, pid: Pid) -> bool {
        if self.waiting.contains_key(&pid.as_raw_nonzero()) {
            return false;
        }
        let before = match self.doubtful {
            Some((doubtful, before)) if doubtful == pid => before,
            _ => self.next,
        };
        let may_be = self.starting.first().is_some_and(|start| *start < before);
        self.doubtful = may_be.then_some((pid, before));
        may_be
    }

    fn take(&mut self, pid: Pid) {
        // It has ended, so this does not wait.
        let status = waitpid(Some(pid), WaitOptions::NOHANG).ok().flatten();
        if let Some((_, status)) = status
            && let Some(status) = end(status)
            && let Some(waiting) = self.waiting.remove(&pid.as_raw_nonzero())
        {
            // Who waited may have gone; the process is reaped all the same.
            let _ = waiting.send(status);
        }
    }
}

/// None for one that was only stopped or continued.
fn end(status: WaitStatus) -> Option<Status> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Status::Exited(code)),
        (None, Some(signal)) => Some(Status::Signalled(signal)),
        (None, None) => None,
    }
}
