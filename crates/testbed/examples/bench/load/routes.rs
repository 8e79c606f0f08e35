//! Many routes: what one more costs, and whether others notice when they come and go.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::sockets::Sockets;
use super::{LoadPlan, deploy, share, until_empty};
use crate::caller::Caller;
use crate::peer;
use crate::table::{Goal, Table};
use crate::timing::{Times, short};

const FEW: usize = 10;
const MANY: usize = 1000;
/// Who add them.
const CALLERS: usize = 8;
/// So many are added, one at a time, and taken away again, for one figure.
const ROUNDS: usize = 40;
const COST: f64 = 1.5;
const SOCKETS: usize = 100;
/// Routes that come and go under load, in each of two runs.
const CHURN: usize = 50;
/// The load ends when the changes have, and after this at the latest.
const LOAD_MAX_S: u64 = 60;
const CONNECTIONS: usize = 16;
const APP: &str = "web";
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures all of it with one app, which goes away with its routes.
pub fn measure(plan: &LoadPlan, table: &mut Table) -> anyhow::Result<()> {
    let mut caller = plan.caller()?;
    deploy(&mut caller, "nginx", APP)?;
    let measured = serve_sockets(plan).and_then(|()| {
        cost(plan, &mut caller, table)?;
        under_load(plan, &mut caller, table)
    });
    let began = Instant::now();
    caller.ok("DELETE", &format!("/api/v1/apps/{APP}"), "")?;
    until_empty(&mut caller, "/apps", PATIENCE)?;
    until_empty(&mut caller, "/appliance/vhosts", PATIENCE)?;
    let what = format!("an app deleted with its {MANY} routes");
    table.bound(&what, &Ok(began.elapsed()), None, |time| short(*time));
    measured
}

/// Makes the app's guest answer websockets on port 8080.
fn serve_sockets(plan: &LoadPlan) -> anyhow::Result<()> {
    let program = plan.proximity.display().to_string();
    let guest_app = plan.guest_app.display().to_string();
    let start = "chmod 755 /usr/local/bin/app
        systemd-run --quiet --unit=app --property=DynamicUser=yes /usr/local/bin/app";
    let copy = [
        &program,
        "--quiet",
        "cp",
        &guest_app,
        "web:/usr/local/bin/app",
    ];
    peer::run(&copy.map(str::to_owned))?;
    peer::run(&[&program, "exec", APP, "--", "sh", "-euc", start].map(str::to_owned))
}

fn host(number: usize) -> String {
    format!("route-{number}.prox.local")
}

fn add(caller: &mut Caller, host: &str, port: u16) -> anyhow::Result<Duration> {
    let request = json!({"host": host, "settings": {"instance": APP, "port": port}}).to_string();
    let began = Instant::now();
    caller.ok("POST", "/api/v1/appliance/vhosts", &request)?;
    Ok(began.elapsed())
}

fn remove(caller: &mut Caller, host: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    caller.ok("DELETE", &format!("/api/v1/appliance/vhosts/{host}"), "")?;
    Ok(began.elapsed())
}

/// One after the other added to those that are there, and removed; the times of each.
fn one_more(caller: &mut Caller) -> anyhow::Result<(Times, Times)> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for number in 0..ROUNDS {
        let host = format!("one-more-{number}.prox.local");
        added.push(add(caller, &host, 80)?);
        removed.push(remove(caller, &host)?);
    }
    Ok((Times::new(added)?, Times::new(removed)?))
}

fn cost(plan: &LoadPlan, caller: &mut Caller, table: &mut Table) -> anyhow::Result<()> {
    for number in 0..FEW {
        add(caller, &host(number), 80)?;
    }
    let (few, few_removed) = one_more(caller)?;
    let filled = share(plan, CALLERS, FEW..MANY, |caller, number| {
        add(caller, &host(number), 80).map(drop)
    })?;
    let (many, many_removed) = one_more(caller)?;
    let there: Vec<serde_json::Value> = super::get(caller, "/appliance/vhosts")?;
    ensure!(there.len() == MANY + 1, "{} routes are there", there.len());
    let at = format!("at {FEW}");
    let what = |what: &str| format!("a route {what} at {MANY}");
    let goal = Goal::AtMost(COST);
    table.times(&what("added"), &Ok(many), &at, &Ok(few), goal);
    let (many, few) = (Ok(many_removed), Ok(few_removed));
    table.times(&what("removed"), &many, &at, &few, Goal::AtMost(COST));
    let what = format!("{FEW} to {MANY} routes, {CALLERS} at a time");
    table.bound(&what, &Ok(filled), None, |time| short(*time));
    Ok(())
}

