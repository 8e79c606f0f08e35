//! Aliases of an ssh_config(5) file as hosts of ours: what `vms` says of an id comes first.
//!
//! An alias that can't be used is kept with the reason, so that whoever asks for it hears it. A host on the way becomes
//! a host of its own, `ALIAS.jumpN`, unless it is an alias by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Resolved, SshConfig, read};
use crate::hosts::{InvalidHosts, Reader, Vm, is_host, is_user};
use crate::vm_id::VmId;

/// The most aliases that are read.
const MAX_ALIASES: usize = 4096;
/// The most hosts on the way; the same as for `proxy_jump`.
const MAX_JUMPS: usize = 4;

/// What a host that comes from the file cannot have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Borrowed {
    /// Why it can't be used, if it can't.
    pub refused: Option<InvalidHosts>,
    /// Options that stand there and are not used: `forwardagent (/home/o/.ssh/config:3)`.
    pub unused: Vec<String>,
}

/// Who asks: what a file may leave out or mean by `~`.
#[derive(Debug, Clone, Copy)]
struct Person<'a> {
    home: Option<&'a Path>,
    /// The name of the local user.
    user: Option<&'a str>,
    /// Whether a file is there.
    exists: fn(&Path) -> bool,
}

/// Reads a file, and adds every alias that `vms` does not have.
pub fn add(
    path: &Path,
    reader: Reader<'_>,
    vms: &mut BTreeMap<VmId, Vm>,
) -> Result<BTreeMap<VmId, Borrowed>, InvalidHosts> {
    let config = read::read(path, reader.home).map_err(|e| {
        InvalidHosts::new(
            e.to_string(),
            "mend the line, or name a file of your own with --ssh-config",
        )
    })?;
    let person = Person {
        home: reader.home,
        user: reader.user,
        exists: |path| path.exists(),
    };
    borrow(&config, person, vms)
}

fn borrow(
    config: &SshConfig,
    person: Person<'_>,
    vms: &mut BTreeMap<VmId, Vm>,
) -> Result<BTreeMap<VmId, Borrowed>, InvalidHosts> {
    let names = config.aliases();
    if names.len() > MAX_ALIASES {
        return Err(InvalidHosts::new(
            format!("the ssh_config file names more than {MAX_ALIASES} hosts"),
            "name a smaller file, or write the hosts under vms",
        ));
    }
    let ids = names.into_iter().filter_map(|name| name.parse().ok());
    let new: Vec<VmId> = ids.filter(|id| !vms.contains_key(id)).collect();
    let mut all = BTreeMap::new();
    for id in new {
        if all.contains_key(&id) {
            continue;
        }
        let resolved = config.resolve(id.as_str());
        let unused = resolved.unused.iter();
        let unused = unused.map(|(name, at)| format!("{name} ({at})")).collect();
        let mut way = Way {
            config,
            person,
            made: Vec::new(),
        };
        let refused = match way.host(&id, id.as_str(), &resolved, 0) {
            Ok(vm) => {
                way.made.push(vm);
                None
            }
            Err(refused) => {
                way.made.clear();
                Some(refused)
            }
        };
        for vm in way.made {
            // An alias on the way may have been added for another one, or be better known to vms.
            vms.entry(vm.id.clone()).or_insert(vm);
        }
        all.insert(id, Borrowed { refused, unused });
    }
    Ok(all)
}

struct Way<'a> {
    config: &'a SshConfig,
    person: Person<'a>,
    made: Vec<Vm>,
}

/// One host on the way as `ProxyJump` writes it.
struct Hop<'a> {
    user: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
}

