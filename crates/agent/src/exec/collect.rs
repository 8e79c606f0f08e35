//! Runs a command and answers with all of its output at once.

use api::exec::ExecResult;
use axum::http::StatusCode;
use axum::response::Response;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::Slot;
use super::failure::Failure;
use super::order::Order;
use super::output::{Taker, read_all};
use super::process::{End, Process};
use super::spawn::{self, Refusal};
use super::text::encode;
use crate::answer;

/// The most that is kept of one stream.
const OUTPUT_MAX_BYTES: usize = 8 << 20;

/// A stream's kept bytes; more were read and dropped when `truncated`.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn keep(&mut self, chunk: &[u8]) {
        let room = OUTPUT_MAX_BYTES.saturating_sub(self.bytes.len());
        let kept = chunk.get(..room).unwrap_or(chunk);
        self.truncated |= kept.len() < chunk.len();
        self.bytes.extend_from_slice(kept);
    }
}

impl Taker for Kept {
    async fn take(&mut self, chunk: &[u8]) -> bool {
        self.keep(chunk);
        true
    }
}

/// Dropping the future ends the command.
pub async fn run(order: Order, slot: Slot) -> Result<Response, Failure> {
    let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
    let end = match spawn::with_pipes(&order, &slot, !order.stdin.is_empty()) {
        Ok((started, pipes)) => {
            let process = Process::new(started, &order, slot);
            let ended = process.ended();
            let output = async {
                tokio::join!(
                    read_all(pipes.stdout, ended.clone(), &mut stdout),
                    read_all(pipes.stderr, ended.clone(), &mut stderr),
                );
            };
            let input = feed(pipes.stdin, order.stdin);
            process.conduct(output, input).await?
        }
        Err(Refusal::Unrunnable(cause)) => {
            stderr.keep(cause.line(order.program()).as_bytes());
            End::unrunnable(cause.exit_code())
        }
        Err(Refusal::Failure(failure)) => return Err(failure),
    };
    Ok(answer::json(StatusCode::OK, &result(stdout, stderr, end)))
}

/// Gives a command its whole input.
pub async fn feed(stdin: Option<pipe::Sender>, input: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        // A command that does not read its input to the end is no error.
        let _ = stdin.write_all(&input).await;
    }
}

fn result(stdout: Kept, stderr: Kept, end: End) -> ExecResult {
    let truncated = stdout.truncated || stderr.truncated;
    let (stdout, stdout_encoding) = encode(stdout.bytes);
    let (stderr, stderr_encoding) = encode(stderr.bytes);
    ExecResult {
        stdout,
        stderr,
        stdout_encoding,
        stderr_encoding,
        exit_code: end.exit_code,
        signal: end.signal,
        timed_out: end.timed_out,
        truncated,
        duration_ms: end.duration_ms,
        channel: "agent".into(),
    }
}
