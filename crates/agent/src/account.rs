//! The guest's users: who a command runs as. Looks at the guest's own files each time, because a command
//! may have changed them, and reads them again when they did.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];
/// How old a file's last change must be, in whole seconds, before what stands in it is kept: a second
/// change in the same tick of the kernel's clock would leave the same time.
const SETTLED_S: u64 = 2;
/// How many users are kept.
const KNOWN_MAX: usize = 16;

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

/// What was found in one version of both files.
struct Known {
    version: Option<[Version; 2]>,
    accounts: BTreeMap<String, Account>,
}

static KNOWN: Mutex<Known> = Mutex::new(Known {
    version: None,
    accounts: BTreeMap::new(),
});

/// Tells a file from what stood in its place before: device, inode, size, and the time of the last change
/// of any kind, which nobody can set.
type Version = (u64, u64, u64, i64, i64);

/// The user of this name or number in this guest.
pub fn of(user: &str) -> Result<Account, String> {
    let version = version();
    if version.is_some() {
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if known.version == version
            && let Some(account) = known.accounts.get(user)
        {
            return Ok(account.clone());
        }
    }
    let [passwd, group] = FILES.map(|path| fs::read_to_string(path).unwrap_or_default());
    let account = find_account(user, &passwd, &group)?;
    // Nor is kept what was changed while it was read.
    if version.is_some_and(|of| is_settled(&of)) && version == self::version() {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if known.version != version || known.accounts.len() >= KNOWN_MAX {
            known.accounts.clear();
        }
        known.version = version;
        known.accounts.insert(user.to_owned(), account.clone());
    }
    Ok(account)
}

/// None when a file is missing.
fn version() -> Option<[Version; 2]> {
    let version = |path| {
        let meta = fs::metadata(path).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some((meta.dev(), meta.ino(), meta.size(), changed.0, changed.1))
    };
    let [passwd, group] = FILES.map(version);
    Some([passwd?, group?])
}

fn is_settled(versions: &[Version; 2]) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.as_ref().map_or(0, Duration::as_secs);
    let settled = |(.., seconds, _): &Version| {
        u64::try_from(*seconds).is_ok_and(|seconds| seconds.saturating_add(SETTLED_S) < now)
    };
    versions.iter().all(settled)
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
