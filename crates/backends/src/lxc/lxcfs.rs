//! What lxcfs shows a guest of itself (its memory, its CPUs, its uptime) in place of the node's.
//!
//! The hook that lxcfs brings starts some twenty programs for each guest and sleeps half a second after each
//! (measured: 50 ms of a start, 500 ms of a removal). The same mounts stand in the guest's configuration
//! instead, where LXC makes them itself.

use std::fs;
use std::path::Path;

/// Where lxcfs is mounted on the node.
pub(super) const MOUNTED: &str = "/var/lib/lxcfs";
/// Shown as one directory where lxcfs has all of it.
const CPUS: &str = "sys/devices/system/cpu";

/// The files and directories to show, below [`MOUNTED`] and below the guest's root alike. None when lxcfs does
/// not run.
pub(super) fn files() -> Vec<String> {
    below(Path::new(MOUNTED))
}

fn below(mounted: &Path) -> Vec<String> {
    let names = |dir: &str| {
        let entries = fs::read_dir(mounted.join(dir))
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        let mut paths: Vec<String> = names.map(|name| format!("{dir}/{name}")).collect();
        paths.sort();
        paths
    };
    let mut files = names("proc");
    if mounted.join(CPUS).join("uevent").exists() {
        files.push(CPUS.to_owned());
    } else {
        files.extend(names(CPUS));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        assert!(below(&dir.path().join("none")).is_empty());
        for file in [
            "proc/uptime",
            "proc/meminfo",
            "sys/devices/system/cpu/online",
        ] {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "").unwrap();
        }
        let online = "sys/devices/system/cpu/online";
        assert_eq!(below(dir.path()), ["proc/meminfo", "proc/uptime", online]);
        fs::write(dir.path().join(CPUS).join("uevent"), "").unwrap();
        assert_eq!(below(dir.path()), ["proc/meminfo", "proc/uptime", CPUS]);
    }
}
