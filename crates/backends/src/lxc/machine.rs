//! What this machine's kernel offers to containers. Read once at start.

use std::path::Path;

/// Where resource limits are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// Controllers in hierarchies of their own.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The facts that decide how guests are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cgroups: Cgroups,
    pub(crate) apparmor: bool,
    /// systemd is process 1: guests get scopes of their own.
    pub(crate) systemd: bool,
}

impl Machine {
    /// Looks at the running kernel.
    pub(crate) fn detect() -> Self {
        let controllers =
            std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let unified = controllers.split_whitespace().any(|c| c == "memory");
        let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|s| s.trim() == "Y")
            && Path::new("/sys/kernel/security/apparmor").exists();
        Self {
            cgroups: if unified { Cgroups::V2 } else { Cgroups::V1 },
            apparmor,
            // What sd_booted(3) looks at.
            systemd: Path::new("/run/systemd/system").is_dir(),
        }
    }
}
