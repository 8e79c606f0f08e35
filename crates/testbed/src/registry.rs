//! Which hosts live on this machine: a lock and a record for each.
//!
//! Owns `/run/proximity-testbed/NAME.lock` (held by the host's keeper for as long as the host lives,
//! its content is the host's state directory) and `STATE/NAME/host.json` (the record). A process is
//! taken for a recorded one only when its start time matches too, so a recycled pid is never mistaken.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::name::HostName;

const LOCKS: &str = "/run/proximity-testbed";
const RECORD: &str = "host.json";
/// Marks a directory as the state of a host: only what carries it is ever removed.
const MARK: &str = ".proximity-testbed";

/// A process that is still the one that was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid on the machine.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub start_ticks: u64,
}

impl Process {
    /// The running process with this pid.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the program's name, may hold anything: count from its closing parenthesis.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        let start_ticks = fields.nth(18)?.parse().ok()?;
        (!ended).then_some(Self { pid, start_ticks })
    }

    /// A handle on the process, if it still runs.
    pub(crate) fn handle(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        (Self::of(self.pid).as_ref() == Some(self)).then_some(handle)
    }

    /// Kills the process; one that has ended is fine.
    pub(crate) fn kill(&self) -> Result<()> {
        let Some(handle) = self.handle() else {
            return Ok(());
        };
        match pidfd_send_signal(&handle, Signal::KILL) {
            Err(error) if error != Errno::SRCH => {
                Err(error).during("kill process", self.pid.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// What is known of a running host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The host's name.
    pub name: HostName,
    /// Its init (PID 1 inside), as the machine sees it.
    pub init: Process,
    /// Whether it outlives the command that started it.
    pub keep: bool,
    /// How often it was started over the same disk, 1 at first.
    pub generation: u32,
    /// Its directory on the machine.
    pub state: PathBuf,
}

impl Record {
    /// The running host of that name.
    pub fn find(name: &HostName) -> Result<Self> {
        Self::read(name).ok_or_else(|| Error::Unknown(name.to_string()))
    }

    fn read(name: &HostName) -> Option<Self> {
        let state = fs::read_to_string(lock_path(name)).ok()?;
        let text = fs::read_to_string(Path::new(&state).join(RECORD)).ok()?;
        let record: Self = serde_json::from_str(&text).ok()?;
        record.init.handle().map(|_| record)
    }

    /// Every running host of this machine, by name.
    pub fn all() -> Result<Vec<Self>> {
        Ok(locked_names()?.iter().filter_map(Self::read).collect())
    }

    /// Replaces the record in one step, so that nobody reads half of it.
    pub(crate) fn write(&self) -> Result<()> {
        let path = self.state.join(RECORD);
        let fresh = self.state.join("host.json.new");
        let text = serde_json::to_vec_pretty(self)
            .map_err(std::io::Error::from)
            .during("encode", &path)?;
        fs::write(&fresh, text).during("write", &fresh)?;
        fs::rename(&fresh, &path).during("replace", &path)
    }
}

fn lock_path(name: &HostName) -> PathBuf {
    Path::new(LOCKS).join(format!("{name}.lock"))
}

/// The names for which there is a lock file, held or not.
pub(crate) fn locked_names() -> Result<Vec<HostName>> {
    let entries = match fs::read_dir(LOCKS) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.during("read", LOCKS)?,
    };
    let mut names: Vec<HostName> = entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".lock")?
                .parse()
                .ok()
        })
        .collect();
    names.sort();
    Ok(names)
}

/// The right to a host's name; the file goes with [`HostLock::discard`], otherwise stays for the sweeper.
#[derive(Debug)]
pub(crate) struct HostLock {
    file: File,
    path: PathBuf,
}

impl HostLock {
    /// Takes the lock, or `None` while another process has it.
    pub(crate) fn take(name: &HostName) -> Result<Option<Self>> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(LOCKS)
            .during("make", LOCKS)?;
        let path = lock_path(name);
        loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .during("open", &path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                other => other.during("lock", &path)?,
            }
            // The holder before us may have removed the file: then this lock is on a file nobody else sees.
            let ours = file.metadata().during("read", &path)?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
                return Ok(Some(Self { file, path }));
            }
        }
    }

    /// The state directory that the holder before us wrote down.
    pub(crate) fn state(&mut self) -> Option<PathBuf> {
        let mut text = String::new();
        self.file.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then(|| PathBuf::from(text))
    }

    /// Makes the host's state directory and writes down where it is.
    pub(crate) fn claim(&mut self, state: &Path) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(state)
            .during("make", state)?;
        let mark = state.join(MARK);
        fs::write(&mark, "").during("write", &mark)?;
        self.file.set_len(0).during("write", &self.path)?;
        self.file
            .write_all(state.as_os_str().as_encoded_bytes())
            .during("write", &self.path)
    }

    /// Gives the name back: nothing of the host is left.
    pub(crate) fn discard(self) -> Result<()> {
        fs::remove_file(&self.path).during("remove", &self.path)
    }
}

/// Whether a directory is the state of a host (and not something that merely lies there).
pub(crate) fn is_state(dir: &Path) -> bool {
    dir.join(MARK).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.handle().is_some());
        let other = Process {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(
            other.handle().is_none(),
            "a recycled pid is another process"
        );
    }

    #[test]
    fn a_process_that_never_was_can_be_killed() {
        let nobody = Process {
            pid: std::process::id(),
            start_ticks: 1,
        };
        nobody.kill().unwrap();
    }
}
