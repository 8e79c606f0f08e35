//! What an `lxc` node needs on this machine, looked at and never changed.
//!
//! Reads files below `/proc`, `/sys`, `/etc` and the directories of programs; starts nothing and
//! connects to nothing. Every finding that is not well carries the command that mends it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::lxc::{ID_COUNT, Ids};

/// Where the controller keeps its data if nothing else is said.
const DATA_DIR: &str = "/var/lib/proximity";
/// Free space below which a node is no good: an appliance, a few images, a few guests.
const DISK_NEEDED_GB: u64 = 10;
/// Every guest with systemd takes several inotify instances of root's on the node.
const INOTIFY_INSTANCES: u64 = 1024;
/// Our share of the kernel's settings.
const SYSCTL_FILE: &str = "/etc/sysctl.d/60-proximity.conf";

/// Programs and the Debian package that brings each.
const PROGRAMS: &[(&str, &str)] = &[
    ("lxc-start", "lxc"),
    ("lxc-attach", "lxc"),
    ("lxc-usernsexec", "lxc"),
    ("newuidmap", "uidmap"),
    ("newgidmap", "uidmap"),
    ("nft", "nftables"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("tar", "tar"),
];

/// Parts of the kernel: the name for people, the module, a function that is there when the part is
/// built in or loaded, and whether the kernel loads the module by itself when it is first used.
const KERNEL_PARTS: &[KernelPart] = &[
    KernelPart::new("overlayfs", "overlay", "ovl_fill_super"),
    KernelPart::new("bridges", "bridge", "br_dev_setup"),
    KernelPart::new("veth pairs", "veth", "veth_newlink"),
    KernelPart::new("nf_tables", "nf_tables", "nf_tables_newtable"),
];

struct KernelPart {
    name: &'static str,
    module: &'static str,
    symbol: &'static str,
}

impl KernelPart {
    const fn new(name: &'static str, module: &'static str, symbol: &'static str) -> Self {
        Self {
            name,
            module,
            symbol,
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be; information that asks for nothing is always well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// The command that mends it, or the sentence that says how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    /// The Debian package that is missing, when that is what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
}

impl Finding {
    fn well(name: &str, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            ok: true,
            detail: detail.into(),
            mend: None,
            package: None,
        }
    }

    fn lacking(name: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            ok: false,
            detail: detail.into(),
            mend: Some(mend.into()),
            package: None,
        }
    }
}

/// Looks at this machine, with data in the default place.
pub fn examine() -> Vec<Finding> {
    examine_for(Path::new(DATA_DIR))
}

/// Looks at this machine, with data in `data_dir`.
pub fn examine_for(data_dir: &Path) -> Vec<Finding> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Programs of the system's administration stand in places that a user's PATH may lack.
    let mut programs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    programs.extend(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    let machine = Machine {
        root: PathBuf::from("/"),
        programs,
    };
    let mut findings = machine.examine();
    findings.push(free_disk(data_dir));
    findings
}

/// One command that installs every missing package.
pub fn install_line(findings: &[Finding]) -> Option<String> {
    let mut packages: Vec<&str> = findings
        .iter()
        .filter_map(|f| f.package.as_deref())
        .collect();
    packages.sort_unstable();
    packages.dedup();
    (!packages.is_empty()).then(|| {
        format!(
            "apt-get update && apt-get install -y {}",
            packages.join(" ")
        )
    })
}

/// A machine seen through its files; tests give it a tree of their own.
struct Machine {
    root: PathBuf,
    programs: Vec<PathBuf>,
}

impl Machine {
    fn examine(&self) -> Vec<Finding> {
        let mut findings = vec![self.root_user()];
        findings.extend(
            PROGRAMS
                .iter()
                .map(|(name, package)| self.program(name, package)),
        );
        findings.push(self.subordinate_ids("/etc/subuid", "--add-subuids"));
        findings.push(self.subordinate_ids("/etc/subgid", "--add-subgids"));
        findings.extend(KERNEL_PARTS.iter().map(|part| self.kernel_part(part)));
        findings.push(self.user_namespaces());
        findings.push(self.cgroups());
        findings.push(self.inotify());
        findings.push(self.app_armor());
        findings
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    fn root_user(&self) -> Finding {
        let status = self.read("/proc/self/status").unwrap_or_default();
        match effective_uid(&status) {
            Some(0) => Finding::well("root", "running as root"),
            Some(uid) => Finding::lacking(
                "root",
                format!("running as user {uid}; the controller makes networks and guests"),
                "sudo proximity doctor",
            ),
            None => Finding::lacking("root", "cannot tell who we are", "mount -t proc proc /proc"),
        }
    }

    fn program(&self, name: &str, package: &str) -> Finding {
        let found = self
            .programs
            .iter()
            .map(|dir| dir.join(name))
            .find(|p| is_program(p));
        match found {
            Some(path) => Finding::well(name, path.display().to_string()),
            None => Finding {
                package: Some(package.to_owned()),
                ..Finding::lacking(name, "not found", format!("apt-get install -y {package}"))
            },
        }
    }

    /// Whether root may give away the ids of apps and those of sandboxes.
    fn subordinate_ids(&self, file: &str, flag: &str) -> Finding {
        let text = self.read(file).unwrap_or_default();
        let given = ranges_of_root(&text);
        let covered = |first: u64, last: u64| {
            let mut given = given.iter();
            given.any(|(start, count)| *start <= first && start.saturating_add(*count) > last)
        };
        let wanted = Ids::ALL.map(|ids| {
            let first = u64::from(ids.root());
            (first, first + u64::from(ID_COUNT) - 1)
        });
        let lacking = wanted.iter().find(|(first, last)| !covered(*first, *last));
        let said: Vec<_> = given.iter().map(|(f, n)| format!("root:{f}:{n}")).collect();
        match lacking {
            None => Finding::well(file, said.join(", ")),
            Some((first, last)) => {
                let detail = match said.as_slice() {
                    [] => "no range for root".to_owned(),
                    said => format!("{} does not cover {first}-{last}", said.join(", ")),
                };
                Finding::lacking(file, detail, format!("usermod {flag} {first}-{last} root"))
            }
        }
    }

    fn kernel_part(&self, part: &KernelPart) -> Finding {
        let release = self.read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim();
        let module = part.module;
        if self.at(&format!("/sys/module/{module}")).exists() || self.has_filesystem(module) {
            return Finding::well(part.name, "in the kernel");
        }
        let listed = |list: &str| {
            self.read(&format!("/lib/modules/{release}/{list}"))
                .is_some_and(|text| names_module(&text, module))
        };
        if listed("modules.builtin") {
            return Finding::well(part.name, "in the kernel");
        }
        if listed("modules.dep") {
            return Finding::well(
                part.name,
                format!("module {module}, loaded when it is needed"),
            );
        }
        // A kernel without modules may come without any of these files; it knows its own symbols.
        let symbols = self.read("/proc/kallsyms").unwrap_or_default();
        if symbols
            .lines()
            .any(|l| l.split(' ').nth(2) == Some(part.symbol))
        {
            return Finding::well(part.name, "in the kernel");
        }
        Finding::lacking(
            part.name,
            format!("kernel {release} has no {module}"),
            format!("modprobe {module}, or boot a kernel that has it (Debian: linux-image-amd64)"),
        )
    }

    fn has_filesystem(&self, name: &str) -> bool {
        let text = self.read("/proc/filesystems").unwrap_or_default();
        text.lines()
            .any(|line| line.split_whitespace().last() == Some(name))
    }

    fn user_namespaces(&self) -> Finding {
        const NAME: &str = "user namespaces";
        let path = "user.max_user_namespaces";
        match self.number("/proc/sys/user/max_user_namespaces") {
            None => Finding::lacking(
                NAME,
                "the kernel has none",
                "boot a kernel with CONFIG_USER_NS (Debian: linux-image-amd64)",
            ),
            Some(0) => Finding::lacking(NAME, format!("{path} is 0"), sysctl(path, 28_633)),
            Some(most) => {
                // Root makes the namespaces, so this setting is none of our needs; it is shown
                // because people look for it.
                let closed = self.number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0);
                let users = if closed {
                    "; for root only, which is enough"
                } else {
                    ""
                };
                Finding::well(NAME, format!("at most {most}{users}"))
            }
        }
    }

    fn cgroups(&self) -> Finding {
        const NAME: &str = "cgroup controllers";
        const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
        let (version, missing): (&str, Vec<&str>) =
            if let Some(list) = self.read("/sys/fs/cgroup/cgroup.controllers") {
                let has = |c: &&str| list.split_whitespace().any(|word| word == *c);
                ("v2", NEEDED.into_iter().filter(|c| !has(c)).collect())
            } else {
                let mounts = self.read("/proc/self/mountinfo").unwrap_or_default();
                let has = |c: &&str| mounts_controller(&mounts, c);
                ("v1", NEEDED.into_iter().filter(|c| !has(c)).collect())
            };
        if missing.is_empty() {
            return Finding::well(NAME, format!("{version}: {}", NEEDED.join(", ")));
        }
        let mend = match missing.first() {
            Some(&"memory") if missing.len() == 1 => {
                "boot with cgroup_enable=memory on the kernel's command line"
            }
            _ => {
                "mount cgroup2 on /sys/fs/cgroup (systemd does), or boot with systemd.unified_cgroup_hierarchy=1"
            }
        };
        Finding::lacking(NAME, format!("{version}: no {}", missing.join(", ")), mend)
    }

    fn inotify(&self) -> Finding {
        let path = "fs.inotify.max_user_instances";
        match self.number("/proc/sys/fs/inotify/max_user_instances") {
            Some(most) if most >= INOTIFY_INSTANCES => Finding::well(path, most.to_string()),
            most => Finding::lacking(
                path,
                format!(
                    "{}, but guests share it and need {INOTIFY_INSTANCES}",
                    most.map_or_else(|| "unknown".to_owned(), |m| m.to_string())
                ),
                sysctl(path, INOTIFY_INSTANCES),
            ),
        }
    }

    fn app_armor(&self) -> Finding {
        let on = self.read("/sys/module/apparmor/parameters/enabled");
        let detail = match on.as_deref().map(str::trim) {
            Some("Y") => "yes: guests are confined by it too",
            _ => "no: guests are unprivileged and have seccomp, but no AppArmor profile",
        };
        Finding::well("AppArmor", detail)
    }
}

fn free_disk(data_dir: &Path) -> Finding {
    const NAME: &str = "free disk";
    // The directory may not be there yet; what counts is the file system it will be on.
    let Some(there) = data_dir.ancestors().find(|p| p.exists()) else {
        return Finding::lacking(
            NAME,
            format!("{} is nowhere", data_dir.display()),
            "give an absolute path as server.data_dir",
        );
    };
    match rustix::fs::statvfs(there) {
        Err(e) => Finding::lacking(
            NAME,
            format!("cannot look at {}: {e}", there.display()),
            format!("df -h {}", there.display()),
        ),
        Ok(facts) => {
            let gb = facts.f_bavail.saturating_mul(facts.f_frsize) >> 30;
            let detail = format!("{gb} GiB for {}", data_dir.display());
            if gb >= DISK_NEEDED_GB {
                Finding::well(NAME, detail)
            } else {
                Finding::lacking(
                    NAME,
                    format!("{detail}, {DISK_NEEDED_GB} are needed"),
                    "free some, or set server.data_dir in /etc/proximity/config.yml to a larger disk",
                )
            }
        }
    }
}

/// Sets a kernel setting now and for the next boot. Appending keeps other lines of the file; a
/// line that is there twice is harmless.
fn sysctl(path: &str, value: u64) -> String {
    format!("sysctl -w {path}={value} && echo '{path} = {value}' >> {SYSCTL_FILE}")
}

/// The effective uid in `/proc/self/status` (`Uid: real effective saved filesystem`).
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// `(first, count)` of every range that subuid(5) gives to root, by name or number.
fn ranges_of_root(text: &str) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        matches!(owner, "root" | "0").then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// Whether a list of the kernel's modules names one: `kernel/net/bridge/bridge.ko.xz: …`.
fn names_module(list: &str, module: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let name = file.split(".ko").next().unwrap_or_default();
        file.contains(".ko") && name.replace('-', "_") == module
    })
}

/// Whether a version 1 hierarchy with this controller is mounted, by proc_pid_mountinfo(5): the
/// file system's type is the first field after the lone hyphen, its options are the third.
fn mounts_controller(mounts: &str, controller: &str) -> bool {
    mounts.lines().any(|line| {
        let Some((_, tail)) = line.split_once(" - ") else {
            return false;
        };
        let mut fields = tail.split(' ');
        let is_v1 = fields.next() == Some("cgroup");
        let options = fields.nth(1).unwrap_or_default();
        is_v1 && options.split(',').any(|o| o == controller)
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests;
