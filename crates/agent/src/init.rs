//! Process 1 of a small guest: mounts what programs expect, brings the loopback up, reaps orphans
//! (which [`crate::exec::Processes`] does while it serves), and ends the guest when it is told to.
//!
//! ```text
//!   prepare ──▶ serve ──SIGRTMIN+3, SIGPWR, SIGTERM, SIGINT──▶ SIGTERM to all ──gone, or 1 s──▶
//!       SIGKILL to all ──▶ sync, power off
//! ```
//! What is there already is left as it is: a container comes with most of it. Writes no file. Refuses
//! to be anything but process 1, because it signals every process it can see.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getrlimit, kill_process_group, setrlimit,
};
use rustix::system::{RebootCommand, reboot};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::exec;

/// How long processes may take to end by themselves.
const GRACE: Duration = Duration::from_secs(1);
/// How many descriptors process 1 may have open.
const DESCRIPTORS: u64 = 16384;
/// How often is looked whether all have ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// `SIGRTMIN+3`, with which a container is told to halt (systemd(1)); as C libraries count, since they
/// keep the first two for themselves.
const HALT: i32 = 34 + 3;
/// `SIGPWR`: power is failing, or `lxc-stop`.
const POWER: i32 = 30;
const TERMINATE: i32 = 15;
const INTERRUPT: i32 = 2;

/// Why this can't be process 1 of a guest.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It is some other process.
    #[error("only process 1 of a guest may do this, and this is process {0}")]
    NotFirst(i32),
    /// A signal handler could not be installed.
    #[error("signals cannot be received: {0}")]
    Signal(#[source] io::Error),
}

/// A file system that programs expect.
struct Expected {
    at: &'static str,
    kind: &'static str,
    /// Is there when this exists, whoever mounted it.
    when_missing: &'static str,
    flags: MountFlags,
    options: &'static str,
    mode: u32,
}

const NOTHING_RUNS: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// In the order in which they are mounted. With an empty `when_missing` it is there when something
/// is mounted.
const EXPECTED: [Expected; 8] = [
    Expected {
        at: "/proc",
        kind: "proc",
        when_missing: "/proc/self/stat",
        flags: NOTHING_RUNS,
        options: "",
        mode: 0o555,
    },
    Expected {
        at: "/sys",
        kind: "sysfs",
        when_missing: "/sys/class",
        flags: NOTHING_RUNS,
        options: "",
        mode: 0o555,
    },
    // Version 2, in which commands get groups of their own: what is below is ours where it is mounted by
    // us. LXC leaves that to process 1.
    Expected {
        at: "/sys/fs/cgroup",
        kind: "cgroup2",
        when_missing: "",
        flags: NOTHING_RUNS,
        options: "nsdelegate",
        mode: 0o555,
    },
    Expected {
        at: "/dev",
        kind: "devtmpfs",
        when_missing: "/dev/null",
        flags: MountFlags::NOSUID,
        options: "mode=0755",
        mode: 0o755,
    },
    Expected {
        at: "/dev/pts",
        kind: "devpts",
        when_missing: "/dev/pts/ptmx",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: "newinstance,ptmxmode=0666,mode=0620,gid=5",
        mode: 0o755,
    },
    Expected {
        at: "/dev/shm",
        kind: "tmpfs",
        when_missing: "",
        flags: NO_DEVICES,
        options: "mode=1777",
        mode: 0o1777,
    },
    Expected {
        at: "/tmp",
        kind: "tmpfs",
        when_missing: "",
        flags: NO_DEVICES,
        options: "mode=1777",
        mode: 0o1777,
    },
    Expected {
        at: "/run",
        kind: "tmpfs",
        when_missing: "",
        flags: NO_DEVICES,
        options: "mode=0755",
        mode: 0o755,
    },
];

