//! The cgroups of a virtual host: one directory `proximity-testbed-NAME` in every hierarchy of the machine.
//!
//! Owns those directories and nothing else in the cgroup tree. It never moves a process but its own,
//! and never kills one: the pid namespace does that, here the empty directories are removed.
//!
//! On a machine with cgroup v1 the host's processes sit in the directory itself. On a pure v2 machine
//! a cgroup with controllers for its children may hold no process, so they sit in its leaf `init`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{During, Result};
use crate::name::HostName;

/// Where the machine, and later the host itself, keeps its cgroup mounts.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "proximity-testbed-";
const LEAF: &str = "init";

/// A mounted cgroup hierarchy of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    mount: PathBuf,
    /// The controllers or the `name=…` of a v1 hierarchy; empty for v2.
    pub(crate) controllers: Vec<String>,
    /// This process's own cgroup in it.
    own: PathBuf,
}

impl Hierarchy {
    fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    fn host(&self, name: &HostName) -> PathBuf {
        self.mount.join(format!("{PREFIX}{name}"))
    }

    /// Files whose values a host takes over from the cgroup of the caller: where a limit holds, it goes on holding.
    fn inherited(&self) -> &'static [&'static str] {
        if self.is_v2() {
            return &["memory.max", "pids.max", "cpu.max"];
        }
        match self.controllers.first().map(String::as_str) {
            Some("cpuset") => &["cpuset.cpus", "cpuset.mems"],
            Some("memory") => &["memory.limit_in_bytes"],
            Some("pids") => &["pids.max"],
            _ => &[],
        }
    }
}

/// Every hierarchy of this machine that is mounted.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = read("/proc/self/mountinfo")?;
    let memberships = read("/proc/self/cgroup")?;
    Ok(parse(&mounts, &memberships))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).during("read", path)
}

fn parse(mountinfo: &str, memberships: &str) -> Vec<Hierarchy> {
    let mounts: Vec<(PathBuf, &str, Vec<&str>)> =
        mountinfo.lines().filter_map(cgroup_mount).collect();
    let mut found = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(list), Some(own)) = (fields.next(), fields.next()) else {
            continue;
        };
        let controllers: Vec<&str> = list.split(',').filter(|c| !c.is_empty()).collect();
        let kind = if controllers.is_empty() {
            "cgroup2"
        } else {
            "cgroup"
        };
        let mount = mounts.iter().find(|(_, fs_type, options)| {
            *fs_type == kind && controllers.iter().all(|c| options.contains(c))
        });
        if let Some((mount, _, _)) = mount {
            found.push(Hierarchy {
                mount: mount.clone(),
                controllers: controllers.iter().map(|&c| c.to_owned()).collect(),
                own: mount.join(own.trim_start_matches('/')),
            });
        }
    }
    found
}

/// Mount point, file system type and super block options of a cgroup line of mountinfo (see proc(5)).
fn cgroup_mount(line: &str) -> Option<(PathBuf, &str, Vec<&str>)> {
    let (before, after) = line.split_once(" - ")?;
    let mount = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    let fs_type = after
        .next()
        .filter(|fs_type| fs_type.starts_with("cgroup"))?;
    Some((
        PathBuf::from(mount),
        fs_type,
        after.nth(1)?.split(',').collect(),
    ))
}

/// No v1 controller on this machine: everything is on the one v2 hierarchy.
pub(crate) fn is_pure_v2(hierarchies: &[Hierarchy]) -> bool {
    hierarchies.iter().all(Hierarchy::is_v2)
}

/// Makes the host's directory in every hierarchy, with what the caller's own cgroup is limited to.
pub(crate) fn create(name: &HostName) -> Result<()> {
    let all = hierarchies()?;
    let pure_v2 = is_pure_v2(&all);
    for hierarchy in &all {
        let dir = hierarchy.host(name);
        if pure_v2 {
            delegate(&hierarchy.mount)?;
        }
        fs::create_dir(&dir).during("make the cgroup", &dir)?;
        for file in hierarchy.inherited() {
            inherit(&hierarchy.own.join(file), &dir.join(file))?;
        }
        if pure_v2 {
            let leaf = dir.join(LEAF);
            fs::create_dir(&leaf).during("make the cgroup", &leaf)?;
        }
    }
    Ok(())
}

