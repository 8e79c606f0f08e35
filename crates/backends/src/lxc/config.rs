//! The one writer of LXC configuration files. Values are typed; a control character in any of them is
//! refused, because a newline would start a line like `lxc.hook.pre-start=`, which runs on the node.

use std::path::Path;

use engine::image::{ImageSpec, Init};
use engine::ports::{GuestSpec, PortError};

use super::ids::{ID_COUNT, Ids};
use super::layout::GuestDir;
use super::lxcfs;
use super::machine::{Cgroups, Machine};

/// What is process 1 of a guest without an init system.
const AGENT_AS_INIT: &str = "/usr/lib/proximity/proximity-agent init";

/// Where the agent's directory appears in guests.
pub(crate) const AGENT_DIR_IN_GUEST: &str = "usr/lib/proximity";

/// The hooks that other packages add to `common.conf`. lxcfs is the one that matters, see `lxcfs`.
const FOREIGN_HOOKS: [&str; 2] = ["lxc.hook.mount", "lxc.hook.post-stop"];

/// A configuration file under construction.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn set(&mut self, key: &str, value: &str) -> Result<(), PortError> {
        let legal_key = key.starts_with("lxc.")
            && key
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_'));
        if !legal_key
            || value.is_empty()
            || value.trim() != value
            || value.chars().any(char::is_control)
        {
            return Err(PortError::new(
                "write an LXC configuration",
                format!("{key} can't have the value {value:?}"),
            ));
        }
        self.text.push_str(key);
        self.text.push_str(" = ");
        self.text.push_str(value);
        self.text.push('\n');
        Ok(())
    }

    /// Takes back what was set so far.
    fn clear(&mut self, key: &'static str) {
        self.text.push_str(key);
        self.text.push_str(" =\n");
    }
}

/// The name of the node's end of a guest's interface: derived from the id, so it is known before the
/// guest runs and nobody can choose it.
pub(crate) fn host_interface(id: &api::InstanceId, index: usize) -> String {
    let digits: String = id.as_str().chars().skip(2).take(12).collect();
    format!("px{index}{digits}")
}

/// Renders the configuration of a guest. Its image's init system decides only with which signal it is told to halt; the
/// agent as process 1 takes either.
pub(crate) fn render(
    spec: &GuestSpec,
    image: &ImageSpec,
    dir: &GuestDir,
    lower: &Path,
    agent: &Path,
    machine: &Machine,
    lxcfs: &[String],
) -> Result<String, PortError> {
    let mut lines = Lines::default();
    let path = |p: &Path| -> Result<String, PortError> {
        p.to_str().map(str::to_owned).ok_or_else(|| {
            PortError::new(
                "write an LXC configuration",
                format!("{} is not UTF-8", p.display()),
            )
        })
    };
    // Seccomp profile, device deny and capability drop come from here, so they come first.
    lines.set("lxc.include", "/usr/share/lxc/config/common.conf")?;
    lines.set("lxc.include", "/usr/share/lxc/config/userns.conf")?;
    FOREIGN_HOOKS.into_iter().for_each(|key| lines.clear(key));
    lines.set("lxc.uts.name", spec.name.as_str())?;
    lines.set("lxc.arch", "linux64")?;
    lines.set(
        "lxc.rootfs.path",
        &format!("overlay:{}:{}", path(lower)?, path(&dir.upper())?),
    )?;
    // Without userxattr the overlay can't mark directories opaque, and removing a directory of the
    // image fails with EIO.
    lines.set("lxc.rootfs.options", "userxattr")?;
    let first = Ids::of(image.ids).root();
    for kind in ["u", "g"] {
        lines.set("lxc.idmap", &format!("{kind} 0 {first} {ID_COUNT}"))?;
    }
    match machine.apparmor {
        true => {
            lines.set("lxc.apparmor.profile", "generated")?;
            lines.set("lxc.apparmor.allow_nesting", "1")?;
        }
        false => lines.set("lxc.apparmor.profile", "unconfined")?,
    }
    if machine.systemd {
        // Below the scope in which the guest is started, which systemd leaves alone.
        lines.set("lxc.cgroup.relative", "1")?;
    }
    lines.set("lxc.mount.auto", "proc:mixed sys:mixed cgroup:mixed")?;
    lines.set(
        "lxc.mount.entry",
        &format!(
            "{} {AGENT_DIR_IN_GUEST} none bind,ro,nosuid,nodev,create=dir 0 0",
            path(agent)?
        ),
    )?;
    // Read-only, so that a guest can't give itself another identity.
    lines.set(
        "lxc.mount.entry",
        &format!(
            "{} {} none bind,ro,nosuid,nodev,noexec,create=dir 0 0",
            path(&dir.identity())?,
            wire::identity::DIRECTORY.trim_start_matches('/')
        ),
    )?;
    for file in lxcfs {
        let entry = format!("{}/{file} {file} none bind,optional 0 0", lxcfs::MOUNTED);
        lines.set("lxc.mount.entry", &entry)?;
    }
    if spec.kind == "sandbox" {
        lines.set("lxc.init.cmd", AGENT_AS_INIT)?;
    }
    lines.set("lxc.tty.max", "0")?;
    lines.set("lxc.pty.max", "1024")?;
    let halt = match image.init {
        Init::Systemd => "SIGRTMIN+3",
        Init::Openrc => "SIGPWR",
    };
    lines.set("lxc.signal.halt", halt)?;
    lines.set("lxc.console.logfile", &path(&dir.console())?)?;
    lines.set("lxc.console.size", "1MB")?;
    lines.set("lxc.console.rotate", "1")?;
    lines.set("lxc.log.file", &path(&dir.log())?)?;
    lines.set("lxc.log.level", "WARN")?;
    render_nics(&mut lines, spec)?;
    render_limits(&mut lines, spec, machine.cgroups)?;
    Ok(lines.text)
}

