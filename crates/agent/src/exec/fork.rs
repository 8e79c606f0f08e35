//! Makes a process: the one place of the agent with unsafe code.
//!
//! ```text
//!   spawn ──clone3 (as vfork: the calling thread waits)──▶ live: signals, session, mark, user,
//!     ▲                                                           directory, streams
//!     └── number of the process, or the step that failed ◀── execve ──┘
//! ```
//! The new process shares the agent's memory until it becomes the program, so that no page table is
//! copied, however large the agent is. With another user's rights it gets a copy instead: a change
//! of rights marks the memory, which would be the agent's, as one that must not be looked into.
//!
//! Own code instead of the C library's posix_spawn for what that can't do: begin life in a control
//! group, enter a directory without moving the whole agent there (so that starts need not wait for
//! each other), take a terminal.
//!
//! The C library has no function for clone3, so there are some lines of assembly for it; on other
//! processors than x86_64 the older call does the same, only entering the control group is slower.

#![expect(
    unsafe_code,
    reason = "there is no safe way to run code in a process that is about to become another program"
)]

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    Gid, Pid, Resource, Rlimit, Signal, Uid, WaitOptions, chdir, getrlimit, ioctl_tiocsctty,
    setpgid, setrlimit, setsid, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// What a process is to become, made before it is: in it nothing can be allocated.
#[derive(Clone, Copy)]
pub struct Birth<'a> {
    /// The program's path.
    pub program: &'a CStr,
    /// Its arguments, its name among them.
    pub arguments: &'a [CString],
    /// `NAME=VALUE` of each variable.
    pub variables: &'a [CString],
    /// The directory it begins in.
    pub directory: &'a CStr,
    /// Standard input, output and error; none of them has one of these three numbers in the agent.
    pub streams: [BorrowedFd<'a>; 3],
    /// Who it runs as, unless as who the agent is.
    pub user: Option<&'a User>,
    /// Whether it leads a session whose terminal its standard input is, and not a process group.
    pub terminal: bool,
    /// Its limit of resident memory, by which it is known (see `process_tree::mark`).
    pub mark: Option<u64>,
    /// Whether the agent's place among those ended for lack of memory has to be put aside.
    pub out_of_favour: bool,
    /// The directory of the control group it begins in, unless it begins in the agent's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The rights of a user.
pub struct User {
    /// All groups.
    pub groups: Vec<Gid>,
    /// The user's own group.
    pub gid: Gid,
    /// The user.
    pub uid: Uid,
}

/// A step on the way to the program, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the process in its control group.
    Cgroup = 1,
    /// Making the process.
    Process,
    /// Leading a session with its terminal, or a process group.
    Session,
    /// Becoming the user.
    User,
    /// Entering the directory.
    Directory,
    /// Taking the streams.
    Streams,
    /// Becoming the program.
    Program,
}

const STEPS: [Step; 7] = [
    Step::Cgroup,
    Step::Process,
    Step::Session,
    Step::User,
    Step::Directory,
    Step::Streams,
    Step::Program,
];

/// Why no program runs: nothing is left of the process.
#[derive(Debug)]
pub struct NotBorn {
    /// What failed.
    pub step: Step,
    /// The kernel's answer.
    pub cause: io::Error,
}

impl NotBorn {
    fn at(step: Step) -> impl Fn(Errno) -> Self {
        move |errno| Self {
            step,
            cause: errno.into(),
        }
    }
}

/// Makes the process. Its status is the caller's to take; until the caller knows the number, nobody
/// else may.
pub fn spawn(birth: &Birth<'_>) -> Result<Pid, NotBorn> {
    spawn_by(make, birth)
}

type Make = fn(&Task<'_>, &Space) -> Result<Pid, NotBorn>;

fn spawn_by(make: Make, birth: &Birth<'_>) -> Result<Pid, NotBorn> {
    let arguments = pointers(birth.arguments);
    let variables = pointers(birth.variables);
    SPACE.with_borrow_mut(|space| {
        let space = match space {
            Some(space) => space,
            none => none.insert(Space::map().map_err(NotBorn::at(Step::Process))?),
        };
        let report = space.report();
        report.step.store(0, Ordering::Relaxed);
        let task = Task {
            birth,
            arguments: &arguments,
            variables: &variables,
            report,
            by_older_call: false,
        };
        let pid = make(&task, space)?;
        let failed = report.step.load(Ordering::Relaxed);
        match STEPS.into_iter().find(|step| *step as i32 == failed) {
            None => Ok(pid),
            Some(step) => {
                while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
                let cause = io::Error::from_raw_os_error(report.errno.load(Ordering::Relaxed));
                Err(NotBorn { step, cause })
            }
        }
    })
}

fn pointers(of: &[CString]) -> Vec<*const c_char> {
    let null = std::iter::once(ptr::null());
    of.iter().map(|text| text.as_ptr()).chain(null).collect()
}

/// What the new process is told, and where it tells.
struct Task<'a> {
    birth: &'a Birth<'a>,
    arguments: &'a [*const c_char],
    variables: &'a [*const c_char],
    report: &'a Report,
    /// Made with the agent's signal handlers and in the agent's control group.
    by_older_call: bool,
}

