//! Starts the process of an order, with pipes or with a terminal, in a control group of its own where
//! there are such. Everything is made ready here; what the new process itself has to do stands in
//! [`super::fork`].

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::LazyLock;

use api::session::WindowSize;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Pid, Uid, getegid, geteuid};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::Slot;
use super::cgroup::Group;
use super::children::{self, Status};
use super::failure::Failure;
use super::fork::{self, Birth, NotBorn, Step, User};
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

/// A process that was started.
pub struct Started {
    /// Its number.
    pub pid: Pid,
    /// Where its status will come.
    pub status: oneshot::Receiver<Status>,
    /// The control group that all of its tree begins in.
    pub group: Option<Group>,
}

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
pub fn with_pipes(order: &Order, slot: &Slot, stdin: bool) -> Result<(Started, Pipes), Refusal> {
    start(order, slot, false, || {
        pipes(order, stdin).map_err(kernel("the command's pipes"))
    })
}

/// Starts a command with a terminal of this size.
pub fn with_terminal(
    order: &Order,
    slot: &Slot,
    size: WindowSize,
) -> Result<(Started, Terminal), Refusal> {
    start(order, slot, true, || {
        Terminal::open(order, size).map_err(kernel("a terminal"))
    })
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |cause| Failure::Kernel { what, cause }
}

fn start<T>(
    order: &Order,
    slot: &Slot,
    terminal: bool,
    connect: impl FnOnce() -> Result<(T, [OwnedFd; 3]), Failure>,
) -> Result<(Started, T), Refusal> {
    let program = order.resolve().map_err(Refusal::Unrunnable)?;
    let program = text(program.into_os_string().into_vec())?;
    let arguments = order.argv.iter().map(|argument| text(argument.as_str()));
    let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
    let variables = order.env.iter().map(|(k, v)| text(format!("{k}={v}")));
    let variables = variables.collect::<Result<Vec<_>, _>>()?;
    let user = (!is_ours(order)).then(|| user(order));
    let (ours, theirs) = connect()?;
    let [stdin, stdout, stderr] = &theirs;
    let birth = Birth {
        program: &program,
        arguments: &arguments,
        variables: &variables,
        directory: &order.c_directory,
        streams: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        user: user.as_ref(),
        terminal,
        mark: process_tree::mark(&order.cookie),
        out_of_favour: *IN_FAVOUR,
        cgroup: None,
    };
    let started = match begin(&birth, slot) {
        // A script without `#!` is one for the shell, as everywhere.
        Err(NotBorn {
            step: Step::Program,
            cause,
        }) if Errno::from_io_error(&cause) == Some(Errno::NOEXEC) => {
            let shell = [c"/bin/sh".to_owned(), program.clone()];
            let rest = arguments.iter().skip(1).cloned();
            let arguments: Vec<CString> = shell.into_iter().chain(rest).collect();
            let program = c"/bin/sh";
            let birth = Birth {
                program,
                arguments: &arguments,
                ..birth
            };
            begin(&birth, slot)
        }
        started => started,
    };
    Ok((started.map_err(|error| refusal(error, order))?, ours))
}

/// Starts a process in a control group if there is one for it.
fn begin(birth: &Birth<'_>, slot: &Slot) -> Result<Started, NotBorn> {
    if let Some(group) = slot.group() {
        let inside = Birth {
            cgroup: group.directory(),
            ..*birth
        };
        match children::start(|| fork::spawn(&inside)) {
            Err(NotBorn {
                step: Step::Cgroup,
                cause,
            }) => group.give_up(&cause),
            started => return Started::of(started, Some(group)),
        }
    }
    Started::of(children::start(|| fork::spawn(birth)), None)
}

impl Started {
    fn of(
        started: Result<(Pid, oneshot::Receiver<Status>), NotBorn>,
        group: Option<Group>,
    ) -> Result<Self, NotBorn> {
        started.map(|(pid, status)| Self { pid, status, group })
    }
}

fn text(of: impl Into<Vec<u8>>) -> Result<CString, Failure> {
    CString::new(of).map_err(|_| Failure::request("NUL bytes can't be passed to a program"))
}

/// Whether the kernel was told to end the agent last (or first) when memory runs out, which is not
/// meant for its commands.
static IN_FAVOUR: LazyLock<bool> = LazyLock::new(|| {
    let favour = std::fs::read_to_string("/proc/self/oom_score_adj");
    favour.is_ok_and(|favour| favour.trim() != "0")
});

/// Who the agent is, for ever.
static OWN: LazyLock<(u32, u32)> = LazyLock::new(|| (geteuid().as_raw(), getegid().as_raw()));

/// Whether the command runs as who the agent is.
fn is_ours(order: &Order) -> bool {
    (order.account.uid, order.account.gid) == *OWN
}

fn user(order: &Order) -> User {
    let groups = order.account.groups.iter();
    User {
        groups: groups.map(|group| Gid::from_raw(*group)).collect(),
        gid: Gid::from_raw(order.account.gid),
        uid: Uid::from_raw(order.account.uid),
    }
}

/// What it means that a process was not born.
fn refusal(NotBorn { step, cause }: NotBorn, order: &Order) -> Refusal {
    let kernel = |cause| Refusal::Failure(kernel("a process")(cause));
    match (step, Errno::from_io_error(&cause)) {
        (Step::Directory, _) => {
            let directory = &order.directory;
            let what = format!("the directory {directory:?} can't be entered: {cause}");
            Failure::request(what).into()
        }
        (
            Step::Program,
            Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::PERM),
        ) => kernel(cause),
        (Step::Program, _) => Refusal::Unrunnable(Unrunnable::of(cause)),
        _ => kernel(cause),
    }
}

fn pipes(order: &Order, stdin: bool) -> io::Result<(Pipes, [OwnedFd; 3])> {
    let (stdin, their_stdin) = if stdin {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&ours, true)?;
        give(&theirs, order);
        (Some(pipe::Sender::from_owned_fd_unchecked(ours)?), theirs)
    } else {
        (None, File::open("/dev/null")?.into())
    };
    let from = || -> io::Result<(pipe::Receiver, OwnedFd)> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&ours, true)?;
        give(&theirs, order);
        Ok((pipe::Receiver::from_owned_fd_unchecked(ours)?, theirs))
    };
    let (stdout, their_stdout) = from()?;
    let (stderr, their_stderr) = from()?;
    let ours = Pipes {
        stdin,
        stdout,
        stderr,
    };
    Ok((ours, [their_stdin, their_stdout, their_stderr]))
}

/// So that the command can open `/dev/stdout`, `/dev/tty` and the like, whoever it runs as. What is not ours
/// to give away can still be used, only not opened again.
pub fn give(theirs: impl AsFd, order: &Order) {
    if !is_ours(order) {
        let _ = rustix::fs::fchown(theirs, Some(Uid::from_raw(order.account.uid)), None);
    }
}
