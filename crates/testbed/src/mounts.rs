//! The file systems of a virtual host, as its init makes them.
//!
//! Owns the mounts of the host's own mount namespace, and the generated files in `STATE/NAME/files`.
//! It edits no file of the machine; where a mount point is missing it makes an empty directory or file.
//!
//! | inside | is |
//! |---|---|
//! | `/proc` `/sys` `/sys/fs/cgroup` `/run` `/dev/pts` `/dev/shm` `/dev/mqueue` | fresh |
//! | `/var/lib/proximity`, `/etc/proximity`, `/var/lib/lxc`, `/var/lib/misc` | `STATE/NAME/{node,etc,lxc,misc}` |
//! | `/etc/{hosts,hostname,resolv.conf,subuid,subgid}` | generated, in `STATE/NAME/files` |
//! | `/var/lib/proximity-testbed` and the state directory | empty: a host does not see other hosts |
//! | everything else, `/var/cache/proximity` and `/tmp` too | the machine's |

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use crate::cgroup::{self, Hierarchy};
use crate::error::{During, Result};
use crate::keeper::Spec;
use crate::{DEFAULT_STATE_DIR, network};

/// Directories that a host has for itself: the name in its state directory, and the place inside.
const OWN_DIRS: [(&str, &str); 4] = [
    ("node", "/var/lib/proximity"),
    ("etc", "/etc/proximity"),
    ("lxc", "/var/lib/lxc"),
    ("misc", "/var/lib/misc"),
];
/// Made on the machine when missing, so that every host sees the one image cache.
const SHARED_CACHE: &str = "/var/cache/proximity";
/// Where lxcfs is mounted.
pub(crate) const LXCFS: &str = "/var/lib/lxcfs";
/// Ids for unprivileged guests: enough for 15,000 sandboxes with 65,536 ids each.
const ID_RANGE: &str = "root:100000:1000000000\n";

/// Makes the host's view of the file system; `hierarchies` are the machine's, read before.
pub(crate) fn arrange(spec: &Spec, hierarchies: &[Hierarchy]) -> Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .during("make private", "/")?;
    let state = spec.state();
    make_dir(Path::new(SHARED_CACHE))?;
    make_dir(Path::new(LXCFS))?;
    for (own, place) in OWN_DIRS {
        let own = state.join(own);
        make_dir(&own)?;
        make_dir(Path::new(place))?;
        bind(&own, Path::new(place))?;
    }
    let resolver = resolver_in_run();
    bind_generated(spec, &state.join("files"), resolver.is_some())?;

    for covered in ["/sys", "/proc", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
        unmount_all(covered);
    }
    fresh(
        "proc",
        "/proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    )?;
    fresh(
        "sysfs",
        "/sys",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    )?;
    // Where the kernel has them; lxc looks here for AppArmor.
    drop(fresh(
        "securityfs",
        "/sys/kernel/security",
        MountFlags::empty(),
        None,
    ));
    drop(fresh("bpf", "/sys/fs/bpf", MountFlags::empty(), None));
    mount_cgroups(hierarchies)?;
    fresh(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"gid=5,mode=620,ptmxmode=666"),
    )?;
    for place in ["/dev/shm", "/dev/mqueue"] {
        make_dir(Path::new(place))?;
    }
    fresh(
        "tmpfs",
        "/dev/shm",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=1777"),
    )?;
    fresh(
        "mqueue",
        "/dev/mqueue",
        MountFlags::NOSUID | MountFlags::NODEV,
        None,
    )?;
    mount_run()?;
    if let Some(resolver) = resolver {
        write_resolver(&resolver)?;
    }
    let default = Path::new(DEFAULT_STATE_DIR);
    let other = Some(spec.state_dir.as_path()).filter(|dir| *dir != default);
    for hidden in std::iter::once(default).chain(other) {
        // Made where it is missing: another host may make it later, and this one would see into it.
        make_dir(hidden)?;
        mount(
            "tmpfs",
            hidden,
            "tmpfs",
            MountFlags::NODEV,
            Some(c"mode=700"),
        )
        .during("hide", hidden)?;
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).during("make", dir)
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount_bind(source, target).during("bind-mount on", target)
}

fn fresh(fs_type: &str, target: &str, flags: MountFlags, data: Option<&CStr>) -> Result<()> {
    mount(fs_type, target, fs_type, flags, data).during("mount", target)
}