/// Makes the guest ready for programs. What can't be mounted is logged and done without: a guest that
/// lacks something can be looked into, one without process 1 can't.
pub fn prepare() -> Result<(), InitError> {
    first()?;
    for expected in &EXPECTED {
        if let Err(error) = provide(expected) {
            tracing::warn!(at = expected.at, %error, "a file system could not be mounted");
        }
    }
    if let Err(error) = loopback_up() {
        tracing::warn!(%error, "the loopback could not be brought up");
    }
    // Each command takes a few descriptors, and a thousand may run.
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            ..limit
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of descriptors could not be raised");
        }
    }
    Ok(())
}

/// Serves until the guest is told to halt, then ends every process and the guest. Returns only when the
/// machine can't be powered off; the end of process 1 ends a container all the same. When `serve`
/// ends, the guest goes on without it.
pub async fn run(serve: impl Future<Output = ()>) -> Result<(), InitError> {
    first()?;
    exec::adopt().map_err(InitError::Signal)?;
    let halted = halted().map_err(InitError::Signal)?;
    let serve = async {
        serve.await;
        tracing::error!("the agent serves no more; the guest goes on");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = halted => {}
        () = serve => {}
    }
    tracing::info!("the guest halts");
    end_all().await;
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        tracing::debug!(%error, "the machine is not ours to power off; process 1 ends");
    }
    Ok(())
}

fn first() -> Result<(), InitError> {
    if getpid().is_init() {
        Ok(())
    } else {
        Err(InitError::NotFirst(getpid().as_raw_nonzero().get()))
    }
}

/// Listens from now on; ends with the first signal to halt.
fn halted() -> io::Result<impl Future<Output = ()>> {
    let of = |number| signal(SignalKind::from_raw(number));
    let mut signals = [of(HALT)?, of(POWER)?, of(TERMINATE)?, of(INTERRUPT)?];
    Ok(poll_fn(move |context| {
        let heard = |signal: &mut Signals| signal.poll_recv(context).is_ready();
        // Each is polled, so that each wakes this.
        let heard = signals.iter_mut().map(heard).filter(|heard| *heard).count();
        if heard > 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }))
}

/// Ends every process but this one. That all are gone shows in this one having no children: whoever
/// loses its parent becomes a child of process 1.
async fn end_all() {
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
        // The group of number 1 is how kill(2) is told "every process"; process 1 itself is spared.
        if let Err(error) = kill_process_group(Pid::INIT, signal)
            && error != Errno::SRCH
        {
            tracing::warn!(%error, "processes could not be signalled");
        }
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if exec::reap() {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }
    tracing::error!("processes are still there");
}

fn provide(expected: &Expected) -> io::Result<()> {
    if is_there(expected) {
        return Ok(());
    }
    let at = Path::new(expected.at);
    if !at.is_dir() {
        fs::create_dir(at)?;
        fs::set_permissions(at, Permissions::from_mode(expected.mode))?;
    }
    let options = CString::new(expected.options)?;
    let options = (!options.is_empty()).then_some(options.as_c_str());
    mount(expected.kind, at, expected.kind, expected.flags, options)?;
    Ok(())
}

fn is_there(expected: &Expected) -> bool {
    let mark = Path::new(expected.when_missing);
    if mark.is_absolute() {
        return mark.exists();
    }
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    let at = Path::new(expected.at);
    let parent = at.parent().and_then(device);
    device(at).is_some_and(|own| Some(own) != parent)
}

/// Asks the kernel (rtnetlink(7)) to set `IFF_UP` on interface 1, which is the loopback of every network
/// namespace. Up already is no error.
fn loopback_up() -> io::Result<()> {
    const NEW_LINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
    const UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family and type of any kind, index 1, flags and which of them to change.
    message.extend([0; 4]);
    message.extend(1i32.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    send(&socket, &message, SendFlags::empty())?;
    // The kernel answers before send returns.
    let mut answer = [0u8; 256];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    let error = answer.get(16..20).filter(|_| length >= 20);
    match error.and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => match i32::from_ne_bytes(bytes) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        },
        None => Err(io::Error::other("the kernel's answer is too short")),
    }
}