impl Way<'_> {
    fn host(
        &mut self,
        id: &VmId,
        alias: &str,
        resolved: &Resolved,
        depth: usize,
    ) -> Result<Vm, InvalidHosts> {
        let refuse = |reason: String, hint: &str| Err(InvalidHosts::new(reason, hint));
        if let Some((option, place)) = &resolved.refused {
            return refuse(
                format!("its ssh_config says {option} ({place})"),
                "write the host under vms, where none of that is needed",
            );
        }
        let host = resolved.hostname.as_deref().unwrap_or("%h");
        let host = fill(host, &[('h', Some(alias))])?;
        if !is_host(&host) {
            return refuse(
                format!("its HostName {host:?} is no address"),
                "write an IP address or a DNS name",
            );
        }
        let Some(user) = resolved.user.as_deref().or(self.person.user) else {
            return refuse(
                "nobody knows its user".to_owned(),
                "write User into its ssh_config",
            );
        };
        if !is_user(user) {
            return refuse(
                format!("its User {user:?} is no user name"),
                "write letters, digits and - _ . that do not begin with -",
            );
        }
        let port = resolved.port.unwrap_or(22);
        let shown = port.to_string();
        let tokens: [(char, Option<&str>); 6] = [
            ('d', self.person.home.and_then(Path::to_str)),
            ('u', self.person.user),
            ('h', Some(&host)),
            ('n', Some(alias)),
            ('r', Some(user)),
            ('p', Some(&shown)),
        ];
        let path = |text: &str| self.path(text, &tokens);
        let known_hosts = match resolved.known_hosts.as_deref() {
            None => None,
            Some([one]) if !one.eq_ignore_ascii_case("none") => Some(path(one)?),
            Some(_) => {
                return refuse(
                    "its UserKnownHostsFile is not one file".to_owned(),
                    "name one file, which is there or will be written",
                );
            }
        };
        let key_file = self.key_file(resolved, path)?;
        let jump = match &resolved.proxy_jump {
            None => None,
            Some(hops) => Some(self.jump(id, hops, depth)?),
        };
        Ok(Vm {
            id: id.clone(),
            name: alias.to_owned(),
            host: host.to_ascii_lowercase(),
            port,
            user: user.to_owned(),
            role: None,
            enabled: true,
            key_file,
            known_hosts,
            jump,
        })
    }

    /// The first file that is there; what is usual where none is named.
    fn key_file(
        &self,
        resolved: &Resolved,
        path: impl Fn(&str) -> Result<PathBuf, InvalidHosts>,
    ) -> Result<Option<PathBuf>, InvalidHosts> {
        let usual = ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"];
        let named: Vec<&str> = if resolved.identity_files.is_empty() {
            let home = self.person.home.is_some();
            usual.into_iter().filter(|_| home).collect()
        } else {
            let all = resolved.identity_files.iter().map(String::as_str);
            all.filter(|file| !file.eq_ignore_ascii_case("none"))
                .collect()
        };
        for file in named {
            let file = path(file)?;
            if (self.person.exists)(&file) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// The hosts on the way, from the outside in; answers the innermost.
    fn jump(&mut self, target: &VmId, hops: &str, depth: usize) -> Result<VmId, InvalidHosts> {
        let hops: Vec<&str> = hops.split(',').collect();
        if depth.saturating_add(hops.len()) > MAX_JUMPS {
            return Err(InvalidHosts::new(
                format!("its ProxyJump has more than {MAX_JUMPS} hosts, or goes in a circle"),
                "name the hosts from the outside in",
            ));
        }
        let mut before: Option<VmId> = None;
        for (number, text) in (1..).zip(hops) {
            let hop = hop(text)?;
            let mut resolved = self.config.resolve(hop.host);
            let plain = hop.user.is_none() && hop.port.is_none() && before.is_none();
            let known = hop.host.parse::<VmId>().ok();
            let known = known.filter(|_| plain && self.config.aliases().contains(&hop.host));
            let id = match known {
                Some(id) => id,
                None => format!("{target}.jump{number}").parse()?,
            };
            if let Some(user) = hop.user {
                resolved.user = Some(user.to_owned());
            }
            if let Some(port) = hop.port {
                resolved.port = Some(port);
            }
            if before.is_some() {
                // Only the outermost one is reached in its own way.
                resolved.proxy_jump = None;
            }
            let mut vm = self.host(&id, hop.host, &resolved, depth.saturating_add(1))?;
            if let Some(before) = before.take() {
                vm.jump = Some(before);
            }
            before = Some(vm.id.clone());
            self.made.push(vm);
        }
        before.ok_or_else(|| InvalidHosts::new("its ProxyJump is empty", "name a host, or none"))
    }

    fn path(&self, text: &str, tokens: &[(char, Option<&str>)]) -> Result<PathBuf, InvalidHosts> {
        let filled = fill(text, tokens)?;
        let path = match (filled.strip_prefix("~/"), self.person.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(&filled),
        };
        if path.is_absolute() && !filled.contains("${") {
            Ok(path)
        } else {
            Err(InvalidHosts::new(
                format!("{text:?} in its ssh_config is not an absolute path"),
                "write a path that begins with / or with ~/",
            ))
        }
    }
}

/// `[user@]host[:port]`, or the same behind `ssh://`; an IPv6 address stands in brackets.
fn hop(text: &str) -> Result<Hop<'_>, InvalidHosts> {
    let bad = || {
        InvalidHosts::new(
            format!("its ProxyJump holds {text:?}, which is no host"),
            "write [user@]host[:port]",
        )
    };
    let text = text.trim();
    let text = text.strip_prefix("ssh://").unwrap_or(text);
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, text),
    };
    let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or_else(bad)?;
        (host, after.strip_prefix(':'))
    } else {
        match rest.split_once(':') {
            // More than one colon: an address without a port.
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (rest, None),
        }
    };
    let port = match port.map(str::parse) {
        None => None,
        Some(Ok(0) | Err(_)) => return Err(bad()),
        Some(Ok(port)) => Some(port),
    };
    if host.is_empty() || user.is_some_and(str::is_empty) {
        return Err(bad());
    }
    Ok(Hop { user, host, port })
}

/// Fills in `%` and a letter; `%%` is `%`.
fn fill(text: &str, tokens: &[(char, Option<&str>)]) -> Result<String, InvalidHosts> {
    let mut filled = String::new();
    let mut left = text.chars();
    while let Some(c) = left.next() {
        if c != '%' {
            filled.push(c);
            continue;
        }
        let letter = left.next();
        if letter == Some('%') {
            filled.push('%');
            continue;
        }
        let known = tokens.iter().find(|(token, _)| Some(*token) == letter);
        let value = known.and_then(|(_, value)| *value).ok_or_else(|| {
            InvalidHosts::new(
                format!("{text:?} in its ssh_config holds a % that is not filled in here"),
                "write it out",
            )
        })?;
        filled.push_str(value);
    }
    Ok(filled)
}