fn render_nics(lines: &mut Lines, spec: &GuestSpec) -> Result<(), PortError> {
    for (index, nic) in spec.nics.iter().enumerate() {
        let mut set = |key: &str, value: &str| lines.set(&format!("lxc.net.{index}.{key}"), value);
        set("type", "veth")?;
        set("link", nic.bridge.as_str())?;
        set("flags", "up")?;
        set("name", &format!("eth{index}"))?;
        set("hwaddr", &nic.mac.to_string())?;
        set("veth.pair", &host_interface(&spec.id, index))?;
        if let Some(address) = nic.address {
            set("ipv4.address", &address.to_string())?;
        }
        if let Some(gateway) = nic.gateway {
            set("ipv4.gateway", &gateway.to_string())?;
        }
    }
    Ok(())
}

/// CFS period in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

fn render_limits(lines: &mut Lines, spec: &GuestSpec, cgroups: Cgroups) -> Result<(), PortError> {
    let memory_bytes = u64::from(spec.limits.memory_mb) << 20;
    let quota_us = u64::from(spec.limits.cpu_millis) * CPU_PERIOD_US / 1000;
    match cgroups {
        Cgroups::V1 => {
            lines.set(
                "lxc.cgroup.memory.limit_in_bytes",
                &memory_bytes.to_string(),
            )?;
            lines.set("lxc.cgroup.cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            lines.set("lxc.cgroup.cpu.cfs_quota_us", &quota_us.to_string())?;
            lines.set("lxc.cgroup.pids.max", &spec.limits.pids.to_string())
        }
        Cgroups::V2 => {
            lines.set("lxc.cgroup2.memory.max", &memory_bytes.to_string())?;
            lines.set("lxc.cgroup2.memory.swap.max", "0")?;
            lines.set(
                "lxc.cgroup2.cpu.max",
                &format!("{quota_us} {CPU_PERIOD_US}"),
            )?;
            lines.set("lxc.cgroup2.pids.max", &spec.limits.pids.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::InstanceId;
    use proptest::prelude::*;

    fn guest() -> GuestSpec {
        let config = engine::Config::built_in().unwrap();
        let zone = config.zones.values().next().unwrap();
        zone.appliance_guest(&InstanceId::from_bytes([0x5a; 8]))
    }

    fn rendered(machine: &Machine) -> String {
        let spec = guest();
        let dir = GuestDir::for_spec(Path::new("/var/lib/proximity/guests"), &spec);
        render(
            &spec,
            &engine::zone::appliance_image(wire::family::FamilyName::Debian),
            &dir,
            Path::new("/images/d/rootfs"),
            Path::new("/var/lib/proximity/agent"),
            machine,
            &["proc/meminfo".to_owned()],
        )
        .unwrap()
    }

    #[test]
    fn the_appliance_on_cgroup_v1_and_v2() {
        insta::assert_snapshot!(
            "v1",
            rendered(&Machine {
                cgroups: Cgroups::V1,
                apparmor: false,
                systemd: false,
            })
        );
        insta::assert_snapshot!(
            "v2_apparmor",
            rendered(&Machine {
                cgroups: Cgroups::V2,
                apparmor: true,
                systemd: true,
            })
        );
    }

    #[test]
    fn host_interfaces_fit_the_kernel() {
        let name = host_interface(&InstanceId::from_bytes([0xff; 8]), 1);
        assert_eq!(name, "px1ffffffffffff");
        assert_eq!(name.len(), 15);
    }

    proptest! {
        /// What is set can be read back line by line, or is refused.
        #[test]
        fn no_value_leaves_its_line(key in "lxc\\.[a-z.]{1,10}|[ -~\n]{1,12}", value in "\\PC{0,30}|[a-z\n\r\0 =#]{0,20}") {
            let mut lines = Lines::default();
            if lines.set(&key, &value).is_ok() {
                prop_assert_eq!(lines.text.lines().count(), 1);
                let line = format!("{value}\n");
                prop_assert_eq!(lines.text.split_once(" = "), Some((key.as_str(), line.as_str())));
            } else {
                prop_assert!(lines.text.is_empty());
            }
        }
    }
}
