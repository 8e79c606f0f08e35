//! A large file into a guest and out of it, beside a peer that copies to and from this machine.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::peer;
use crate::plan::{Copier, Plan, filled};
use crate::table::{Goal, Table};
use crate::timing::{Contestant, Times, contest};

const SIZE_BYTES: usize = 256 << 20;
const ROUNDS: usize = 5;

/// Where a file lies on each side.
struct Medium<'a> {
    name: &'a str,
    here: &'a Path,
    /// In the guest.
    guest: &'a str,
}

/// Measures both directions, in memory and on disk.
pub fn measure(plan: &Plan, table: &mut Table) -> anyhow::Result<()> {
    let media = [
        Medium {
            name: "in memory",
            here: &plan.memory,
            guest: "/dev/shm/bench",
        },
        Medium {
            name: "on disk",
            here: &plan.disk,
            guest: "/root/bench",
        },
    ];
    let content = content()?;
    for medium in media {
        let source = medium.here.join("source");
        let mut file = File::create(&source).context("make the file to copy")?;
        file.write_all(&content)?;
        file.sync_all()?;
        for copier in &plan.copy {
            both_ways(plan, &medium, copier, &content, table)?;
        }
        let guest = format!("{}:{}", plan.guest, medium.guest);
        drop_copies(plan, &medium, &guest)?;
    }
    Ok(())
}

fn both_ways(
    plan: &Plan,
    medium: &Medium<'_>,
    copier: &Copier,
    content: &[u8],
    table: &mut Table,
) -> anyhow::Result<()> {
    let here = |name: &str| medium.here.join(name).display().to_string();
    let (source, there) = (here("source"), here("there"));
    let guest = format!("{}:{}", plan.guest, medium.guest);
    let back = [here("back-ours"), here("back-its")];
    let cp = |from: &str, to: &str| -> Vec<String> {
        let program = plan.proximity.display().to_string();
        [&program, "--quiet", "cp", from, to]
            .map(str::to_owned)
            .into()
    };
    let [back_ours, back_its] = &back;
    let ways = [
        (
            "up",
            cp(&source, &guest),
            filled(&copier.up, &[("from", &source), ("to", &there)]),
        ),
        (
            "down",
            cp(&guest, back_ours),
            filled(&copier.down, &[("from", &there), ("to", back_its)]),
        ),
    ];
    for (direction, ours, its) in ways {
        let peer = match &copier.missing {
            Some(cause) => Contestant::new(1, move || anyhow::bail!("{cause}")),
            None => Contestant::new(ROUNDS, || settled(&its)),
        };
        let times = contest(vec![Contestant::new(ROUNDS, || settled(&ours)), peer]);
        let (way, goal) = match plan.through_relay {
            true => (", through the relay", Goal::None),
            false => ("", Goal::AtLeast(copier.at_least)),
        };
        let what = format!("256 MiB {direction}, {}{way}", medium.name);
        if let [ours, its] = &times[..] {
            table.compare(&what, ours, &copier.name, its, goal, speed, |times| {
                format!("{:.0} MiB/s ({})", speed(times), times.count())
            });
        }
        // Through both directions, so that one look at the end says that both were right.
        if direction == "down" && times.first().is_some_and(Result::is_ok) {
            let copy = std::fs::read(back_ours).context("read what came back")?;
            ensure!(copy == content, "another file came back from the guest");
        }
    }
    Ok(())
}

/// How long a copy takes when nothing is left to be written by those before it.
fn settled(words: &[String]) -> anyhow::Result<Duration> {
    rustix::fs::sync();
    peer::time_of(words)
}

fn speed(times: &Times) -> f64 {
    SIZE_BYTES as f64 / f64::from(1 << 20) / times.median().as_secs_f64()
}

fn drop_copies(plan: &Plan, medium: &Medium<'_>, guest: &str) -> anyhow::Result<()> {
    for name in ["source", "there", "back-ours", "back-its"] {
        let file = medium.here.join(name);
        if file.exists() {
            std::fs::remove_file(&file).context("remove a copy")?;
        }
    }
    let (name, path) = guest.split_once(':').context("a place in the guest")?;
    let program = plan.proximity.display().to_string();
    let words = [&program, "exec", name, "--", "rm", "-f", path];
    peer::run(&words.map(str::to_owned))
}

/// Bytes that compress badly, so that nobody gains by trying.
fn content() -> anyhow::Result<Vec<u8>> {
    let mut block = vec![0; 1 << 20];
    getrandom::fill(&mut block).map_err(|error| anyhow::anyhow!("random bytes: {error}"))?;
    Ok(block.repeat(SIZE_BYTES / block.len()))
}
