//! Runs a command and answers with its events as they come: lines of JSON, the last one `exit` or
//! `error`. A caller that does not read fills a bounded queue and then the command's own pipes.

use std::convert::Infallible;

use api::exec::ExecEvent;
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::Slot;
use super::collect::feed;
use super::failure::Failure;
use super::order::Order;
use super::output::{Outlet, Taker, UNREAD_DEADLINE, read_all};
use super::process::{End, Process};
use super::spawn::{self, Pipes, Refusal};
use super::text::{Cutter, Piece};

/// Lines that wait for the caller.
const WAITING_LINES: usize = 4;
/// Starts the command and answers; dropping the answer's body ends the command.
pub fn run(order: Order, slot: Slot) -> Result<Response, Failure> {
    let (lines, mut queue) = mpsc::channel(WAITING_LINES);
    let program = order.program().to_owned();
    match spawn::with_pipes(&order, &slot, !order.stdin.is_empty()) {
        Ok((started, pipes)) => {
            let process = Process::new(started, &order, slot);
            tokio::spawn(async move {
                tokio::select! {
                    () = pass_on(process, pipes, order.stdin, &lines) => {}
                    // The caller hung up; with the other branch its process is dropped.
                    () = lines.closed() => {}
                }
            });
        }
        Err(Refusal::Unrunnable(cause)) => {
            let events = [
                started(0),
                stderr((cause.line(&program), Default::default())),
                exit(End::unrunnable(cause.exit_code())),
            ];
            for event in events {
                // There is room: nothing else was sent.
                let _ = lines.try_send(line(&event));
            }
        }
        Err(Refusal::Failure(failure)) => return Err(failure),
    }
    let body = futures::stream::poll_fn(move |context| {
        let next = queue.poll_recv(context);
        next.map(|line| line.map(Ok::<Bytes, Infallible>))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(body)).into_response())
}

async fn pass_on(process: Process, pipes: Pipes, input: Vec<u8>, lines: &mpsc::Sender<Bytes>) {
    let pid = process.pid().as_raw_nonzero().get();
    if lines
        .send(line(&started(u32::try_from(pid).unwrap_or(0))))
        .await
        .is_err()
    {
        return;
    }
    let outlet = Outlet::new(lines.clone(), process.ended());
    let (mut out, mut err) = (
        Lines::new(outlet.clone(), stdout),
        Lines::new(outlet.clone(), stderr),
    );
    let ended = process.ended();
    let output = async {
        tokio::join!(
            out.pass(pipes.stdout, ended.clone()),
            err.pass(pipes.stderr, ended.clone()),
        );
    };
    let end = process.conduct(output, feed(pipes.stdin, input)).await;
    let last = match end {
        _ if outlet.is_unread() => Failure::Unread(UNREAD_DEADLINE.as_secs()).event(),
        Ok(end) => exit(end),
        Err(failure) => failure.event(),
    };
    // Without this line the outcome is unknown to the caller, which is then true.
    let _ = timeout(UNREAD_DEADLINE, lines.send(line(&last))).await;
}

/// One stream of a command on its way into events.
struct Lines {
    outlet: Outlet<Bytes>,
    event: fn(Piece) -> ExecEvent,
    cutter: Cutter,
}

impl Lines {
    fn new(outlet: Outlet<Bytes>, event: fn(Piece) -> ExecEvent) -> Self {
        Self {
            outlet,
            event,
            cutter: Cutter::default(),
        }
    }

    async fn pass(&mut self, from: pipe::Receiver, ended: watch::Receiver<bool>) {
        read_all(from, ended, self).await;
        if let Some(piece) = self.cutter.finish() {
            self.outlet.send(line(&(self.event)(piece))).await;
        }
    }
}

impl Taker for Lines {
    async fn take(&mut self, chunk: &[u8]) -> bool {
        match self.cutter.push(chunk) {
            Some(piece) => self.outlet.send(line(&(self.event)(piece))).await,
            None => true,
        }
    }
}

/// The first event. Number 0 stands for a program that could not be run; its outcome follows.
pub fn started(pid: u32) -> ExecEvent {
    ExecEvent::Started {
        pid,
        channel: String::new(),
    }
}

fn stdout((data, encoding): Piece) -> ExecEvent {
    ExecEvent::Stdout { data, encoding }
}

fn stderr((data, encoding): Piece) -> ExecEvent {
    ExecEvent::Stderr { data, encoding }
}

/// The last event of a command that ended.
pub fn exit(end: End) -> ExecEvent {
    ExecEvent::Exit {
        exit_code: end.exit_code,
        signal: end.signal,
        timed_out: end.timed_out,
        duration_ms: end.duration_ms,
    }
}

fn line(event: &ExecEvent) -> Bytes {
    // Events are strings and numbers, which always become JSON.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
