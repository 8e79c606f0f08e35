//! Commands inside a running host: in its cgroups, in all of its namespaces, with the caller's terminal.
//!
//! Owns no state. A process enters once and for good, before it has any thread. It never reads the
//! command's output; exit codes are the command's own, or 128 + N after signal N.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::error::{During, Error, Result};
use crate::registry::Record;
use crate::{cgroup, program};

/// A command to be run inside a host.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Variables added to the caller's environment.
    pub env: Vec<(String, String)>,
}

impl Entry {
    fn program(&self) -> Result<&OsStr> {
        let nothing = || io::Error::from(io::ErrorKind::InvalidInput);
        self.argv
            .first()
            .map(OsString::as_os_str)
            .ok_or_else(nothing)
            .during("run", "no command")
    }
}

/// How a child is waited for when its parent is asked to end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Grace {
    /// As long as the child takes.
    Unbounded,
    /// So long after the signal was passed on.
    Within(Duration),
}

/// Moves this process into the host; needs a process with a single thread.
fn go_inside(record: &Record) -> Result<()> {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let unknown = || Error::Unknown(record.name.to_string());
    let init = record.init.handle().ok_or_else(unknown)?;
    cgroup::join(&record.name, true)?;
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::PROCESS_ID;
    move_into_thread_name_spaces(init.as_fd(), all).during("enter host", record.name.as_str())?;
    // The same directory inside, where it is there (not below /run, for one).
    std::env::set_current_dir(&here)
        .or_else(|_| std::env::set_current_dir("/"))
        .during("enter", here)
}

/// Runs the command on the caller's terminal and returns its exit code.
pub fn foreground(record: &Record, entry: &Entry) -> Result<u8> {
    let name = entry.program()?;
    go_inside(record)?;
    let mut command = Command::new(name);
    command
        .args(entry.argv.get(1..).unwrap_or_default())
        .envs(entry.env.iter().cloned());
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        match tokio::process::Command::from(command).spawn() {
            Ok(child) => attend(child, &mut signals, Grace::Unbounded).await,
            Err(error) => Ok(refused(name, &error)),
        }
    })
}

/// What a shell says and returns for a command that cannot be run.
fn refused(name: &OsStr, error: &io::Error) -> u8 {
    eprintln!("testbed: cannot run {}: {error}", name.display());
    if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    }
}

/// A runtime on this thread alone.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during("start", "the runtime")
}

/// The signals by which a person or a supervisor ends a command.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// From here on these signals no longer end this process.
    pub(crate) fn listen() -> Result<Self> {
        let on = |kind| signal(kind).during("listen to", "signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }
}

/// Waits for a child, passing on what this process is told; the exit code in a shell's terms.
pub(crate) async fn attend(
    mut child: tokio::process::Child,
    signals: &mut Signals,
    grace: Grace,
) -> Result<u8> {
    let mut last: Option<(Signal, Instant)> = None;
    loop {
        let patience = match (grace, last) {
            (Grace::Within(time), Some((_, since))) => Some(since + time),
            _ => None,
        };
        tokio::select! {
            status = child.wait() => return status.map(code).during("wait for", "the command"),
            told = signals.next() => {
                pass_on(&child, told);
                last = last.or(Some((told, Instant::now())));
            }
            () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                let signal = last.map_or(Signal::KILL, |(signal, _)| signal);
                return Ok(u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX));
            }
        }
    }
}

fn pass_on(child: &tokio::process::Child, signal: Signal) {
    // A key on the terminal reaches the whole foreground group, the child too: telling it again would
    // be the second Ctrl-C that many programs take for "at once".
    let from_keyboard = signal == Signal::INT || signal == Signal::QUIT;
    if from_keyboard && is_in_foreground() {
        return;
    }
    let pid = child
        .id()
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        // It may have ended in this moment.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn is_in_foreground() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else {
        return false;
    };
    rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// A status as a shell would give it: the exit code, or 128 + N after signal N.
fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Starts the command in a session of its own, its output appended to `log`; returns its pid on the machine.
pub fn detached(record: &Record, entry: &Entry, log: &Path) -> Result<u32> {
    entry.program()?;
    let testbed = program::find_testbed()?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .during("open", log)?;
    // The machine's /proc knows the daemon by the machine's pid; inside there is no way to learn it.
    let machine_proc = File::open("/proc").during("open", "/proc")?;
    let (mut hear, say) = io::pipe().during("make", "a pipe")?;
    go_inside(record)?;
    // The daemon's parent ends inside, so that it is init, not someone on the machine, that reaps it.
    let status = Command::new("setsid")
        .arg("--fork")
        .arg(&testbed)
        .args(["host-daemon", "--"])
        .args(&entry.argv)
        .envs(entry.env.iter().cloned())
        .stdin(machine_proc)
        .stdout(say)
        .stderr(log)
        .status()
        .during("run", "setsid")?;
    let mut heard = String::new();
    hear.read_to_string(&mut heard)
        .during("hear", "the daemon")?;
    let (pid, error) = heard.split_once('\n').unwrap_or((&heard, ""));
    match pid.parse() {
        Ok(pid) if error.is_empty() => Ok(pid),
        _ => Err(Error::Program {
            program: "the command".into(),
            status: status.to_string(),
            stderr: error.to_owned(),
        }),
    }
}

/// Becomes the detached command: stdin is the machine's `/proc`, stdout a pipe to the starter, stderr the log.
pub fn daemon(argv: &[OsString]) -> Result<std::convert::Infallible> {
    let entry = Entry {
        argv: argv.to_vec(),
        env: Vec::new(),
    };
    let name = entry.program()?;
    let me = rustix::fs::readlinkat(io::stdin().as_fd(), "self", Vec::new())
        .during("read", "the machine's /proc")?;
    // Closed by exec: end-of-file after the pid says that the command runs.
    let starter = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .during("keep", "the pipe")?;
    let mut starter = File::from(starter);
    let log = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .during("keep", "the log")?;
    writeln!(starter, "{}", me.to_string_lossy()).during("tell", "the starter")?;
    let error = Command::new(name)
        .args(argv.get(1..).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .exec();
    drop(write!(starter, "cannot run {}: {error}", name.display()));
    Err(error).during("run", name)
}
