//! The keeper: the process on the machine that stands behind one host and cleans up after it.
//!
//! ```text
//! caller ──pipe──▶ keeper (session of its own, holds the host's lock)
//!                    └─ host-launch, exec'd to unshare (in the host's cgroups)
//!                         └─ host-init = PID 1 of the host
//!
//! create cgroups ▸ launch ▸ ready ▸ wait for the end ▸ remove cgroups ─┬─ reboot asked ▸ again
//!                                                                      └─ remove state and lock
//! ```
//! The caller holds the other end of the keeper's stdin. When it goes, however it goes, init reads
//! end-of-file and ends, and the keeper, which nobody signals, removes what is left. Should the keeper
//! itself be killed, the kernel ends unshare and with it the host; the next start sweeps.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::name::HostName;
use crate::registry::{HostLock, Process, Record};
use crate::{cgroup, program, sweep};

/// How long a name may be busy with a host that is being removed.
const NAME_PATIENCE: Duration = Duration::from_secs(5);
/// How long processes that are ending may hold the cgroups.
const CGROUP_PATIENCE: Duration = Duration::from_secs(5);
const REBOOT: &str = "reboot";
pub(crate) const LOG: &str = "host.log";

/// What a host is to be; handed from process to process as arguments.
#[derive(Debug, Clone, Args)]
pub struct Spec {
    /// The host's name.
    #[arg(long)]
    pub name: HostName,
    /// The directory that holds one directory for each host.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Outlive the caller.
    #[arg(long)]
    pub keep: bool,
    /// Leave port 8006 of the node free.
    #[arg(long)]
    pub without_node_service: bool,
}

impl Spec {
    /// The host's own directory on the machine.
    pub(crate) fn state(&self) -> PathBuf {
        self.state_dir.join(self.name.as_str())
    }

    /// These options as an argv for the next process.
    pub(crate) fn args(&self) -> Vec<std::ffi::OsString> {
        let mut args = vec![
            "--name".into(),
            self.name.as_str().into(),
            "--state-dir".into(),
        ];
        args.push(self.state_dir.clone().into());
        if self.keep {
            args.push("--keep".into());
        }
        if self.without_node_service {
            args.push("--without-node-service".into());
        }
        args
    }
}

/// The one line that init says to the keeper, and the keeper to the caller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The host is up.
    Ready { init: Process },
    /// It is not, and why.
    Failed { message: String },
}

impl Report {
    /// Says it on stdout; a reader that has gone is fine.
    pub(crate) fn send(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            let mut out = io::stdout().lock();
            drop(writeln!(out, "{line}").and_then(|()| out.flush()));
        }
    }

    /// What went wrong, if anything did.
    pub(crate) fn failure(self) -> Option<String> {
        match self {
            Self::Ready { .. } => None,
            Self::Failed { message } => Some(message),
        }
    }

    /// Reads it from a process; none means that the process ended without a word.
    pub(crate) fn receive(from: impl io::Read) -> Option<Self> {
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}

/// Runs a host from the first directory to the last; called in a process of its own.
pub fn keep(spec: &Spec) -> Result<()> {
    // Out of the caller's terminal and directory: a Ctrl-C there is for the caller.
    rustix::process::setsid().during("leave", "the caller's session")?;
    std::env::set_current_dir("/").during("enter", "/")?;
    let result = take_name(spec).and_then(|lock| {
        let run = run(spec);
        let removed = sweep::remove(&spec.name, &spec.state(), lock);
        run.and(removed)
    });
    if let Err(error) = &result {
        let message = match error {
            // The caller says the rest of this sentence itself.
            Error::Start { message, .. } => message.clone(),
            other => other.chain(),
        };
        Report::Failed { message }.send();
    }
    result
}

fn take_name(spec: &Spec) -> Result<HostLock> {
    let deadline = Instant::now() + NAME_PATIENCE;
    loop {
        if let Some(mut lock) = HostLock::take(&spec.name)? {
            // Left by a host that died: its disk is not ours to start from.
            if let Some(state) = lock.state() {
                sweep::remove(&spec.name, &state, lock)?;
                continue;
            }
            if spec.state().exists() && !crate::registry::is_state(&spec.state()) {
                let there = io::Error::from(io::ErrorKind::AlreadyExists);
                return Err(there).during("take over", spec.state());
            }
            lock.claim(&spec.state())?;
            return Ok(lock);
        }
        if Record::find(&spec.name).is_ok() || Instant::now() > deadline {
            return Err(Error::Exists(spec.name.to_string()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run(spec: &Spec) -> Result<()> {
    let reboot = spec.state().join(REBOOT);
    let mut generation = 1;
    loop {
        let result = run_once(spec, generation);
        cgroup::remove(&spec.name, CGROUP_PATIENCE)?;
        match fs::remove_file(&reboot) {
            Ok(()) => generation += 1,
            Err(_) => return result,
        }
    }
}

fn run_once(spec: &Spec, generation: u32) -> Result<()> {
    let state = spec.state();
    let log_path = state.join(LOG);
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .during("open", &log_path)?;
    cgroup::create(&spec.name)?;
    let mut child = launch(spec, log)?;
    let report = child.stdout.take().and_then(Report::receive);
    let init = match report {
        Some(Report::Ready { init }) => init,
        other => return Err(failed_start(spec, other, &mut child, &log_path)),
    };
    let record = Record {
        name: spec.name.clone(),
        init: init.clone(),
        keep: spec.keep,
        generation,
        state,
    };
    if let Err(error) = record.write() {
        drop(init.kill());
        drop(child.wait());
        return Err(error);
    }
    Report::Ready { init }.send();
    child.wait().during("wait for", "unshare")?;
    Ok(())
}

fn launch(spec: &Spec, log: File) -> Result<Child> {
    let testbed = program::find_testbed()?;
    program::clean(&testbed)
        .arg("host-launch")
        .args(spec.args())
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .during("run", &testbed)
}

fn failed_start(spec: &Spec, report: Option<Report>, child: &mut Child, log: &Path) -> Error {
    // Init ends by itself after a failure; what says nothing is ended here.
    if report.is_none() {
        drop(child.kill());
    }
    drop(child.wait());
    // The log goes with the host, so its end is told here.
    let said = report
        .and_then(Report::failure)
        .unwrap_or_else(|| "its init ended without a word".to_owned());
    let message = format!("{said}; its log ends: {}", last_lines(log));
    Error::Start {
        name: spec.name.to_string(),
        message,
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut last: Vec<&str> = text.lines().rev().take(4).collect();
    last.reverse();
    last.join(" | ")
}

/// Ends a host's init so that the keeper starts it again over the same disk; returns the new record.
pub(crate) fn reboot(name: &HostName, patience: Duration) -> Result<Record> {
    let before = Record::find(name)?;
    let asked = before.state.join(REBOOT);
    fs::write(&asked, "").during("write", &asked)?;
    before.init.kill()?;
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(now) = Record::find(name)
            && now.generation > before.generation
        {
            return Ok(now);
        }
        if let Some(lock) = HostLock::take(name)? {
            // The keeper gave up: what it left is removed here.
            sweep::remove(name, &before.state, lock)?;
            return Err(Error::Start {
                name: name.to_string(),
                message: "it did not come up again".to_owned(),
            });
        }
        if Instant::now() > deadline {
            return Err(Error::Deadline {
                what: format!("the reboot of {name}"),
                seconds: patience.as_secs(),
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
