//! What a node and its processes use, from `/proc` and control groups, and what is on it. Reads only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

const GUESTS: &str = "/var/lib/proximity/guests";
const CGROUPS: &str = "/sys/fs/cgroup";
/// What `/proc` counts processor time in, on every architecture that we run on.
const TICK: Duration = Duration::from_millis(10);
/// How deep below a hierarchy a guest's group may be.
const DEPTH: usize = 4;
/// Links, mounts, groups, processes, rules and files of guests.
const THINGS: &str = r"
ip -o link | cut -d: -f2 | grep -o 'px[^@]*'
cut -d' ' -f5 /proc/self/mountinfo | grep /var/lib/proximity
find /sys/fs/cgroup -maxdepth 5 -type d -name 'lxc.*.i-*'
pgrep --exact --list-full lxc-start
nft list table bridge proximity_guest_ports | grep -o 'px[^ ]* . [0-9a-f:]* . [0-9.]*'
ls /var/lib/proximity/guests
losetup --list --noheadings --output BACK-FILE | grep /var/lib/proximity
true
";

/// Everything on the node that a guest could leave behind, line by line.
pub fn things() -> anyhow::Result<BTreeSet<String>> {
    let told = Command::new("sh").args(["-c", THINGS]).output()?;
    ensure!(told.status.success(), "the node could not be looked at");
    let text = String::from_utf8_lossy(&told.stdout);
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// Memory of a process in bytes: now, and the most it ever was.
pub fn memory_of(process: u32) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = |key: &str| -> anyhow::Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no memory of a process")?.parse::<u64>()? << 10)
    };
    Ok((value("VmRSS:")?, value("VmHWM:")?))
}

/// Processor time of a process and of all children that ended.
pub fn time_of(process: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("the name of a process")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(TICK * u32::try_from(ticks)?)
}

/// The control groups of the appliance.
pub struct Appliance {
    id: String,
}

/// What of a guest's memory is what, in bytes.
pub struct Memory {
    pub all: u64,
    /// Pages of files, which the kernel gives back when they are needed.
    pub files: u64,
    /// The processes' own.
    pub own: u64,
    /// The kernel's for it.
    pub kernel: u64,
}

impl Appliance {
    /// That of the only zone.
    pub fn find() -> anyhow::Result<Self> {
        for entry in fs::read_dir(GUESTS).context("list the guests")? {
            let entry = entry?;
            let Ok(mark) = fs::read(entry.path().join("guest.json")) else {
                continue;
            };
            let mark: Value = serde_json::from_slice(&mark)?;
            if mark.pointer("/spec/kind").and_then(Value::as_str) == Some("appliance") {
                let id = entry.file_name().to_string_lossy().into_owned();
                return Ok(Self { id });
            }
        }
        anyhow::bail!("there is no appliance")
    }

    /// A file of its groups, whatever the version of control groups.
    fn file(&self, names: [&str; 2]) -> anyhow::Result<(PathBuf, bool)> {
        let group = format!("lxc.payload.{}", self.id);
        let mut places = vec![(PathBuf::from(CGROUPS), 0)];
        while let Some((place, depth)) = places.pop() {
            let here = place.join(&group);
            for (name, first) in names.iter().zip([true, false]) {
                if here.join(name).exists() {
                    return Ok((here.join(name), first));
                }
            }
            let below = fs::read_dir(&place).into_iter().flatten().flatten();
            let directories = below
                .filter(|entry| depth < DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()));
            places.extend(directories.map(|entry| (entry.path(), depth + 1)));
        }
        anyhow::bail!(
            "the appliance has no control group with {}",
            names.join(" or ")
        )
    }

    /// Its processor time.
    pub fn time(&self) -> anyhow::Result<Duration> {
        let (path, newer) = self.file(["cpu.stat", "cpuacct.usage"])?;
        // Version 1 has a `cpu.stat` too, without this.
        if newer && let Ok(used) = value(&path, "usage_usec") {
            return Ok(Duration::from_micros(used));
        }
        let (path, _) = self.file(["cpuacct.usage", "cpuacct.usage"])?;
        Ok(Duration::from_nanos(number(&path)?))
    }

    /// Its memory.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let (path, newer) = self.file(["memory.current", "memory.usage_in_bytes"])?;
        let all = number(&path)?;
        let facts = path.with_file_name("memory.stat");
        let (files, own) = match newer {
            true => (value(&facts, "file")?, value(&facts, "anon")?),
            false => (value(&facts, "total_cache")?, value(&facts, "total_rss")?),
        };
        let kernel = all.saturating_sub(files + own);
        Ok(Memory {
            all,
            files,
            own,
            kernel,
        })
    }
}

fn number(path: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().parse()?)
}

fn value(path: &Path, key: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(name, _)| *name == key);
    let (_, number) = found.with_context(|| format!("no {key} in {}", path.display()))?;
    Ok(number.trim().parse()?)
}
