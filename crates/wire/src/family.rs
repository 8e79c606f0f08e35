//! Families of operating systems that an appliance can have, and how each is spoken to.
//!
//! The controller puts the image together, the relay works inside of it, and both restart services: what they
//! must agree about stands here, once for each family, behind [`Family`]. Texts and lists of arguments only;
//! nothing is run and nothing is read.
//!
//! | family | packages | services |
//! |---|---|---|
//! | [`Debian`] | apt | systemd |
//! | [`Alpine`] | apk | OpenRC with supervise-daemon |

mod alpine;
mod debian;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use alpine::Alpine;
pub use debian::Debian;

/// A program and its arguments.
pub type Argv = Vec<String>;

/// The families by name, as configurations and images name them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FamilyName {
    /// Debian and what descends from it.
    #[default]
    Debian,
    /// Alpine Linux and what descends from it.
    Alpine,
}

impl FamilyName {
    /// Whether it is Debian. Images and zones do not write it down then, so that those made before there was a
    /// choice stay what they are.
    pub fn is_debian(&self) -> bool {
        *self == Self::Debian
    }

    /// How the family is spoken to.
    pub fn family(self) -> &'static dyn Family {
        match self {
            Self::Debian => &Debian,
            Self::Alpine => &Alpine,
        }
    }

    /// The family that a system's `os-release` file names: by `ID`, else by what `ID_LIKE` lists first of those
    /// known.
    pub fn of_release(text: &str) -> Result<Self, UnknownFamily> {
        let value = |key: &str| {
            let found = text.lines().find_map(|l| l.strip_prefix(key));
            found.unwrap_or_default().trim().trim_matches(['"', '\''])
        };
        let (id, like) = (value("ID="), value("ID_LIKE="));
        let mut names = std::iter::once(id).chain(like.split_whitespace());
        names
            .find_map(|name| name.parse().ok())
            .ok_or_else(|| UnknownFamily {
                id: id.chars().filter(|c| !c.is_control()).take(64).collect(),
            })
    }
}

impl FromStr for FamilyName {
    type Err = UnknownFamily;

    fn from_str(name: &str) -> Result<Self, UnknownFamily> {
        match name {
            "debian" => Ok(Self::Debian),
            "alpine" => Ok(Self::Alpine),
            other => Err(UnknownFamily { id: other.into() }),
        }
    }
}

impl fmt::Display for FamilyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::Alpine => "alpine",
        })
    }
}

/// An operating system that is none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFamily {
    /// What it calls itself; empty when it does not say.
    pub id: String,
}

impl fmt::Display for UnknownFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "operating system {:?} is of no family that is known; an appliance is made of debian or alpine",
            self.id
        )
    }
}

impl std::error::Error for UnknownFamily {}

/// A service of an appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// DHCP and DNS.
    Dnsmasq,
    /// The reverse proxy.
    Caddy,
    /// The management page.
    Cockpit,
    /// The relay.
    Relay,
}

impl Service {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dnsmasq => "dnsmasq",
            Self::Caddy => "caddy",
            Self::Cockpit => "cockpit",
            Self::Relay => "relay",
        }
    }
}

/// A file that a family's image has for its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyFile {
    /// Absolute path.
    pub path: &'static str,
    /// Permissions, octal.
    pub mode: &'static str,
    /// Its text.
    pub content: &'static str,
}

