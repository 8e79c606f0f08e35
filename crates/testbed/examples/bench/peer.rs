//! Runs what peers do: commands, and calls to Incus.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::caller::Caller;
use crate::plan::{Peer, Way, filled};
use crate::timing::{Contestant, timed};

/// How much of what a failed command said is shown, in characters.
const SAID_MAX: usize = 200;

/// Numbers that are used once, for `{n}`.
static NUMBER: AtomicUsize = AtomicUsize::new(1);

/// A number that nobody else got.
pub fn number() -> usize {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// A peer that is ready to be measured; one that is missing fails with the cause.
pub fn contestant(peer: &Peer) -> Contestant<'_> {
    match &peer.way {
        Way::Missing(cause) => Contestant::new(1, move || bail!("{cause}")),
        Way::Commands {
            timed: words,
            after,
        } => Contestant::new(peer.rounds, move || {
            let n = number().to_string();
            let all = |list: &[Vec<String>]| {
                list.iter()
                    .try_for_each(|words| run(&filled(words, &[("n", &n)])))
            };
            let done = timed(|| all(words));
            // Cleaned up even after a failure.
            let cleaned = all(after);
            let (time, ()) = done?;
            cleaned.map(|()| time)
        }),
        Way::Incus { socket, instance } => {
            let mut caller = None;
            Contestant::new(peer.rounds, move || {
                let caller = match &mut caller {
                    Some(caller) => caller,
                    none => none.insert(Caller::unix(socket, "")?),
                };
                Ok(timed(|| incus_true(caller, instance))?.0)
            })
        }
    }
}

/// Runs a command to its end; the error holds what it said.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let (program, arguments) = words.split_first().context("a command without words")?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let from = said.chars().count().saturating_sub(SAID_MAX);
        let said: String = said.chars().skip(from).collect();
        bail!("{} {}: {said}", words.join(" "), output.status);
    }
    Ok(())
}

/// Starts `true` without recording what it writes, and waits for its status: the fewest calls there are.
fn incus_true(caller: &mut Caller, instance: &str) -> anyhow::Result<()> {
    let request = json!({"command": ["/bin/true"], "interactive": false, "wait-for-websocket": false, "record-output": false});
    let path = format!("/1.0/instances/{instance}/exec");
    let answer = caller.ok("POST", &path, &request.to_string())?;
    let answer: Value = serde_json::from_slice(&answer)?;
    let operation = answer.get("operation").and_then(Value::as_str);
    let operation = operation.context("no operation")?;
    let answer = caller.ok("GET", &format!("{operation}/wait?timeout=30"), "")?;
    let answer: Value = serde_json::from_slice(&answer)?;
    let code = answer.pointer("/metadata/metadata/return");
    ensure!(code == Some(&json!(0)), "the command's status is {code:?}");
    Ok(())
}

/// How long a command takes.
pub fn time_of(words: &[String]) -> anyhow::Result<Duration> {
    Ok(timed(|| run(words))?.0)
}
