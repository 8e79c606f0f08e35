//! Many sandboxes asked for in one moment.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::{LoadPlan, until_empty};
use crate::caller::Caller;
use crate::controller::run;
use crate::table::Table;
use crate::timing::{Times, short};

const SANDBOXES: usize = 50;
const SLOWEST: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// From the moment in which all ask to the output of each one's first command.
pub fn measure(plan: &LoadPlan, table: &mut Table) -> anyhow::Result<()> {
    let ready = Barrier::new(SANDBOXES);
    let one = |number: usize| -> anyhow::Result<Duration> {
        let caller = plan.caller();
        ready.wait();
        first_output(&mut caller?, &format!("box-{number}"))
    };
    let times: anyhow::Result<Vec<Duration>> = std::thread::scope(|scope| {
        let one = &one;
        let all: Vec<_> = (0..SANDBOXES)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        let ended = all.into_iter().map(|one| one.join());
        ended
            .map(|time| time.ok().context("a caller panicked")?)
            .collect()
    });
    let mut caller = plan.caller()?;
    let there: Vec<api::sandbox::Sandbox> = super::get(&mut caller, "/sandboxes")?;
    for sandbox in there {
        caller.ok("DELETE", &format!("/api/v1/sandboxes/{}", sandbox.name), "")?;
    }
    let began = Instant::now();
    until_empty(&mut caller, "/sandboxes", PATIENCE)?;
    let gone = began.elapsed();
    let times = times.and_then(Times::new);
    let p95 = times.as_ref().map(|times| times.percentile(95));
    let p95 = p95.map_err(|error| anyhow::anyhow!("{error:#}"));
    let what = format!("{SANDBOXES} sandboxes at once: first output");
    table.bound(
        &format!("{what}, 95th percentile"),
        &p95,
        Some(SLOWEST),
        |t| short(*t),
    );
    table.bound_times(&what, &times, None);
    table.bound(
        &format!("{SANDBOXES} sandboxes: all killed"),
        &Ok(gone),
        None,
        |t| short(*t),
    );
    Ok(())
}

fn first_output(caller: &mut Caller, name: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let request = json!({"name": name, "ttl_s": 600}).to_string();
    let (status, answer) = caller.call("POST", "/api/v1/sandboxes?wait=30s", &request)?;
    ensure!(
        status == 201,
        "{name} was not made: {status} {}",
        String::from_utf8_lossy(&answer)
    );
    let path = format!("/api/v1/instances/{name}/exec");
    let output = run(caller, &path, &["echo", "hello"])?;
    ensure!(output == "hello\n", "its first command wrote {output:?}");
    Ok(began.elapsed())
}
