//! The sweeper: removes what a host has left, be it by its own keeper or by the next start.
//!
//! Owns nothing. It acts only under the host's lock, so never on a living host; it removes only cgroups
//! that carry our prefix and no process, and directories that carry our mark. It kills no guest process:
//! those ended with their pid namespace.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::error::{During, Error, Result};
use crate::name::HostName;
use crate::registry::{self, HostLock};
use crate::{cgroup, forward};

const PATIENCE: Duration = Duration::from_secs(5);

/// Removes every trace of a host whose lock we hold; goes on past errors and returns the first.
pub(crate) fn remove(name: &HostName, state: &Path, lock: HostLock) -> Result<()> {
    let cgroups = cgroup::remove(name, PATIENCE);
    let mut state_gone = Ok(());
    if registry::is_state(state) {
        forward::end_all(state);
        detach_loop_devices(state);
        state_gone = remove_dir(state);
    }
    // With something left the lock file stays, and with it the way to find it.
    cgroups.and(state_gone)?;
    lock.discard()
}

/// Removes what is left of a host whose keeper has ended; usually nothing is.
pub(crate) fn finish(name: &HostName, state: &Path) -> Result<()> {
    if !state.exists() && cgroup::present(name)?.is_empty() {
        return Ok(());
    }
    match HostLock::take(name)? {
        Some(lock) => remove(name, state, lock),
        // Another sweeper is at it, or a new host has the name already.
        None => Ok(()),
    }
}

/// Removes what dead hosts left, in `state_dir` and on the machine; returns their names.
pub fn sweep(state_dir: &Path) -> Result<Vec<HostName>> {
    let mut swept = Vec::new();
    let mut failed = None;
    for name in candidates(state_dir)? {
        match sweep_one(&name, state_dir) {
            Ok(true) => swept.push(name),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(swept), Err)
}

fn candidates(state_dir: &Path) -> Result<Vec<HostName>> {
    let mut names = registry::locked_names()?;
    names.extend(cgroup::names()?);
    let entries = match fs::read_dir(state_dir) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).during("read", state_dir),
    };
    let marked = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| registry::is_state(&entry.path()));
    names.extend(marked.filter_map(|entry| entry.file_name().to_str()?.parse().ok()));
    names.sort();
    names.dedup();
    Ok(names)
}

fn sweep_one(name: &HostName, state_dir: &Path) -> Result<bool> {
    let Some(mut lock) = HostLock::take(name)? else {
        return Ok(false);
    };
    let noted = lock.state();
    if noted.is_none() && cgroup::is_populated(name)? {
        // Nobody here knows this host, yet it lives: it belongs to another container of this machine.
        lock.discard()?;
        return Ok(false);
    }
    let state = noted.unwrap_or_else(|| state_dir.join(name.as_str()));
    remove(name, &state, lock)?;
    Ok(true)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).during("remove", dir),
        _ => Ok(()),
    }
}

/// Detaches the loop devices whose backing file lies in a directory that is about to go.
fn detach_loop_devices(dir: &Path) {
    let output = Command::new("losetup")
        .args([
            "--list",
            "--noheadings",
            "--raw",
            "--output",
            "NAME,BACK-INO,BACK-MAJ:MIN",
        ])
        .output();
    let Ok(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    let devices: Vec<LoopDevice> = text.lines().filter_map(LoopDevice::parse).collect();
    if devices.is_empty() {
        return;
    }
    let files = inodes(dir);
    for device in devices
        .iter()
        .filter(|device| files.contains(&device.backing))
    {
        drop(
            Command::new("losetup")
                .arg("--detach")
                .arg(&device.path)
                .status(),
        );
    }
}

#[derive(Debug, PartialEq, Eq)]
struct LoopDevice {
    path: String,
    /// Device number and inode of the backing file.
    backing: (u64, u64),
}

impl LoopDevice {
    fn parse(line: &str) -> Option<Self> {
        // `--raw` escapes the blanks with which losetup pads its columns.
        let line = line.replace("\\x20", " ");
        let mut fields = line.split_whitespace();
        let path = fields.next()?.to_owned();
        let inode = fields.next()?.parse().ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(Self {
            path,
            backing: (device, inode),
        })
    }
}

fn inodes(dir: &Path) -> HashSet<(u64, u64)> {
    let mut found = HashSet::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                found.insert((metadata.dev(), metadata.ino()));
            }
        }
    }
    found
}

/// Ends a host, kept or not, and waits until nothing of it is left.
pub fn end(name: &HostName, patience: Duration) -> Result<()> {
    let record = registry::Record::find(name);
    match &record {
        Ok(record) => record.init.kill()?,
        Err(_) if registry::locked_names()?.contains(name) => {}
        Err(_) => return Err(Error::Unknown(name.to_string())),
    }
    let deadline = std::time::Instant::now() + patience;
    loop {
        match HostLock::take(name)? {
            Some(mut lock) => {
                return match lock.state() {
                    Some(state) => remove(name, &state, lock),
                    None => lock.discard(),
                };
            }
            None if std::time::Instant::now() > deadline => {
                return Err(Error::Deadline {
                    what: format!("the end of {name}"),
                    seconds: patience.as_secs(),
                });
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losetup_lines_are_parsed() {
        let device = LoopDevice::parse("/dev/loop3 1234 \\x20\\x20254:0\\x20").unwrap();
        assert_eq!(
            device,
            LoopDevice {
                path: "/dev/loop3".into(),
                backing: (rustix::fs::makedev(254, 0), 1234)
            }
        );
        assert_eq!(LoopDevice::parse("/dev/loop3"), None);
    }
}
