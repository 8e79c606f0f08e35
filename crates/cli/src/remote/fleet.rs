//! One command on many hosts: so many at a time, each line of output with its host in front, a table at the end.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;
use ssh::{Chunk, Command, Error, ExecutionResult, Input, Output, Remote};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::progress::elapsed;
use crate::screen::Screen;
use crate::signals::Signals;
use crate::table::Table;

/// Pieces of output that wait for the screen, for each host.
const QUEUE: usize = 8;
/// A longer line is shown in parts.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// How it went on one host.
struct Ended {
    vm: String,
    took: Duration,
    result: Result<ExecutionResult, Error>,
}

/// What `--json` prints for each host.
#[derive(Serialize)]
struct Told {
    vm_id: String,
    result: Option<ExecutionResult>,
    error: Option<serde_json::Value>,
}

/// Runs it everywhere. Exit code 0 only if every host's is 0.
pub async fn run(
    remote: &Remote,
    vms: Vec<String>,
    command: Command,
    parallel: u16,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let order = vms.clone();
    let mut waiting: VecDeque<String> = vms.into();
    let mut running = JoinSet::new();
    let mut ended = Vec::new();
    loop {
        while running.len() < usize::from(parallel)
            && let Some(vm) = waiting.pop_front()
        {
            running.spawn(on_one(remote.clone(), vm, command.clone(), screen.json()));
        }
        tokio::select! {
            joined = running.join_next() => match joined {
                None => break,
                Some(Ok(one)) => ended.push(one),
                Some(Err(e)) => return Err(Failure::local(format!("a host's task broke: {e}"))),
            },
            // Dropping the set ends every command on its host.
            failure = signals.next() => return Err(failure),
        }
    }
    let place = |vm: &str| order.iter().position(|id| id == vm);
    ended.sort_by_key(|one| place(&one.vm));
    let good = |one: &Ended| one.result.as_ref().is_ok_and(|result| result.success);
    let all_good = ended.iter().all(good);
    if screen.json() {
        let told: Vec<Told> = ended.into_iter().map(document).collect();
        screen.document(&told)?;
    } else {
        screen.warn(&table(&ended));
    }
    Ok(if all_good { Exit::OK } else { Exit::FAILED })
}

async fn on_one(remote: Remote, vm: String, command: Command, json: bool) -> Ended {
    let began = Instant::now();
    let result = if json {
        remote
            .execute(&vm, &command, Input::None, Output::Collect)
            .await
    } else {
        let (to, from) = mpsc::channel(QUEUE);
        let shown = tokio::spawn(show(vm.clone(), from));
        let result = remote
            .execute(&vm, &command, Input::None, Output::Stream(to))
            .await;
        // It ends with its sender, which is gone.
        let _: Result<(), _> = shown.await;
        result
    };
    Ended {
        vm,
        took: began.elapsed(),
        result,
    }
}

/// Prints whole lines with the host in front; what a host says is made safe for a terminal.
async fn show(vm: String, mut from: mpsc::Receiver<Chunk>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(chunk) = from.recv().await {
        let (rest, data, is_err) = match &chunk {
            Chunk::Stdout(data) => (&mut out, data, false),
            Chunk::Stderr(data) => (&mut err, data, true),
        };
        rest.extend_from_slice(data);
        while let Some(line) = take_line(rest) {
            print(&vm, &line, is_err);
        }
    }
    for (rest, is_err) in [(out, false), (err, true)] {
        if !rest.is_empty() {
            print(&vm, &rest, is_err);
        }
    }
}

/// A whole line without its end, or a part of one that is too long.
fn take_line(rest: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = rest.iter().position(|byte| *byte == b'\n');
    let (length, skip) = match end {
        Some(at) if at <= MAX_LINE_BYTES => (at, 1),
        _ if rest.len() > MAX_LINE_BYTES => (MAX_LINE_BYTES, 0),
        _ => return None,
    };
    let line = rest.drain(..length.saturating_add(skip)).take(length);
    Some(line.collect())
}

fn print(vm: &str, line: &[u8], is_err: bool) {
    let text = guest_text::line(&String::from_utf8_lossy(line));
    let whole = format!("{vm}: {text}\n");
    // Who reads us may be gone; the commands go on all the same.
    let _ = if is_err {
        std::io::stderr().lock().write_all(whole.as_bytes())
    } else {
        std::io::stdout().lock().write_all(whole.as_bytes())
    };
}

fn document(one: Ended) -> Told {
    let (result, error) = match one.result {
        Ok(result) => (Some(result), None),
        Err(error) => {
            let failure = Failure::from(error);
            let exit = failure.exec_exit();
            (None, failure.document(exit).get("error").cloned())
        }
    };
    Told {
        vm_id: one.vm,
        result,
        error,
    }
}

fn table(ended: &[Ended]) -> String {
    let mut table = Table::new(&["VM", "OUTCOME", "EXIT", "TIME", "TRIES", "REASON"]);
    for one in ended {
        let (outcome, exit, tries, reason) = match &one.result {
            Ok(result) if result.timed_out => {
                ("deadline", "124".to_owned(), result.attempts, String::new())
            }
            Ok(result) if result.success => ("ok", "0".to_owned(), result.attempts, String::new()),
            Ok(result) => (
                "failed",
                result.exit_code.to_string(),
                result.attempts,
                String::new(),
            ),
            Err(error) if error.may_have_run() => {
                ("unknown", "123".to_owned(), 0, error.to_string())
            }
            Err(error) => ("nothing ran", "125".to_owned(), 0, error.to_string()),
        };
        let tries = if tries == 0 {
            String::new()
        } else {
            tries.to_string()
        };
        table.row([
            one.vm.clone(),
            outcome.to_owned(),
            exit,
            elapsed(one.took),
            tries,
            reason,
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole_and_long_ones_in_parts() {
        let mut rest = b"a\n\nb".to_vec();
        assert_eq!(take_line(&mut rest), Some(b"a".to_vec()));
        assert_eq!(take_line(&mut rest), Some(Vec::new()));
        assert_eq!(take_line(&mut rest), None);
        assert_eq!(rest, b"b");
        let mut rest = vec![b'x'; MAX_LINE_BYTES + 5];
        rest.push(b'\n');
        assert_eq!(
            take_line(&mut rest).map(|line| line.len()),
            Some(MAX_LINE_BYTES)
        );
        assert_eq!(take_line(&mut rest), Some(b"xxxxx".to_vec()));
    }
}
