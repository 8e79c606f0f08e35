//! Commands and sandboxes through the controller's REST API on its unix socket, beside their peers.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::exec::ExecResult;
use api::operation::{Operation, StepState};
use serde::Deserialize;
use serde_json::json;

use crate::caller::Caller;
use crate::peer;
use crate::plan::{Peer, Plan};
use crate::table::{Goal, Table};
use crate::timing::{Contestant, Times, contest, short, timed};

const EXEC_ROUNDS: usize = 500;
const CREATE_ROUNDS: usize = 20;
const CREATE_MAX_MS: u64 = 120;
const GONE_DEADLINE: Duration = Duration::from_secs(20);

/// Times of the parts of a whole, in the order in which they were first seen.
#[derive(Default)]
struct Parts(Vec<(String, Vec<Duration>)>);

impl Parts {
    fn note(&mut self, part: &str, time: Duration) {
        match self.0.iter_mut().find(|(known, _)| known == part) {
            Some((_, times)) => times.push(time),
            None => self.0.push((part.to_owned(), vec![time])),
        }
    }
}

/// `/bin/true` in a sandbox that runs.
pub fn exec(plan: &Plan, table: &mut Table) -> anyhow::Result<()> {
    let mut caller = Caller::unix(&plan.socket, "")?;
    let path = format!("/api/v1/instances/{}/exec", plan.guest);
    let ours = Contestant::new(EXEC_ROUNDS, || {
        Ok(timed(|| run(&mut caller, &path, &["/bin/true"]))?.0)
    });
    let what = match plan.through_relay {
        true => "true: REST, relay, agent",
        false => "true: REST, agent",
    };
    beside(what, ours, &plan.exec, table)?;
    Ok(())
}

/// From the call that makes a sandbox to the output of its first command.
pub fn create(plan: &Plan, table: &mut Table) -> anyhow::Result<()> {
    let mut caller = Caller::unix(&plan.socket, "")?;
    let parts: RefCell<Parts> = RefCell::default();
    let ours = Contestant::new(CREATE_ROUNDS, || {
        create_once(&mut caller, &mut parts.borrow_mut())
    });
    let what = "sandbox: call to first output";
    let ours = beside(what, ours, &plan.create, table);
    table.bound_times(what, &ours, Some(CREATE_MAX_MS));
    for (part, times) in parts.into_inner().0 {
        table.bound_times(&format!("sandbox: {part}"), &Times::new(times), None);
    }
    Ok(())
}

/// Measures ours and all peers in turns, and adds a row for each peer; returns ours.
fn beside(
    what: &str,
    ours: Contestant<'_>,
    peers: &[Peer],
    table: &mut Table,
) -> anyhow::Result<Times> {
    let mut all = vec![ours];
    all.extend(peers.iter().map(peer::contestant));
    let mut times = contest(all).into_iter();
    let ours = times.next().context("nobody was measured")?;
    for (peer, its) in peers.iter().zip(times) {
        let goal = peer.at_most.map_or(Goal::None, Goal::AtMost);
        table.times(what, &ours, &peer.name, &its, goal);
    }
    ours
}

/// What a command in a guest writes to its standard output.
pub fn run(caller: &mut Caller, path: &str, argv: &[&str]) -> anyhow::Result<String> {
    let answer = caller.ok("POST", path, &json!({ "argv": argv }).to_string())?;
    let result: ExecResult = serde_json::from_slice(&answer)?;
    ensure!(
        result.exit_code == Some(0),
        "it ended with {:?}: {}",
        result.exit_code,
        result.stderr
    );
    Ok(result.stdout)
}

fn create_once(caller: &mut Caller, parts: &mut Parts) -> anyhow::Result<Duration> {
    let name = format!("bench-{}", peer::number());
    let request = json!({"name": name, "ttl_s": 600}).to_string();
    let began = Instant::now();
    let (status, answer) = caller.call("POST", "/api/v1/sandboxes?wait=30s", &request)?;
    let created = began.elapsed();
    ensure!(
        status == 201,
        "the sandbox was not made: {status} {}",
        String::from_utf8_lossy(&answer)
    );
    let path = format!("/api/v1/instances/{name}/exec");
    let output = run(caller, &path, &["echo", "hello"])?;
    let time = began.elapsed();
    ensure!(output == "hello\n", "its first command wrote {output:?}");
    parts.note("of it, until the call returns", created);
    for (step, elapsed) in steps(caller, &name)? {
        parts.note(&format!("of that, step `{step}`"), elapsed);
    }
    parts.note("of it, the first command", time - created);
    let began = Instant::now();
    remove(caller, &name)?;
    parts.note("removed, until nothing is left", began.elapsed());
    Ok(time)
}

/// What the controller says about the steps of making it.
fn steps(caller: &mut Caller, name: &str) -> anyhow::Result<Vec<(String, Duration)>> {
    let all = caller.ok("GET", "/api/v1/operations", "")?;
    let all: Vec<OperationName> = serde_json::from_slice(&all)?;
    let made = all.into_iter().find(|operation| operation.target == name);
    let id = made.context("the operation that made it is not there")?.id;
    let operation = caller.ok("GET", &format!("/api/v1/operations/{id}"), "")?;
    let operation: Operation = serde_json::from_slice(&operation)?;
    let done = operation
        .events
        .into_iter()
        .filter(|event| event.state == StepState::Done);
    Ok(done
        .filter_map(|event| Some((event.step, Duration::from_millis(event.elapsed_ms?))))
        .collect())
}

/// An operation in the list of all.
#[derive(Deserialize)]
struct OperationName {
    id: String,
    target: String,
}

fn remove(caller: &mut Caller, name: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/sandboxes/{name}");
    caller.ok("DELETE", &path, "")?;
    let began = Instant::now();
    while caller.call("GET", &path, "")?.0 != 404 {
        ensure!(
            began.elapsed() < GONE_DEADLINE,
            "{name} is not gone after {}",
            short(began.elapsed())
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
