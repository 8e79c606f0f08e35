//! The way from the keeper to PID 1: a process enters the host's cgroups, then its namespaces.
//!
//! Owns no state; each step ends by becoming the next program:
//! `host-launch` joins the cgroups and execs `unshare -C`; `host-launch --inside` joins the leaf (pure
//! cgroup v2 only, seen from inside the cgroup namespace whose root must hold no process) and execs
//! `unshare` for all other namespaces, whose child is `host-init`.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;

use rustix::process::Signal;

use crate::error::{During, Error, Result};
use crate::keeper::Spec;
use crate::{cgroup, program};

/// Joins the host's cgroups and becomes the next step; returns only with an error.
pub fn launch(spec: &Spec, inside: bool) -> Result<std::convert::Infallible> {
    // Survives exec: when the keeper is killed, unshare dies, and init with it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .during("watch", "the keeper")?;
    cgroup::join(&spec.name, inside)?;
    let testbed = program::find_testbed()?;
    let mut unshare = program::clean("unshare");
    let next: &[&str] = if inside {
        unshare.args([
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
        ]);
        &["host-init"]
    } else {
        unshare.args(["--cgroup", "--"]);
        &["host-launch", "--inside"]
    };
    let error = unshare
        .arg(OsStr::new(&testbed))
        .args(next)
        .args(spec.args())
        .exec();
    Err(Error::Io {
        what: "run",
        path: "unshare".into(),
        source: error,
    })
}