/// How an appliance of one family is made and spoken to.
pub trait Family: fmt::Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> FamilyName;

    /// What is installed for the gateway's services, by the family's own names, beside what every guest has.
    fn packages(&self) -> &'static [&'static str];

    /// Files of ours that start those services on what the relay writes.
    fn files(&self) -> &'static [FamilyFile];

    /// What starts at boot, by the names of the init system.
    fn starts(&self) -> &'static [&'static str];

    /// The services whose state is reported, beside the relay's own.
    fn reported(&self) -> &'static [Service];

    /// The commands that restart services, one after the other. Each returns when it is done.
    fn restart(&self, services: &[Service]) -> Vec<Argv>;

    /// The command that has a service read its files anew, without a restart. It fails if the service does not
    /// run.
    fn reread(&self, service: Service) -> Argv;

    /// The command that prints the states of all services reported.
    fn states(&self) -> Argv;

    /// A service's state in what that command printed: `active`, `inactive`, `failed`, or a word for what is
    /// between them.
    fn state<'a>(&self, printed: &'a str, service: Service) -> Option<&'a str>;

    /// What a person runs on the appliance to see what its services said last.
    fn log(&self) -> &'static str;

    /// The group of dnsmasq's user.
    fn dnsmasq_group(&self) -> &'static str;

    /// The file, its path first, that leaves `eth0` as the node made it, or has it ask for an address.
    fn outside(&self, by_dhcp: bool) -> Option<(&'static str, &'static str)>;
}

/// A command of fixed words.
fn argv(words: &[&str]) -> Argv {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn families_are_found_by_what_the_system_says_of_itself() {
        let check = |text: &str, expect: Result<FamilyName, &str>| {
            let found = FamilyName::of_release(text);
            let found = found.as_ref().map(|f| *f).map_err(|e| e.id.as_str());
            assert_eq!(found, expect, "{text}");
        };
        check(
            "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n",
            Ok(FamilyName::Debian),
        );
        check("ID=ubuntu\nID_LIKE=debian\n", Ok(FamilyName::Debian));
        check(
            "ID=mint\nID_LIKE=\"ubuntu debian\"\n",
            Ok(FamilyName::Debian),
        );
        check("NAME=\"Alpine Linux\"\nID=alpine\n", Ok(FamilyName::Alpine));
        check(
            "ID='postmarketos'\nID_LIKE=alpine\n",
            Ok(FamilyName::Alpine),
        );
        check("ID=fedora\nID_LIKE=rhel\n", Err("fedora"));
        check("", Err(""));
        check("ID=x\u{1b}[2J\n", Err("x[2J"));
    }

    /// All that a family answers, as one page.
    fn page(family: &dyn Family) -> String {
        let mut page = format!("family: {}\n", family.name());
        let lines = |commands: Vec<Argv>| -> String {
            let all = commands.iter().map(|c| format!("  {}\n", c.join(" ")));
            all.collect()
        };
        let services = [Service::Dnsmasq, Service::Caddy, Service::Relay];
        let reported: Vec<_> = family.reported().iter().map(|s| s.name()).collect();
        write!(
            page,
            "packages: {}\nat boot: {}\nreported: {}\ndnsmasq's group: {}\nrestart:\n{}read anew:\n{}states:\n{}log:\n  {}\n",
            family.packages().join(" "),
            family.starts().join(" "),
            reported.join(" "),
            family.dnsmasq_group(),
            lines(family.restart(&services)),
            lines(vec![family.reread(Service::Dnsmasq)]),
            lines(vec![family.states()]),
            family.log(),
        )
        .unwrap();
        for by_dhcp in [false, true] {
            let file = family.outside(by_dhcp);
            writeln!(page, "outside, by DHCP {by_dhcp}: {file:?}").unwrap();
        }
        for FamilyFile {
            path,
            mode,
            content,
        } in family.files()
        {
            writeln!(page, "--- {path} {mode}\n{content}").unwrap();
        }
        page
    }

    #[test]
    fn what_debian_answers() {
        insta::assert_snapshot!(page(FamilyName::Debian.family()));
    }

    #[test]
    fn what_alpine_answers() {
        insta::assert_snapshot!(page(FamilyName::Alpine.family()));
    }

    #[test]
    fn a_family_answers_to_its_own_name() {
        for name in [FamilyName::Debian, FamilyName::Alpine] {
            assert_eq!(name.family().name(), name);
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }
}