fn inherit(from: &Path, to: &Path) -> Result<()> {
    match fs::read_to_string(from) {
        Ok(value) if !value.trim().is_empty() => fs::write(to, value.trim()).during("write", to),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).during("read", from),
    }
}

/// Lets the children of a v2 cgroup use every controller that it has.
pub(crate) fn delegate(dir: &Path) -> Result<()> {
    let available = dir.join("cgroup.controllers");
    let enabled = dir.join("cgroup.subtree_control");
    let available = fs::read_to_string(&available).during("read", &available)?;
    for controller in available.split_whitespace() {
        // One by one: a controller that cannot be had (cpu beside real-time tasks) must not cost the others.
        if let Err(error) = fs::write(&enabled, format!("+{controller}")) {
            eprintln!(
                "cgroup: {controller} is not delegated in {}: {error}",
                dir.display()
            );
        }
    }
    Ok(())
}

/// Moves this process into the host's directories (top) or, on a pure v2 machine, into their leaf.
pub(crate) fn join(name: &HostName, leaf: bool) -> Result<()> {
    let all = hierarchies()?;
    let leaf = leaf && is_pure_v2(&all);
    for hierarchy in &all {
        let dir = hierarchy.host(name);
        let procs = if leaf { dir.join(LEAF) } else { dir }.join("cgroup.procs");
        fs::write(&procs, "0").during("enter the cgroup", &procs)?;
    }
    Ok(())
}

/// The directories of a host that exist.
pub(crate) fn present(name: &HostName) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?
        .iter()
        .map(|h| h.host(name))
        .filter(|dir| dir.exists())
        .collect())
}

/// Every host name that a cgroup directory stands for.
pub(crate) fn names() -> Result<Vec<HostName>> {
    let mut names = Vec::new();
    for hierarchy in hierarchies()? {
        let entries = fs::read_dir(&hierarchy.mount).during("read", &hierarchy.mount)?;
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let name = file_name
                .to_str()
                .and_then(|text| text.strip_prefix(PREFIX));
            names.extend(name.and_then(|name| name.parse().ok()));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether any process is in the host's cgroups.
pub(crate) fn is_populated(name: &HostName) -> Result<bool> {
    Ok(present(name)?.iter().any(|dir| has_processes(dir)))
}

fn has_processes(dir: &Path) -> bool {
    let here =
        fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|procs| !procs.trim().is_empty());
    here || children(dir).iter().any(|child| has_processes(child))
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the host's directories with all below them; waits for processes that are still ending.
pub(crate) fn remove(name: &HostName, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut result = Ok(());
    for dir in present(name)? {
        let removed = loop {
            match remove_tree(&dir) {
                Err(error)
                    if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(2));
                }
                other => break other,
            }
        };
        if let Err(error) = removed {
            result = Err(error).during("remove the cgroup", &dir);
        }
    }
    result
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_hierarchies_are_found_by_their_options() {
        let found = parse(
            HYBRID,
            "4:name=systemd:/\n3:cpuset:/a\n2:cpu,cpuacct:/\n1:net_cls:/\n0::/b:c\n",
        );
        let mounts: Vec<_> = found.iter().map(|h| h.mount.to_str().unwrap()).collect();
        assert_eq!(
            mounts,
            [
                "/sys/fs/cgroup/systemd",
                "/sys/fs/cgroup/cpuset",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/unified"
            ]
        );
        assert_eq!(found[1].own, Path::new("/sys/fs/cgroup/cpuset/a"));
        assert_eq!(found[3].own, Path::new("/sys/fs/cgroup/unified/b:c"));
        assert!(!is_pure_v2(&found));
    }

    #[test]
    fn a_machine_with_v2_alone_is_known() {
        let found = parse(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
            "0::/user.slice/session-1.scope\n",
        );
        assert_eq!(found.len(), 1);
        assert!(is_pure_v2(&found));
        let name = "demo".parse().unwrap();
        assert_eq!(
            found[0].host(&name),
            Path::new("/sys/fs/cgroup/proximity-testbed-demo")
        );
    }
}
