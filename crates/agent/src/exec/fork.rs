//! What a new process does between fork and exec: become another user, enter its directory, take a
//! terminal. The one place of the agent with unsafe code.

#![expect(
    unsafe_code,
    reason = "there is no safe way to run code between fork and exec"
)]

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Gid, Signal, Uid, chdir, ioctl_tiocsctty, setsid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::account::Account;

/// What a process does before it becomes the program.
pub struct Steps {
    user: Option<(Vec<Gid>, Gid, Uid)>,
    directory: CString,
    terminal: bool,
}

impl Steps {
    /// Enters `directory` as `user`, or as who the agent is. With `terminal` its standard input becomes
    /// the controlling terminal of a session of its own.
    pub fn new(user: Option<&Account>, directory: CString, terminal: bool) -> Self {
        let user = user.map(|account| {
            let groups = account.groups.iter().map(|g| Gid::from_raw(*g)).collect();
            (
                groups,
                Gid::from_raw(account.gid),
                Uid::from_raw(account.uid),
            )
        });
        Self {
            user,
            directory,
            terminal,
        }
    }

    /// Has `command` do these steps.
    pub fn before(self, command: &mut Command) {
        let steps = move || {
            if self.terminal {
                setsid()?;
                ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            if let Some((groups, gid, uid)) = &self.user {
                // The user last: after that there is no way back.
                set_thread_groups(groups)?;
                set_thread_res_gid(*gid, *gid, *gid)?;
                set_thread_res_uid(*uid, *uid, *uid)?;
            }
            chdir(&self.directory)?;
            Ok(())
        };
        // SAFETY: the closure makes system calls over memory that was allocated before the fork, and
        // nothing else: no allocation, no lock, no unwinding.
        unsafe { command.pre_exec(steps) };
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