fn under_load(plan: &LoadPlan, caller: &mut Caller, table: &mut Table) -> anyhow::Result<()> {
    let proxy = plan.proxy()?;
    let app = "sockets.prox.local";
    add(caller, app, 8080)?;
    let sockets = Sockets::open(SOCKETS, proxy, app)?;
    let kept = loaded(caller, proxy, &[], "kept alive");
    let closed = loaded(
        caller,
        proxy,
        &["-H", "Connection: close"],
        "closed each time",
    );
    let dropped = sockets.end();
    for (how, ran) in [("kept alive", kept), ("closed each time", closed)] {
        let what = format!("{CHURN} routes added and removed, connections {how}: failed requests");
        let (failed, rate) = match ran {
            Ok((failed, rate)) => (Ok(failed), Ok(rate)),
            Err(error) => (Err(anyhow::anyhow!("{error:#}")), Err(error)),
        };
        table.bound(&what, &failed, Some(0), ToString::to_string);
        table.bound("the same: requests a second", &rate, None, |r| {
            format!("{r:.0}/s")
        });
    }
    table.bound(
        &format!("the same, {SOCKETS} websockets: dropped"),
        &Ok(dropped),
        Some(0),
        ToString::to_string,
    );
    Ok(())
}

/// Failed requests and requests a second of `wrk` while routes come and go.
fn loaded(
    caller: &mut Caller,
    proxy: Ipv4Addr,
    more: &[&str],
    how: &str,
) -> anyhow::Result<(u64, f64)> {
    let url = format!("http://{proxy}/");
    let load = Command::new("wrk")
        .args(["-t", "1", "-c", &CONNECTIONS.to_string()])
        .args([
            "-d",
            &format!("{LOAD_MAX_S}s"),
            "-H",
            "Host: web.prox.local",
        ])
        .args(more)
        .arg(&url)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("start wrk")?;
    let began = Instant::now();
    let changed = (0..CHURN).try_for_each(|number| {
        let host = format!("churn-{number}.prox.local");
        add(caller, &host, 80)?;
        remove(caller, &host).map(drop)
    });
    let took = began.elapsed();
    // Told to stop, it says what it has seen.
    if let Ok(Some(pid)) = i32::try_from(load.id()).map(Pid::from_raw) {
        kill_process(pid, Signal::INT).context("end wrk")?;
    }
    let told = load.wait_with_output().context("wait for wrk")?;
    changed?;
    ensure!(
        took < Duration::from_secs(LOAD_MAX_S),
        "the changes took {}, longer than the load",
        short(took)
    );
    let text = String::from_utf8_lossy(&told.stdout);
    ensure!(told.status.success(), "wrk failed: {text}");
    eprintln!("bench: {how}: {} changes in {}", 2 * CHURN, short(took));
    read(&text)
}

/// What `wrk` prints.
fn read(text: &str) -> anyhow::Result<(u64, f64)> {
    let after = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key));
    let rate = after("Requests/sec:").context("wrk tells no rate")?.trim();
    let numbers = |text: &str| -> u64 {
        let words = text.split(|c: char| !c.is_ascii_digit());
        words.filter_map(|word| word.parse::<u64>().ok()).sum()
    };
    let refused = after("Non-2xx or 3xx responses:").map_or(0, numbers);
    let errors = after("Socket errors:").map_or(0, numbers);
    if refused + errors > 0 {
        eprintln!("bench: wrk says\n{text}");
    }
    Ok((refused + errors, rate.parse()?))
}