/// What a process says that could not become the program.
struct Report {
    /// A [`Step`], or 0.
    step: AtomicI32,
    errno: AtomicI32,
}

const SPACE_BYTES: usize = 64 << 10;

thread_local! {
    /// One for each thread that starts processes, used again: the thread waits until the process
    /// needs it no more.
    static SPACE: RefCell<Option<Space>> = const { RefCell::new(None) };
}

/// A report, and above it the stack on which a new process lives until it becomes the program.
/// Shared memory, so that the report arrives also from a process with a copy of all other memory.
struct Space(NonNull<c_void>);

impl Space {
    fn map() -> Result<Self, Errno> {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), SPACE_BYTES, access, kind, -1, 0) };
        match NonNull::new(base) {
            Some(base) if base.as_ptr() != libc::MAP_FAILED => Ok(Self(base)),
            _ => Err(last_error()),
        }
    }

    fn report(&self) -> &Report {
        // SAFETY: the mapping is page-aligned and zeroed, lives as long as `self`, and its first bytes
        // are only ever used as this.
        unsafe { self.0.cast().as_ref() }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody uses it any more: a process that does
        // keeps this thread waiting.
        unsafe { libc::munmap(self.0.as_ptr(), SPACE_BYTES) };
    }
}

const SHARE_MEMORY: u64 = 0x100;
const WAIT_FOR_EXEC: u64 = 0x4000;
const CLEAR_HANDLERS: u64 = 0x1_0000_0000;

fn make(task: &Task<'_>, space: &Space) -> Result<Pid, NotBorn> {
    let flags = flags(task) | CLEAR_HANDLERS;
    let group = task.birth.cgroup.map(|directory| directory.as_raw_fd());
    let made = match clone3(flags, group, task, space) {
        // Kernels before 5.5 (5.7 for groups), other processors, and sandboxes that know only the older call.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => return make_by_older_call(task, space),
        made => made,
    };
    made.map_err(NotBorn::at(match group {
        Some(_) => Step::Cgroup,
        None => Step::Process,
    }))
}

fn make_by_older_call(task: &Task<'_>, space: &Space) -> Result<Pid, NotBorn> {
    clone(flags(task), task, space).map_err(NotBorn::at(Step::Process))
}

fn flags(task: &Task<'_>) -> u64 {
    match task.birth.user {
        None => WAIT_FOR_EXEC | SHARE_MEMORY,
        Some(_) => WAIT_FOR_EXEC,
    }
}

/// The newer call, without the C library, which has no function for it.
#[cfg(target_arch = "x86_64")]
fn clone3(flags: u64, group: Option<c_int>, task: &Task<'_>, space: &Space) -> Result<Pid, Errno> {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let into = group.map_or(0, |_| INTO_CGROUP);
    // SAFETY: all zeros are a valid value of this struct of numbers.
    let mut order: libc::clone_args = unsafe { mem::zeroed() };
    order.flags = flags | into;
    order.exit_signal = libc::SIGCHLD as u64;
    order.stack = space.0.as_ptr() as u64;
    order.stack_size = SPACE_BYTES as u64;
    order.cgroup = group.map_or(0, |fd| fd as u64);
    let answer: i64;
    // SAFETY: In the agent this is a system call and nothing more. In the new process it never gets
    // past the call of `live`, which does not return; that has a stack of its own, the upper part of
    // `space`, and reads only `task`, which outlives it because this thread waits for it (vfork).
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => answer,
            in("rdi") &raw const order,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") ptr::from_ref(task),
            in("r13") live as extern "C" fn(*mut c_void) -> c_int,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let number = i32::try_from(answer).unwrap_or_default();
    Pid::from_raw(number.max(0)).ok_or_else(|| Errno::from_raw_os_error(number.saturating_neg()))
}

