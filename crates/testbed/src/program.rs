//! The programs that a virtual host is made of: where they are, and which package has them.
//!
//! Owns no state. Nothing here runs a shell: a program is a path and an argv.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Error, Result};

/// The search path of every process that belongs to a host itself (not of the commands run in it).
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names the binary for [`find_testbed`] when it does not lie beside the running program.
pub(crate) const BINARY_VARIABLE: &str = "PROXIMITY_TESTBED_BIN";

const PACKAGES: [(&str, &str); 6] = [
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("ip", "iproute2"),
    ("dnsmasq", "dnsmasq-base"),
    ("busybox", "busybox-static"),
    ("lxcfs", "lxcfs"),
];

/// Refuses a caller that is not root.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(Error::NotRoot)
    }
}

/// Root and every program there, or the first thing that is missing.
pub(crate) fn check() -> Result<()> {
    require_root()?;
    for (program, package) in PACKAGES {
        if find(program).is_none() {
            return Err(Error::MissingProgram { program, package });
        }
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':')
        .map(|dir| PathBuf::from(dir).join(program))
        .find(|path| path.is_file())
}

/// A command with nothing of the caller's environment but a plain `PATH`.
pub(crate) fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/root");
    if let Some(testbed) = env::var_os(BINARY_VARIABLE) {
        command.env(BINARY_VARIABLE, testbed);
    }
    command
}

/// The `testbed` binary: this very program, the one named in `PROXIMITY_TESTBED_BIN`, or the one
/// that cargo put beside or above a test program.
pub(crate) fn find_testbed() -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        return Some(PathBuf::from(path))
            .filter(|path| path.is_file())
            .ok_or(Error::MissingBinary);
    }
    let me = env::current_exe().map_err(|_| Error::MissingBinary)?;
    // A binary that was built anew under a running host: the new one stands at the same path.
    let me = match me.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => me,
    };
    if me.file_name().is_some_and(|name| name == "testbed") {
        return Ok(me);
    }
    me.ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join("testbed"))
        .find(|path| path.is_file())
        .ok_or(Error::MissingBinary)
}
