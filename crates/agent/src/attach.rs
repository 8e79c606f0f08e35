//! Becomes a command that came through `lxc-attach`: reads the request from standard input, puts
//! user, directory and environment in place, answers one line, and replaces itself with the command.
//!
//! Runs in a process of its own with one thread and no event loop. Never reads a byte beyond the
//! request: what follows is the command's input.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use wire::attach::{Answer, AttachRequest, COOKIE, MAX_REQUEST};

use crate::account::{self, Account, environment};

/// A shell's codes for a program that can't be run.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Reads the request and becomes the command. Returns only if that failed.
pub fn run() -> ExitCode {
    let request = match read_request() {
        Ok(request) => request,
        Err(cause) => return refuse(&format!("the request can't be read: {cause}")),
    };
    let mut command = match prepare(&request) {
        Ok(command) => command,
        Err(cause) => return refuse(&cause),
    };
    if say(&Answer::Go).is_err() {
        // Nobody listens any more: run nothing.
        return ExitCode::FAILURE;
    }
    let error = command.exec();
    let program = request.argv.first().map(String::as_str).unwrap_or_default();
    let _ = writeln!(io::stderr(), "{program:?} can't be run: {error}");
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    })
}

fn refuse(cause: &str) -> ExitCode {
    // When stdout is gone the exit code still tells.
    let _ = say(&Answer::Refused(cause.to_owned()));
    ExitCode::FAILURE
}

fn say(answer: &Answer) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(answer.line().as_bytes())?;
    stdout.flush()
}

/// Reads through the bare descriptor: the standard library's would read ahead.
fn read_request() -> io::Result<AttachRequest> {
    let mut length = [0u8; 4];
    read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_REQUEST {
        return Err(io::Error::other("it is too long"));
    }
    let mut body = vec![0u8; length as usize];
    read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

fn read_exact(mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer = buffer.get_mut(n..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn prepare(request: &AttachRequest) -> Result<Command, String> {
    let (program, arguments) = request.argv.split_first().ok_or("there is no command")?;
    let account = account::of(request.user.as_deref().unwrap_or("0"))?;
    give_pipes(&account);
    become_account(&account)?;
    let directory = match &request.cwd {
        Some(directory) => directory.as_str(),
        None if Path::new(&account.home).is_dir() => &account.home,
        None => "/",
    };
    std::env::set_current_dir(directory)
        .map_err(|e| format!("the directory {directory:?} can't be entered: {e}"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment(&account, &request.env))
        .env(COOKIE, &request.cookie);
    Ok(command)
}

/// So that the command can open `/dev/stdout` and the like, whoever it runs as. Pipes that are not ours to
/// give away can still be used, only not opened again.
fn give_pipes(account: &Account) {
    let uid = Some(Uid::from_raw(account.uid));
    for pipe in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let _ = rustix::fs::fchown(pipe, uid, None);
    }
}

/// Groups first, then the user: after that there is no way back.
fn become_account(account: &Account) -> Result<(), String> {
    let groups: Vec<Gid> = account.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(|e| format!("user {:?} can't be taken on: {e}", account.name))
}
