//! What a configuration says about one alias: the first value of each option, and what of it is refused.
//!
//! Pure.

use std::collections::BTreeSet;

use super::{Criterion, Pattern, Place, Says, SshConfig};

/// How many key files, and how many options that are not used, are listed. OpenSSH takes so many keys too.
const MAX_LISTED: usize = 100;
/// Options that say what holds here anyway, or what nobody here asks.
const OF_NO_MATTER: &[&str] = &[
    "addkeystoagent",
    "batchmode",
    "checkhostip",
    "compression",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "hashknownhosts",
    "loglevel",
    "tcpkeepalive",
    "visualhostkey",
];

/// What is said about an alias. Values are as they stand there; patterns of `%` are not filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// `HostName`.
    pub hostname: Option<String>,
    /// `User`.
    pub user: Option<String>,
    /// `Port`.
    pub port: Option<u16>,
    /// `IdentityFile`, in order, each once.
    pub identity_files: Vec<String>,
    /// `ProxyJump`; `none` counts as nothing.
    pub proxy_jump: Option<String>,
    /// `UserKnownHostsFile`.
    pub known_hosts: Option<Vec<String>>,
    /// Why the alias can't be used: the option with its value, and where it stands.
    pub refused: Option<(String, Place)>,
    /// Options that are not used, and where they stand.
    pub unused: Vec<(String, Place)>,
}

impl SshConfig {
    /// The names that stand in `Host` lines without any pattern, in order.
    pub fn aliases(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.add_aliases(&mut names);
        names
    }

    fn add_aliases<'a>(&'a self, names: &mut Vec<&'a str>) {
        for line in &self.lines {
            match &line.says {
                Says::Host(patterns) => {
                    let plain = |p: &&Pattern| !p.negated && !p.glob.contains(['*', '?']);
                    for pattern in patterns.iter().filter(plain) {
                        names.push(&pattern.glob);
                    }
                }
                Says::Include(files) => files.iter().for_each(|file| file.add_aliases(names)),
                _ => {}
            }
        }
    }

    /// What holds for an alias.
    pub fn resolve(&self, alias: &str) -> Resolved {
        let mut reading = Reading {
            alias,
            seen: BTreeSet::new(),
            found: Resolved::default(),
        };
        reading.file(self, true);
        reading.found
    }
}

struct Reading<'a> {
    alias: &'a str,
    /// Options of which the first value has been seen, where nothing else tells.
    seen: BTreeSet<&'a str>,
    found: Resolved,
}

impl<'a> Reading<'a> {
    fn file(&mut self, file: &'a SshConfig, reachable: bool) {
        let mut active = reachable;
        for line in &file.lines {
            match &line.says {
                Says::Host(patterns) => {
                    active = reachable && Pattern::choose(patterns, self.alias);
                }
                Says::Match(criteria) => {
                    active = reachable && criteria.iter().all(|one| self.holds(one));
                }
                Says::Include(files) => {
                    for file in files {
                        self.file(file, active);
                    }
                }
                Says::Option { name, words } if active => self.option(name, words, &line.place),
                Says::Option { .. } => {}
            }
        }
    }

    fn holds(&self, criterion: &Criterion) -> bool {
        match criterion {
            Criterion::All => true,
            Criterion::OriginalHost(patterns) => {
                Pattern::choose(patterns, &self.alias.to_ascii_lowercase())
            }
            Criterion::Host(patterns) => {
                let name = self.found.hostname.as_deref().unwrap_or("%h");
                let name = name.replace("%h", self.alias).to_ascii_lowercase();
                Pattern::choose(patterns, &name)
            }
        }
    }

    fn option(&mut self, name: &'a str, words: &'a [String], place: &Place) {
        let first = words.first().map_or("", String::as_str);
        let found = &mut self.found;
        let refuse = |found: &mut Resolved, why: String| {
            found.refused.get_or_insert((why, place.clone()));
        };
        match name {
            "hostname" => {
                found.hostname.get_or_insert_with(|| first.to_owned());
            }
            "user" => {
                found.user.get_or_insert_with(|| first.to_owned());
            }
            "port" => match first.parse() {
                Ok(0) | Err(_) => refuse(found, format!("Port {first}, which is none")),
                Ok(port) => {
                    found.port.get_or_insert(port);
                }
            },
            "identityfile" => {
                let room = found.identity_files.len() < MAX_LISTED;
                if room && !found.identity_files.iter().any(|file| file == first) {
                    found.identity_files.push(first.to_owned());
                }
            }
            "userknownhostsfile" => {
                found.known_hosts.get_or_insert_with(|| words.to_vec());
            }
            "proxyjump" => {
                let counts = self.seen.insert(name) && !self.seen.contains("proxycommand");
                if counts && !is_none(first) {
                    found.proxy_jump = Some(first.to_owned());
                }
            }
            "proxycommand" => {
                // The first of the two counts, but `ProxyJump none` stands in no command's way.
                let counts = self.seen.insert(name) && found.proxy_jump.is_none();
                if counts && !is_none(first) {
                    refuse(found, "ProxyCommand, which runs a program".to_owned());
                }
            }
            "stricthostkeychecking" | "knownhostscommand" | "revokedhostkeys" => {
                if !self.seen.insert(name) {
                    return;
                }
                match name {
                    "stricthostkeychecking"
                        if !["yes", "true", "ask"]
                            .contains(&first.to_ascii_lowercase().as_str()) =>
                    {
                        refuse(
                            found,
                            format!("StrictHostKeyChecking {first}, which believes unknown keys"),
                        );
                    }
                    "knownhostscommand" if !is_none(first) => {
                        refuse(found, "KnownHostsCommand, which runs a program".to_owned());
                    }
                    "revokedhostkeys" if !is_none(first) => {
                        refuse(found, "RevokedHostKeys, which is not read here: write @revoked into known_hosts".to_owned());
                    }
                    _ => {}
                }
            }
            _ if OF_NO_MATTER.contains(&name) || name == "ignoreunknown" => {}
            _ if found.unused.iter().any(|(known, _)| known == name) => {}
            _ if found.unused.len() >= MAX_LISTED => {}
            _ => found.unused.push((name.to_owned(), place.clone())),
        }
    }
}

fn is_none(word: &str) -> bool {
    word.eq_ignore_ascii_case("none")
}