#[cfg(not(target_arch = "x86_64"))]
fn clone3(_: u64, _: Option<c_int>, _: &Task<'_>, _: &Space) -> Result<Pid, Errno> {
    Err(Errno::NOSYS)
}

/// The older call. The new process inherits the agent's signal handlers, which must not run in it:
/// until it has done away with them no signal reaches it. It goes to its control group by itself, for which
/// the kernel makes it wait until no process of the machine is being made: some milliseconds.
fn clone(flags: u64, task: &Task<'_>, space: &Space) -> Result<Pid, Errno> {
    let task = Task {
        by_older_call: true,
        ..*task
    };
    let flags = c_int::try_from(flags).unwrap_or_default() | libc::SIGCHLD;
    let task = ptr::from_ref(&task).cast_mut().cast();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: The signal sets are written before they are read. The new process runs `live` on the
    // upper part of `space`, which grows downwards from its page-aligned end, and reads only `task`,
    // which outlives it because this thread waits for it (vfork).
    let number = unsafe {
        let mut all = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let number = libc::clone(live, space.0.as_ptr().byte_add(SPACE_BYTES), flags, task);
        let number = if number < 0 {
            -last_error().raw_os_error()
        } else {
            number
        };
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        number
    };
    Pid::from_raw(number.max(0)).ok_or_else(|| Errno::from_raw_os_error(number.saturating_neg()))
}

/// The new process, to its end or to the program. It has one thread, and maybe the agent's memory:
/// no allocation, no lock, no unwinding.
extern "C" fn live(task: *mut c_void) -> c_int {
    // SAFETY: `make` gave a task, which outlives this.
    let task = unsafe { &*task.cast_const().cast::<Task<'_>>() };
    let Err((step, errno)) = task.live();
    task.report
        .errno
        .store(errno.raw_os_error(), Ordering::Relaxed);
    task.report.step.store(step as i32, Ordering::Relaxed);
    // SAFETY: ends this process and runs nothing of the agent's.
    unsafe { libc::_exit(127) }
}

impl Task<'_> {
    fn live(&self) -> Result<Infallible, (Step, Errno)> {
        let at = |step| move |errno| (step, errno);
        let birth = self.birth;
        reset_signals(self.by_older_call);
        if let Some(group) = birth.cgroup.filter(|_| self.by_older_call) {
            enter(group).map_err(at(Step::Cgroup))?;
        }
        if birth.terminal {
            let [stdin, ..] = birth.streams;
            setsid().map_err(at(Step::Session))?;
            ioctl_tiocsctty(stdin).map_err(at(Step::Session))?;
        } else {
            setpgid(None, None).map_err(at(Step::Session))?;
        }
        if birth.out_of_favour {
            // Not the agent's, even with its memory: the kernel knows vfork. Without it the command runs too.
            let _ = put_favour_aside();
        }
        if let Some(mark) = birth.mark {
            set_mark(mark);
        }
        if let Some(user) = birth.user {
            // The user last: after that there is no way back.
            set_thread_groups(&user.groups).map_err(at(Step::User))?;
            set_thread_res_gid(user.gid, user.gid, user.gid).map_err(at(Step::User))?;
            set_thread_res_uid(user.uid, user.uid, user.uid).map_err(at(Step::User))?;
        }
        chdir(birth.directory).map_err(at(Step::Directory))?;
        let [stdin, stdout, stderr] = birth.streams;
        dup2_stdin(stdin).map_err(at(Step::Streams))?;
        dup2_stdout(stdout).map_err(at(Step::Streams))?;
        dup2_stderr(stderr).map_err(at(Step::Streams))?;
        let (arguments, variables) = (self.arguments.as_ptr(), self.variables.as_ptr());
        // SAFETY: a string that ends with NUL, and two lists of such that end with null.
        unsafe { libc::execve(birth.program.as_ptr(), arguments, variables) };
        Err((Step::Program, last_error()))
    }
}

