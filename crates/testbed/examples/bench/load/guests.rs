//! As many apps as a zone has addresses for, made and taken away, and what the controller and the appliance
//! use when nobody wants anything of them.

use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::node::{Appliance, memory_of, things, time_of};
use super::{LoadPlan, deploy, mean, mib, seconds, share, until_empty};
use crate::table::{Goal, Table};
use crate::timing::{Times, short};

const GUESTS: usize = 150;
/// With so many the appliance's memory and the idle processor time are taken.
const SOME: usize = 50;
/// Deploys that are under way at once. More would only wait for each other's processor.
const CALLERS: usize = 6;
/// The first and the last are means of so many.
const ENDS: usize = 10;
const MADE_WITHIN: Duration = Duration::from_secs(45);
const GONE_WITHIN: Duration = Duration::from_secs(45);
const PATIENCE: Duration = Duration::from_secs(120);
const LAST_TO_FIRST: f64 = 1.3;
const CONTROLLER_BYTES: u64 = 60 << 20;
const APPLIANCE_BYTES: u64 = 96 << 20;
/// Three looks of the zone's worker and one of each app's.
const IDLE: Duration = Duration::from_secs(30);
/// For what was woken by the last deploy.
const SETTLE: Duration = Duration::from_secs(5);
const IDLE_PERCENT: f64 = 1.0;

/// Measures all of it. The pause in the middle counts for nothing.
pub fn measure(plan: &LoadPlan, table: &mut Table) -> anyhow::Result<()> {
    let before = things()?;
    let made = make_all(plan, table);
    let mut caller = plan.caller()?;
    let began = Instant::now();
    let gone = delete_all(plan);
    let gone = gone.and_then(|()| until_empty(&mut caller, "/apps", PATIENCE));
    let gone = gone.map(|()| began.elapsed());
    made?;
    table.bound(
        &format!("{GUESTS} guests: all deleted"),
        &gone,
        Some(GONE_WITHIN),
        seconds,
    );
    let after = things()?;
    let left: Vec<_> = after.difference(&before).collect();
    if let Some(first) = left.first() {
        eprintln!("bench: left behind: {first} and {} more", left.len() - 1);
    }
    let names: Vec<serde_json::Value> = super::get(&mut caller, "/appliance/dns/records")?;
    let leases: Vec<serde_json::Value> = super::get(&mut caller, "/appliance/dhcp/leases")?;
    let named = |all: &[serde_json::Value]| {
        let mine = all.iter().filter(|one| one.to_string().contains("tiny-"));
        mine.count()
    };
    table.bound(
        "left of them: links, mounts, groups, disks, rules, files, names, leases",
        &Ok(left.len() + named(&names) + named(&leases)),
        Some(0),
        ToString::to_string,
    );
    Ok(())
}

fn make_all(plan: &LoadPlan, table: &mut Table) -> anyhow::Result<()> {
    let (first, mut times) = make(plan, 0..SOME)?;
    std::thread::sleep(SETTLE);
    idle(plan, table)?;
    let (rest, more) = make(plan, SOME..GUESTS)?;
    times.extend(more);
    let all = format!("{GUESTS} guests, {CALLERS} at a time");
    table.bound(
        &format!("{all}: all made"),
        &Ok(first + rest),
        Some(MADE_WITHIN),
        seconds,
    );
    let ends = [times.get(..ENDS), times.get(times.len() - ENDS..)];
    let [Some(first), Some(last)] = ends else {
        anyhow::bail!("too few guests were made");
    };
    table.compare(
        &format!("{all}: mean of the last {ENDS}"),
        &Ok(mean(last)),
        &format!("of the first {ENDS}"),
        &Ok(mean(first)),
        Goal::AtMost(LAST_TO_FIRST),
        Duration::as_secs_f64,
        |time| short(*time),
    );
    table.bound_times(&format!("{all}: each"), &Times::new(times), None);
    let (now, most) = memory_of(plan.controller)?;
    table.bound(
        &format!("controller with {GUESTS} guests: memory"),
        &Ok(now),
        Some(CONTROLLER_BYTES),
        mib,
    );
    table.bound("the same: the most so far", &Ok(most), None, mib);
    Ok(())
}

/// Deploys some by several callers at once; the times stand in the order in which the deploys began.
fn make(plan: &LoadPlan, numbers: Range<usize>) -> anyhow::Result<(Duration, Vec<Duration>)> {
    let times = Mutex::new(Vec::new());
    let took = share(plan, CALLERS, numbers.clone(), |caller, number| {
        let time = deploy(caller, &plan.tiny, &format!("tiny-{number}"))?;
        let mut times = times.lock().ok().context("a caller panicked")?;
        times.push((number, time));
        Ok(())
    })?;
    let mut times = times.into_inner()?;
    ensure!(times.len() == numbers.len(), "some were not made");
    times.sort_unstable();
    Ok((took, times.into_iter().map(|(_, time)| time).collect()))
}

/// Asks for the end of each app there is.
fn delete_all(plan: &LoadPlan) -> anyhow::Result<()> {
    let mut caller = plan.caller()?;
    let apps: Vec<api::app::App> = super::get(&mut caller, "/apps")?;
    for app in apps {
        caller.ok("DELETE", &format!("/api/v1/apps/{}", app.name), "")?;
    }
    Ok(())
}

fn idle(plan: &LoadPlan, table: &mut Table) -> anyhow::Result<()> {
    let appliance = Appliance::find()?;
    let used = || anyhow::Ok((time_of(plan.controller)?, appliance.time()?));
    let before = used()?;
    let began = Instant::now();
    std::thread::sleep(IDLE);
    let (after, length) = (used()?, began.elapsed());
    let percent = |time: Duration| time.as_secs_f64() / length.as_secs_f64() * 100.0;
    let text = |percent: &f64| format!("{percent:.2} % of a core");
    let (ours, its) = (percent(after.0 - before.0), percent(after.1 - before.1));
    let with = format!("with {SOME} apps");
    table.bound(
        &format!("idle {with}: controller and appliance"),
        &Ok(ours + its),
        Some(IDLE_PERCENT),
        text,
    );
    table.bound(
        "of it, the controller and its programs",
        &Ok(ours),
        None,
        text,
    );
    table.bound("of it, the appliance", &Ok(its), None, text);
    let memory = appliance.memory()?;
    let what = format!("appliance {with}: memory");
    table.bound(&what, &Ok(memory.all), Some(APPLIANCE_BYTES), mib);
    table.bound("of it, its processes' own", &Ok(memory.own), None, mib);
    table.bound("of it, pages of files", &Ok(memory.files), None, mib);
    table.bound("of it, the kernel's", &Ok(memory.kernel), None, mib);
    Ok(())
}
