//! Starts the process of an order, with pipes or with a terminal.
//!
//! The common case, a command as the user that the agent itself is, goes by posix_spawn, which
//! neither copies page tables nor runs code of ours in the child: the program is looked up here and not in the
//! child, and the process group is an attribute. Other users and terminals need steps between fork
//! and exec (see [`super::fork`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use api::session::WindowSize;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Uid, chdir, getegid, geteuid};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::children::{self, Status};
use super::failure::Failure;
use super::fork::Steps;
use super::order::{Order, Unrunnable};
use super::terminal::Terminal;

/// Why no process was started.
pub enum Refusal {
    /// The program can't be run, which is the command's own outcome.
    Unrunnable(Unrunnable),
    /// Anything else.
    Failure(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// A process's number and where its status will come.
pub type Started = (Pid, oneshot::Receiver<Status>);

/// Our ends of a command's pipes.
pub struct Pipes {
    /// None when it reads nothing.
    pub stdin: Option<pipe::Sender>,
    /// What it writes to standard output.
    pub stdout: pipe::Receiver,
    /// What it writes to standard error.
    pub stderr: pipe::Receiver,
}

/// Starts a command with pipes; without `stdin` its standard input is empty.
pub fn with_pipes(order: &Order, stdin: bool) -> Result<(Started, Pipes), Refusal> {
    start(order, false, |command| {
        pipes(command, order, stdin).map_err(|cause| Failure::Kernel {
            what: "the command's pipes",
            cause,
        })
    })
}

/// Starts a command with a terminal of this size.
pub fn with_terminal(order: &Order, size: WindowSize) -> Result<(Started, Terminal), Refusal> {
    start(order, true, |command| {
        Terminal::open(command, order, size).map_err(|cause| Failure::Kernel {
            what: "a terminal",
            cause,
        })
    })
}

fn start<T>(
    order: &Order,
    terminal: bool,
    connect: impl Fn(&mut Command) -> Result<T, Failure>,
) -> Result<(Started, T), Refusal> {
    let path = order.resolve().map_err(Refusal::Unrunnable)?;
    let attempt = |program: &Path, script: Option<&Path>| {
        let mut command = command(order, program, script, terminal);
        let ours = connect(&mut command)?;
        let started = children::start(|| {
            if is_plain(order, terminal) {
                spawn_there(&mut command, order)
            } else {
                command.spawn().map_err(refusal)
            }
        })?;
        Ok((started, ours))
    };
    match attempt(&path, None) {
        // A script without `#!` is one for the shell, as everywhere.
        Err(Refusal::Unrunnable(Unrunnable::NotExecutable(error)))
            if Errno::from_io_error(&error) == Some(Errno::NOEXEC) =>
        {
            attempt(Path::new("/bin/sh"), Some(&path))
        }
        other => other,
    }
}

fn command(order: &Order, program: &Path, script: Option<&Path>, terminal: bool) -> Command {
    let mut command = Command::new(program);
    match script {
        Some(script) => command.arg(script),
        None => command.arg0(order.program()),
    };
    command
        .args(order.argv.iter().skip(1))
        .env_clear()
        .envs(&order.env);
    if !terminal {
        command.process_group(0);
    }
    if !is_plain(order, terminal) {
        let user = (!is_ours(order)).then_some(&order.account);
        Steps::new(user, order.c_directory.clone(), terminal).before(&mut command);
    }
    command
}

/// Whether nothing has to be done between fork and exec.
fn is_plain(order: &Order, terminal: bool) -> bool {
    is_ours(order) && !terminal
}

/// Starts a process in its directory by being there: the standard library finds the file action for
/// it only in a C library that is linked dynamically, and falls back to fork in the agent's static
/// one. Nobody else starts a process meanwhile, and nothing of the agent uses relative paths.
fn spawn_there(command: &mut Command, order: &Order) -> Result<Child, Refusal> {
    chdir(&order.c_directory).map_err(|e| {
        let (directory, cause) = (&order.directory, io::Error::from(e));
        Failure::request(format!(
            "the directory {directory:?} can't be entered: {cause}"
        ))
    })?;
    let child = command.spawn().map_err(refusal);
    // Away again: whoever stays in a directory keeps its file system from being unmounted.
    let _ = chdir(c"/");
    child
}

/// Whether the command runs as who the agent is.
fn is_ours(order: &Order) -> bool {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    (order.account.uid, order.account.gid) == (uid, gid)
}

/// What an error of fork and exec means.
fn refusal(error: io::Error) -> Refusal {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::PERM) => {
            Refusal::Failure(Failure::Kernel {
                what: "a process",
                cause: error,
            })
        }
        _ => Refusal::Unrunnable(Unrunnable::of(error)),
    }
}

fn pipes(command: &mut Command, order: &Order, stdin: bool) -> io::Result<Pipes> {
    let give = |theirs: &OwnedFd| give(theirs, order);
    let stdin = if stdin {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&ours, true)?;
        give(&theirs);
        command.stdin(theirs);
        Some(pipe::Sender::from_owned_fd_unchecked(ours)?)
    } else {
        command.stdin(Stdio::null());
        None
    };
    let from = || -> io::Result<(OwnedFd, pipe::Receiver)> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&ours, true)?;
        give(&theirs);
        Ok((theirs, pipe::Receiver::from_owned_fd_unchecked(ours)?))
    };
    let (theirs, stdout) = from()?;
    command.stdout(theirs);
    let (theirs, stderr) = from()?;
    command.stderr(theirs);
    Ok(Pipes {
        stdin,
        stdout,
        stderr,
    })
}

/// So that the command can open `/dev/stdout`, `/dev/tty` and the like, whoever it runs as. What is not ours
/// to give away can still be used, only not opened again.
pub fn give(theirs: impl AsFd, order: &Order) {
    if !is_ours(order) {
        let _ = rustix::fs::fchown(theirs, Some(Uid::from_raw(order.account.uid)), None);
    }
}