/// As a program expects them: all let through, and SIGPIPE, which the agent ignores, with its effect.
fn reset_signals(inherits_handlers: bool) {
    const LAST: c_int = 64;
    // SAFETY: zeros are the default action without flags; the sets are written before they are read;
    // the handlers are this process's own and no longer the agent's.
    unsafe {
        let default: libc::sigaction = mem::zeroed();
        libc::sigaction(libc::SIGPIPE, &raw const default, ptr::null_mut());
        if inherits_handlers {
            for signal in 1..=LAST {
                let mut inherited: libc::sigaction = mem::zeroed();
                let known = libc::sigaction(signal, ptr::null(), &raw mut inherited) == 0;
                if known && inherited.sa_sigaction != libc::SIG_IGN {
                    libc::sigaction(signal, &raw const default, ptr::null_mut());
                }
            }
        }
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

fn enter(group: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(group, c"cgroup.procs", flags, Mode::empty())?;
    tell(file, b"0")
}

fn put_favour_aside() -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
    tell(file, b"0")
}

fn tell(file: OwnedFd, what: &[u8]) -> Result<(), Errno> {
    let told = rustix::io::write(&file, what);
    // Closed by the exec; closing it here would be the C library's business.
    mem::forget(file);
    told.map(drop)
}

/// Only where it is no stricter than what holds already.
fn set_mark(mark: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Rss);
    // One that is marked itself may mark what it starts.
    let is_free = |limit: Option<u64>| limit.is_none_or(|limit| limit >= process_tree::MARKED);
    if is_free(current) && maximum.is_none_or(|maximum| maximum >= mark) {
        let marked = Rlimit {
            current: Some(mark),
            maximum,
        };
        // Without a mark a process is known by its variable.
        let _ = setrlimit(Resource::Rss, marked);
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The number of a child that has ended and whose status nobody took; the status stays.
pub fn ended_child() -> Result<Option<Pid>, Errno> {
    // SAFETY: zeros are a valid value, which says "nobody"; the kernel fills it in before it is read.
    unsafe {
        let mut child: libc::siginfo_t = mem::zeroed();
        let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        match libc::waitid(libc::P_ALL, 0, &raw mut child, look) {
            0 => Ok(Pid::from_raw(child.si_pid())),
            _ => Err(last_error()),
        }
    }
}

/// The signal of this number, 1 to 64; none for the two that threads use among themselves.
pub fn signal(number: i32) -> Option<Signal> {
    const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
    Signal::from_named_raw(number).or_else(|| {
        // SAFETY: the number is a valid signal, and it is only ever sent to other processes, whose C
        // library may use it as it likes.
        REAL_TIME
            .contains(&number)
            .then(|| unsafe { Signal::from_raw_unchecked(number) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::cgroup::{Group, Groups};
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    /// What a shell line prints and its code, or the step that failed.
    fn run(make: Make, birth: &Birth<'_>) -> Result<(String, Option<i32>), Step> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let nothing = File::open("/dev/null").unwrap();
        let streams = [nothing.as_fd(), to.as_fd(), to.as_fd()];
        let born = spawn_by(make, &Birth { streams, ..*birth });
        let pid = born.map_err(|error| error.step)?;
        drop(to);
        let mut text = String::new();
        File::from(from).read_to_string(&mut text).unwrap();
        let status = waitpid(Some(pid), WaitOptions::empty()).unwrap();
        Ok((text, status.and_then(|(_, status)| status.exit_status())))
    }

    #[test]
    fn both_calls_make_the_same_process() {
        let line = c"pwd; echo $WORD; cut -d ' ' -f 5 /proc/$$/stat; echo $$; ulimit -S -m;
            grep ^0:: /proc/$$/cgroup; exit 7";
        let groups = Groups::of_this_process().map(Arc::new);
        let group = groups.ok().and_then(|groups| groups.claim());
        if group.is_none() {
            println!("SKIPPED: no control groups can be made here");
        }
        let birth = Birth {
            program: c"/bin/sh",
            arguments: &[c"sh".into(), c"-c".into(), line.into()],
            variables: &[c"WORD=of its own".into(), c"PATH=/usr/bin:/bin".into()],
            directory: c"/tmp",
            streams: [rustix::stdio::stdin(); 3],
            user: None,
            terminal: false,
            mark: Some(process_tree::MARKED | 7),
            out_of_favour: false,
            cgroup: group.as_ref().and_then(Group::directory),
        };
        let elsewhere = Birth {
            directory: c"/no/such",
            ..birth
        };
        for make in [make as Make, make_by_older_call] {
            let (text, code) = run(make, &birth).unwrap();
            let words: Vec<&str> = text.lines().collect();
            assert_eq!((&words[..2], code), (&["/tmp", "of its own"][..], Some(7)));
            assert_eq!(words[2], words[3], "it leads a process group");
            let kibibytes = (process_tree::MARKED | 7) / 1024;
            assert_eq!(words[4], kibibytes.to_string());
            let is_inside = text.contains("/proximity-commands-");
            assert_eq!(is_inside, group.is_some(), "{text}");
            assert_eq!(run(make, &elsewhere), Err(Step::Directory));
        }
    }
}
