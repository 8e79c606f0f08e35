//! Threads that touch files with the rights of one user.
//!
//! On Linux user, groups and capabilities belong to a thread. A request's thread takes on the user's
//! *effective* ids, which are those that the kernel asks about files, and with them loses every
//! effective capability: no file is opened, made or renamed that the user could not open, make or
//! rename. Its real and saved ids stay root's, so that the user can't send it signals. It never goes
//! back and never does anything else: it ends with its request.

use std::fs;
use std::thread;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::FileError;
use crate::account::find_account;

/// What such a thread needs: a few buffers on the stack at most.
const STACK_BYTES: usize = 256 << 10;

/// Runs `work` in a thread of its own with the rights of `user`; without one, with those of this
/// process. `work` is told when that was not possible, and then still runs with those of this process.
pub fn run_as(
    user: Option<String>,
    work: impl FnOnce(Result<(), FileError>) + Send + 'static,
) -> Result<(), FileError> {
    thread::Builder::new()
        .name("file".into())
        .stack_size(STACK_BYTES)
        .spawn(move || work(user.as_deref().map_or(Ok(()), take_on)))
        .map(drop)
        .map_err(|source| FileError::System {
            action: "start a thread for",
            path: "the file".into(),
            source,
        })
}

fn take_on(user: &str) -> Result<(), FileError> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let account = find_account(user, &read("/etc/passwd"), &read("/etc/group"))
        .map_err(FileError::NoSuchUser)?;
    let uid = Uid::from_raw(account.uid);
    if uid.is_root() && rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let groups: Vec<Gid> = account.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    // Groups first: after the user there are no rights left to change them.
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(None, Gid::from_raw(account.gid), None))
        .and_then(|()| set_thread_res_uid(None, uid, None))
        .map_err(|source| FileError::System {
            action: "take on the user",
            path: account.name,
            source: source.into(),
        })
}