/// Takes the machine's own mounts away, whose lines in mountinfo would lead programs to cgroups outside.
fn unmount_all(place: &str) {
    // Mounts may lie on one another; the last call fails because nothing is mounted there any more.
    while unmount(place, UnmountFlags::DETACH).is_ok() {}
}

fn mount_cgroups(hierarchies: &[Hierarchy]) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if cgroup::is_pure_v2(hierarchies) {
        fresh("cgroup2", cgroup::ROOT, flags, None)?;
        return cgroup::delegate(Path::new(cgroup::ROOT));
    }
    fresh("tmpfs", cgroup::ROOT, flags, Some(c"mode=755"))?;
    for hierarchy in hierarchies {
        let list = hierarchy.controllers.join(",");
        let name = match list.strip_prefix("name=") {
            Some(name) => name,
            None if list.is_empty() => "unified",
            None => &list,
        };
        let dir = Path::new(cgroup::ROOT).join(name);
        make_dir(&dir)?;
        if list.is_empty() {
            mount("cgroup2", &dir, "cgroup2", flags, None).during("mount", &dir)?;
            continue;
        }
        let options = if list.starts_with("name=") {
            format!("none,{list}")
        } else {
            list.clone()
        };
        let options = std::ffi::CString::new(options)
            .map_err(std::io::Error::from)
            .during("mount", &dir)?;
        mount("cgroup", &dir, "cgroup", flags, Some(options.as_c_str())).during("mount", &dir)?;
        // Co-mounted controllers are also looked for by their own names.
        if hierarchy.controllers.len() > 1 {
            for controller in &hierarchy.controllers {
                let link = Path::new(cgroup::ROOT).join(controller);
                symlink(name, &link).during("link", &link)?;
            }
        }
    }
    Ok(())
}

fn mount_run() -> Result<()> {
    fresh(
        "tmpfs",
        "/run",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755"),
    )?;
    for dir in ["/run/lock", "/run/lock/lxc", "/run/lxc", "/run/testbed"] {
        make_dir(Path::new(dir))?;
    }
    fs::set_permissions("/run/lock", fs::Permissions::from_mode(0o1777))
        .during("open up", "/run/lock")
}

fn generated(spec: &Spec) -> [(&'static str, String); 5] {
    let name = &spec.name;
    let node = network::NODE;
    [
        (
            "hosts",
            format!(
                "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{node} {name}\n"
            ),
        ),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", resolver()),
        ("subuid", ID_RANGE.to_owned()),
        ("subgid", ID_RANGE.to_owned()),
    ]
}

fn bind_generated(spec: &Spec, files: &Path, resolver_in_run: bool) -> Result<()> {
    make_dir(files)?;
    for (name, content) in generated(spec) {
        let file = files.join(name);
        fs::write(&file, content).during("write", &file)?;
        let place = Path::new("/etc").join(name);
        // A link into /run leads nowhere once /run is fresh: that file is written there.
        if name == "resolv.conf" && resolver_in_run {
            continue;
        }
        if !place.exists() {
            fs::write(&place, "").during("make", &place)?;
        }
        bind(&file, &place)?;
    }
    Ok(())
}

/// Where `/etc/resolv.conf` leads, when it is a link into `/run`, as on machines with systemd-resolved.
fn resolver_in_run() -> Option<PathBuf> {
    let target = normal(&Path::new("/etc").join(fs::read_link("/etc/resolv.conf").ok()?));
    target.starts_with("/run").then_some(target)
}

fn write_resolver(file: &Path) -> Result<()> {
    if let Some(dir) = file.parent() {
        make_dir(dir)?;
    }
    fs::write(file, resolver()).during("write", file)
}

fn resolver() -> String {
    format!("nameserver {}\n", network::ROUTER)
}

/// The path with `..` resolved by name: its own directories may not exist yet.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    if let Ok(rest) = normal.strip_prefix("/var/run") {
        Path::new("/run").join(rest)
    } else {
        normal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_into_run_are_resolved_by_name() {
        let check = |from: &str, to: &str| assert_eq!(normal(Path::new(from)), Path::new(to));
        check(
            "/etc/../run/systemd/resolve/stub-resolv.conf",
            "/run/systemd/resolve/stub-resolv.conf",
        );
        check("/etc//var/run/x", "/etc/var/run/x");
        check("/var/run/x", "/run/x");
    }
}
