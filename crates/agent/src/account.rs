//! The guest's users: who a command runs as. Reads the guest's own files each time, because a command
//! may have changed them; keeps nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name; the number when it has none.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its own group.
    pub gid: u32,
    /// All groups it is in, its own among them.
    pub groups: Vec<u32>,
    /// Its home directory.
    pub home: String,
    /// Its login shell.
    pub shell: String,
}

/// The user of this name or number in this guest.
pub fn of(user: &str) -> Result<Account, String> {
    find_account(
        user,
        &fs::read_to_string("/etc/passwd").unwrap_or_default(),
        &fs::read_to_string("/etc/group").unwrap_or_default(),
    )
}

impl Account {
    /// Whether the mode of a file or directory lets this user run or enter it.
    pub fn may_execute(&self, of: &fs::Metadata) -> bool {
        let bits = if self.uid == 0 {
            0o111
        } else if self.uid == of.uid() {
            0o100
        } else if self.groups.contains(&of.gid()) {
            0o010
        } else {
            0o001
        };
        of.is_dir() && self.uid == 0 || of.mode() & bits != 0
    }
}

/// The environment of a command: sane values, and over them what the caller asked for.
pub fn environment(
    account: &Account,
    asked: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
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

/// Finds a user by name or number in the guest's own files. A number without an entry is a user too.
pub fn find_account(user: &str, passwd: &str, group: &str) -> Result<Account, String> {
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
