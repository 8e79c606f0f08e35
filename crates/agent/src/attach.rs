//! Becomes a command that came through `lxc-attach`: reads the request from standard input, puts
//! user, directory and environment in place, answers one line, and replaces itself with the command.
//!
//! Runs in a process of its own with one thread and no event loop. Never reads a byte beyond the
//! request: what follows is the command's input.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use wire::attach::{Answer, AttachRequest, COOKIE, MAX_REQUEST};

/// A shell's codes for a program that can't be run.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    home: String,
    shell: String,
}

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
    let account = find_account(
        request.user.as_deref().unwrap_or("0"),
        &fs::read_to_string("/etc/passwd").unwrap_or_default(),
        &fs::read_to_string("/etc/group").unwrap_or_default(),
    )?;
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

fn environment(account: &Account, asked: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut env: BTreeMap<String, String> = [
        ("PATH", path),
        ("HOME", &account.home),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    env.extend(asked.clone());
    env
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

/// Finds a user by name or number in the guest's own files. A number without an entry is a user too.
pub(crate) fn find_account(user: &str, passwd: &str, group: &str) -> Result<Account, String> {
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields.as_slice() else {
            return None;
        };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let wanted = *name == user || number == Some(uid);
        wanted.then(|| {
            (
                (*name).to_owned(),
                uid,
                gid,
                (*home).to_owned(),
                (*shell).to_owned(),
            )
        })
    });
    let (name, uid, gid, home, shell) = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(0)) => ("root".into(), 0, 0, "/root".into(), "/bin/sh".into()),
        (None, Some(n)) => (n.to_string(), n, n, "/".into(), "/bin/sh".into()),
        (None, None) => return Err(format!("there is no user {user:?} in the guest")),
    };
    let member_of = group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields.as_slice() else {
            return None;
        };
        members
            .split(',')
            .any(|m| m == name)
            .then(|| gid.parse().ok())?
    });
    let mut groups: Vec<u32> = std::iter::once(gid).chain(member_of).collect();
    groups.sort_unstable();
    groups.dedup();
    let shell = if shell.is_empty() {
        "/bin/sh".into()
    } else {
        shell
    };
    Ok(Account {
        name,
        uid,
        gid,
        groups,
        home,
        shell,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www:/var/www:/usr/sbin/nologin\nbroken\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:www-data,other\nwww-data:x:33:\n";

    #[test]
    fn users_by_name_and_number() {
        let www = find_account("www-data", PASSWD, GROUP).unwrap();
        assert_eq!(
            (www.uid, www.gid, www.groups.as_slice()),
            (33, 33, [4, 33].as_slice())
        );
        assert_eq!(find_account("33", PASSWD, GROUP).unwrap(), www);
        let unknown = find_account("4711", PASSWD, GROUP).unwrap();
        assert_eq!(
            (unknown.uid, unknown.gid, unknown.home.as_str()),
            (4711, 4711, "/")
        );
        assert!(
            find_account("nobody-here", PASSWD, GROUP)
                .unwrap_err()
                .contains("nobody-here")
        );
        assert_eq!(find_account("0", "", "").unwrap().name, "root");
    }

    #[test]
    fn what_the_caller_asks_for_wins() {
        let root = find_account("root", PASSWD, GROUP).unwrap();
        let asked = BTreeMap::from([("HOME".to_owned(), "/srv".to_owned())]);
        let env = environment(&root, &asked);
        assert_eq!(env["HOME"], "/srv");
        assert_eq!(env["SHELL"], "/bin/bash");
    }
}
