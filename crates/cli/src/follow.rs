//! Follows an operation to its end for a person or a machine, and says how it failed if it did.

use std::io;
use std::pin::pin;
use std::time::Duration;

use api::app::Failure as StepFailure;
use api::operation::{Operation, OperationStatus};
use api::{InstanceName, OperationId};
use client::{Client, Watched};
use tokio::time::{MissedTickBehavior, interval};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::progress::Progress;
use crate::screen::{Look, Screen};

const FRAME: Duration = Duration::from_millis(100);
const DEFAULT_WIDTH: usize = 80;

/// Follows an operation to its end and shows its steps. What comes back may have failed; only a
/// lost watch or Ctrl-C is an error here.
pub async fn follow(
    client: &Client,
    id: &OperationId,
    screen: &Screen,
) -> Result<Operation, Failure> {
    let mut progress = screen
        .progress()
        .map(|look| Progress::new(io::stderr(), look, width(look)));
    let outcome = watch(client, id, &mut progress).await;
    if let Some(progress) = &mut progress {
        progress.end();
    }
    outcome
}

async fn watch(
    client: &Client,
    id: &OperationId,
    progress: &mut Option<Progress<io::Stderr>>,
) -> Result<Operation, Failure> {
    let mut watch = client.watch(id.clone());
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut ctrl_c = pin!(tokio::signal::ctrl_c());
    let mut lost = false;
    let mut steps = Vec::new();
    loop {
        let mut next = pin!(watch.next());
        let seen = loop {
            tokio::select! {
                seen = &mut next => break seen?,
                _ = &mut ctrl_c => return Err(Failure::Interrupted { hint: Some(format!(
                    "the operation goes on without us: `proximity operation watch {id}`"
                ))}),
                _ = frames.tick() => if let Some(progress) = progress { progress.tick() },
            }
        };
        match seen {
            Watched::Step(event) => {
                lost = false;
                if let Some(progress) = progress {
                    progress.event(&event);
                }
                steps.push(event);
            }
            Watched::Lost(error) => {
                // One remark for a cut, however many attempts it takes.
                if let Some(progress) = progress.as_mut().filter(|_| !lost) {
                    progress.remark(&format!("{error}; trying again"));
                }
                lost = true;
            }
            Watched::End(mut operation) => {
                // The end comes without the steps, which came before it.
                if operation.events.is_empty() {
                    operation.events = steps;
                }
                return Ok(*operation);
            }
        }
    }
}

fn width(look: Look) -> usize {
    if !look.terminal {
        return DEFAULT_WIDTH;
    }
    rustix::termios::tcgetwinsize(io::stderr())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
        .unwrap_or(DEFAULT_WIDTH)
}

/// Follows an operation and ends with its outcome: `--json` prints the operation, a failure is
/// told in full, success is left to the caller.
pub async fn finish(
    client: &Client,
    id: &OperationId,
    screen: &Screen,
) -> Result<Operation, Failure> {
    let operation = follow(client, id, screen).await?;
    if operation.status == OperationStatus::Succeeded {
        return Ok(operation);
    }
    if screen.json() {
        screen.document(&operation)?;
    }
    report(&operation, screen);
    Err(Failure::Reported(Exit::FAILED))
}

/// Starts nothing, follows what was started, and prints the operation or a line.
pub async fn finish_with_line(
    client: &Client,
    id: &OperationId,
    name: &InstanceName,
    done: &str,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let operation = finish(client, id, screen).await?;
    screen.result(&operation, |_| format!("{name} {done}"))
}

/// Says why an operation failed: step, cause, the console's last lines, the next command.
pub fn report(operation: &Operation, screen: &Screen) {
    let head = format!(
        "error: {} of {} failed",
        operation.kind.replace('_', " "),
        operation.target
    );
    let Some(failure) = &operation.failure else {
        screen.warn(&guest_text::line(&head));
        return;
    };
    screen.warn(&format!("{}\n{}", guest_text::line(&head), told(failure)));
}

/// A step's failure as text, every string of it escaped.
pub fn told(failure: &StepFailure) -> String {
    let mut text = format!(
        "  step:  {}\n  cause: {}",
        guest_text::line(&failure.step),
        guest_text::lines(failure.cause.trim_end()).replace('\n', "\n         "),
    );
    if !failure.console_tail.is_empty() {
        text.push_str("\n  the guest's console said last:");
        for line in &failure.console_tail {
            text.push_str("\n    | ");
            text.push_str(&guest_text::line(line));
        }
    }
    if !failure.next.is_empty() {
        text.push_str("\n  next:  ");
        text.push_str(&guest_text::line(&failure.next));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_full_and_escaped() {
        let failure = StepFailure {
            step: "ready".into(),
            cause: "no answer on port 80\nwithin 30 s".into(),
            next: "proximity app deploy nginx web --resume".into(),
            console_tail: vec!["nginx: \x1b[31m[emerg]\x1b[0m no".into(), String::new()],
        };
        insta::assert_snapshot!(told(&failure), @r"
          step:  ready
          cause: no answer on port 80
                 within 30 s
          the guest's console said last:
            | nginx: \x1b[31m[emerg]\x1b[0m no
            | 
          next:  proximity app deploy nginx web --resume
        ");
    }
}
