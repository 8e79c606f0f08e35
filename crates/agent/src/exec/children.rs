//! The processes that this process is the parent of: those it started, and orphans that came to it
//! because it is process 1 or a subreaper.
//!
//! ```text
//!   start ──(under the lock: fork, enter in table)──▶ table: pid → who waits
//!   SIGCHLD ──▶ reap ──(under the lock: waitpid until nobody is left)──▶ status to who waits
//! ```
//! A process has one parent, so there is one table, whoever uses it. Because a process is started and
//! entered under the lock under which statuses are taken, no status can be taken of a process that is
//! not entered yet, and no number in the table can mean another process. Statuses of strangers are orphans' and are
//! dropped. Nothing else in a process that uses this may wait for children of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroI32;
use std::process::Child;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, set_child_subreaper, wait,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

type Table = BTreeMap<NonZeroI32, oneshot::Sender<Status>>;

static TABLE: Mutex<Table> = Mutex::new(Table::new());

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
/// that the status is lost. One process starts at a time.
pub fn start<E>(
    spawn: impl FnOnce() -> Result<Child, E>,
) -> Result<(Pid, oneshot::Receiver<Status>), E> {
    let mut table = table();
    let child = without_favour(spawn)?;
    let pid = Pid::from_child(&child);
    let (tell, status) = oneshot::channel();
    table.insert(pid.as_raw_nonzero(), tell);
    Ok((pid, status))
}

/// The kernel may have been told to end this process last (or first) when memory runs out. That is
/// meant for the agent, and children inherit it at fork, so for that moment it is put aside. Afterwards
/// would be too late: the child may have children by then.
fn without_favour<T>(spawn: impl FnOnce() -> T) -> T {
    const FAVOUR: &str = "/proc/self/oom_score_adj";
    static OWN: LazyLock<Option<String>> = LazyLock::new(|| {
        let own = fs::read_to_string(FAVOUR).ok()?;
        (own.trim() != "0").then_some(own)
    });
    let set = |value: &str| {
        if let Err(error) = fs::write(FAVOUR, value) {
            tracing::debug!(%error, "the agent's place among those ended for memory stays");
        }
    };
    if OWN.is_some() {
        set("0");
    }
    let child = spawn();
    if let Some(own) = OWN.as_ref() {
        set(own);
    }
    child
}

/// Signals the process group that `pid` leads, unless its status was taken already.
pub fn signal_group(pid: Pid, signal: Signal) -> io::Result<()> {
    // Under the lock: as long as it is in the table, its number is its own.
    let table = table();
    if table.contains_key(&pid.as_raw_nonzero()) {
        kill_process_group(pid, signal)?;
    }
    Ok(())
}

/// Whether the process is there and its number its own.
pub fn is_running(pid: Pid) -> bool {
    table().contains_key(&pid.as_raw_nonzero())
}

/// Takes every status that is there. True when this process has no children at all.
pub fn reap() -> bool {
    let mut table = table();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if let Some(status) = end(status)
                    && let Some(waiting) = table.remove(&pid.as_raw_nonzero())
                {
                    // Who waited may have gone; the process is reaped all the same.
                    let _ = waiting.send(status);
                }
            }
            Ok(None) => return false,
            Err(Errno::INTR) => {}
            Err(error) => {
                if !table.is_empty() {
                    tracing::error!(%error, lost = table.len(), "statuses of processes are lost");
                    // Who waits sees its sender go.
                    table.clear();
                }
                return true;
            }
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
