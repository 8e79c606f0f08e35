//! PID 1 of a virtual host.
//!
//! ```text
//! mounts ▸ sysctls ▸ lxcfs ┐
//!            machines ▸ wire ▸ go ┴▸ node service ▸ ready ▸ reap for ever
//! ```
//! Owns everything inside the host: when it ends, the kernel ends all of it. It ends by itself when the
//! caller's pipe does (unless the host is kept) or when the host is not up in time. It never serves
//! requests: commands enter beside it.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{WaitOptions, wait};

use crate::error::{During, Error, Result};
use crate::keeper::{Report, Spec};
use crate::machine::{self, Machine, Role};
use crate::mounts;
use crate::registry::Process;
use crate::{cgroup, network, program};

/// Everything has to be up by then.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Limits of the machine, not of a namespace (they count per user namespace, and hosts share the machine's):
/// raised for everyone when too low, never lowered. With the usual 128 instances a host of 40 systemd
/// containers loses a dozen of them. What a host sets beside these is its own: `net.*` is the network
/// namespace's, the host name the uts namespace's.
const MACHINE_WIDE: [(&str, u64); 2] = [
    ("fs/inotify/max_user_instances", 8192),
    ("fs/inotify/max_user_watches", 524_288),
];

/// Is PID 1 until the host ends; returns only when the host did not come up.
pub fn run(spec: &Spec) -> Result<std::convert::Infallible> {
    if std::process::id() != 1 {
        let error = io::Error::other("it is PID 1 of a host and is started by `testbed host`");
        return Err(error).during("run", "host-init");
    }
    if !spec.keep {
        end_with_caller();
    }
    let (up, waits) = mpsc::channel();
    end_when_late(waits);
    match start(spec) {
        Ok((init, machines, lxcfs)) => {
            let _ = up.send(());
            Report::Ready { init }.send();
            reap(machines, &lxcfs)
        }
        Err(error) => {
            Report::Failed {
                message: error.chain(),
            }
            .send();
            Err(error)
        }
    }
}

/// End-of-file on stdin means that the caller is gone.
fn end_with_caller() {
    thread::spawn(|| {
        let mut stdin = io::stdin().lock();
        let mut byte = [0_u8; 1];
        while stdin.read(&mut byte).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
}

fn end_when_late(up: mpsc::Receiver<()>) {
    thread::spawn(move || {
        if up.recv_timeout(START_DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let message = format!("it was not up after {} s", START_DEADLINE.as_secs());
            Report::Failed { message }.send();
            std::process::exit(1);
        }
    });
}

fn start(spec: &Spec) -> Result<(Process, [Machine; 2], Child)> {
    // The machine's /proc is still mounted: it knows us by the machine's pid.
    let me = fs::read_link("/proc/self").during("read", "/proc/self")?;
    let pid = me
        .to_str()
        .and_then(|pid| pid.parse().ok())
        .unwrap_or_default();
    let init = Process::of(pid).ok_or(Error::Unknown(spec.name.to_string()))?;
    let hierarchies = cgroup::hierarchies()?;
    let mut router = Machine::spawn(Role::Router)?;
    let mut lan = Machine::spawn(Role::Lan)?;
    mounts::arrange(spec, &hierarchies)?;
    let mut lxcfs = spawn_lxcfs()?;
    write("/proc/sys/kernel/hostname", spec.name.as_str())?;
    write("/proc/sys/net/ipv4/ip_forward", "1")?;
    raise_limits();
    network::wire(router.namespace()?, lan.namespace()?)?;
    router.go()?;
    lan.go()?;
    if !spec.without_node_service {
        machine::serve_node()?;
    }
    await_lxcfs(&mut lxcfs)?;
    router.ready()?;
    lan.ready()?;
    Ok((init, [router, lan], lxcfs))
}

fn spawn_lxcfs() -> Result<Child> {
    program::clean("lxcfs")
        .args(["--foreground", "--pidfile=/run/lxcfs.pid", mounts::LXCFS])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .during("run", "lxcfs")
}

/// lxcfs does not say when it serves: its first file does.
fn await_lxcfs(lxcfs: &mut Child) -> Result<()> {
    let file = Path::new(mounts::LXCFS).join("proc/meminfo");
    while !file.exists() {
        if let Some(status) = lxcfs.try_wait().during("wait for", "lxcfs")? {
            let stderr = "it ended before it was mounted".to_owned();
            return Err(Error::Program {
                program: "lxcfs".into(),
                status: status.to_string(),
                stderr,
            });
        }
        // Bounded by the start deadline.
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).during("write", path)
}

fn raise_limits() {
    for (name, least) in MACHINE_WIDE {
        let path = Path::new("/proc/sys").join(name);
        let now = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if now.is_some_and(|now| now < least)
            && let Err(error) = fs::write(&path, least.to_string())
        {
            eprintln!("init: {name} stays below {least}: {error}");
        }
    }
}

/// Takes every orphan of the host; the machines stay as long as their pipes, which are held here.
fn reap(machines: [Machine; 2], lxcfs: &Child) -> ! {
    let _machines = machines;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().cast_unsigned() == lxcfs.id() => {
                eprintln!(
                    "init: lxcfs ended ({status:?}): guests read errors from /proc/meminfo and the like"
                );
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // Not before the machines are gone, which end only with us or by force.
            Err(_) => std::process::exit(1),
        }
    }
}
