//! `GET /instances/{name}/session`: one command with its streams open, over a websocket. The messages are
//! those of `api::session`. Also the NDJSON stream of `POST /instances/{name}/exec`, which is a session
//! that nobody types into.
//!
//! A session is one record of the audit log: the intent before the command starts, the outcome when it
//! ended or its caller went away.

use std::time::Duration;

use ::audit::{Intent, Outcome};
use api::Problem;
use api::exec::{ExecEvent, Pieces};
use api::session::{
    ACKNOWLEDGED, MESSAGE_MAX_BYTES, SessionStart, Stream, WINDOW_BYTES, WindowSize,
    acknowledgement,
};
use axum::Extension;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use engine::ports::{ChannelError, CommandEnd, Session, SessionInput, SessionOutput};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HOST, ORIGIN};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, timeout};

use crate::State;
use crate::answer::Failed;
use crate::audited::{self, Pending};
use crate::auth::Actor;
use crate::hearing::Hearing;

/// The first message must come within this time.
const START_DEADLINE: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(15);

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/instances/{name}/session", get(session))
        .route("/instances/{name}/pty", get(pty))
}

/// A command with its streams open: a websocket whose messages are described at `SessionStart`, `SessionControl` and `ExecEvent`.
#[utoipa::path(get, path = "/api/v1/instances/{name}/session", tag = "instances", params(("name" = String, Path)),
    responses((status = 101, description = "a websocket; the first message is a SessionStart"), (status = 403, body = Problem)))]
pub(crate) async fn session(
    Extract(state): Extract<State>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failed> {
    let upgrade = accept(&headers, upgrade)?;
    Ok(upgrade.on_upgrade(move |socket| serve(state, actor, name, socket, false)))
}

/// As `session`, with a terminal of 24 lines and 80 columns if the first message names no size.
#[utoipa::path(get, path = "/api/v1/instances/{name}/pty", tag = "instances", params(("name" = String, Path)),
    responses((status = 101, description = "a websocket; the first message is a SessionStart"), (status = 403, body = Problem)))]
pub(crate) async fn pty(
    Extract(state): Extract<State>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failed> {
    let upgrade = accept(&headers, upgrade)?;
    Ok(upgrade.on_upgrade(move |socket| serve(state, actor, name, socket, true)))
}

fn accept(
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade, Box<Problem>> {
    refuse_foreign_origin(headers)?;
    let upgrade = upgrade.map_err(|e| {
        Box::new(
            Problem::new(426, "upgrade_required", e.body_text())
                .hint("this call is a websocket; its messages: /api/v1/openapi.json"),
        )
    })?;
    Ok(upgrade
        .protocols([ACKNOWLEDGED])
        .max_message_size(2 * MESSAGE_MAX_BYTES)
        .max_frame_size(2 * MESSAGE_MAX_BYTES))
}

/// A browser says which page opens a websocket; only pages of this very host may.
fn refuse_foreign_origin(headers: &HeaderMap) -> Result<(), Box<Problem>> {
    let Some(origin) = headers.get(ORIGIN) else {
        return Ok(());
    };
    let text = |v: &http::HeaderValue| v.to_str().unwrap_or_default().to_owned();
    let host = headers.get(HOST).map(text).unwrap_or_default();
    let of_page = text(origin);
    let of_page = of_page.split_once("://").map_or("", |(_, rest)| rest);
    if !host.is_empty() && of_page == host {
        return Ok(());
    }
    Err(Box::new(
        Problem::new(
            403,
            "foreign_origin",
            "a page of another host may not open a session",
        )
        .hint("programs leave the Origin header out"),
    ))
}

async fn serve(state: State, actor: Actor, name: String, socket: WebSocket, wants_tty: bool) {
    let acknowledges = socket.protocol().is_some();
    let (mut to, mut from) = socket.split();
    match begin(&state, &actor, &name, &mut from, wants_tty).await {
        Err(problem) => {
            let code = match problem.code.as_str() {
                "outcome_unknown" => "outcome_unknown",
                _ => "nothing_ran",
            };
            let hint = problem.hint.map(|h| format!(" ({h})")).unwrap_or_default();
            let event = ExecEvent::Error {
                code: code.into(),
                message: format!("{}{hint}", problem.detail),
            };
            send_last(&mut to, &event).await;
        }
        Ok((session, channel, intent)) => {
            let outcome = carry(session, channel, (&mut to, acknowledges), from).await;
            audited::finish(intent, outcome.channel(channel)).await;
        }
    }
}

async fn begin(
    state: &State,
    actor: &Actor,
    name: &str,
    from: &mut SplitStream<WebSocket>,
    wants_tty: bool,
) -> Result<(Session, &'static str, Intent), Problem> {
    let bad = |what: &str| Problem::new(422, "bad_message", what);
    let first = timeout(START_DEADLINE, from.next()).await;
    let Ok(Some(Ok(Message::Text(text)))) = first else {
        return Err(bad("the first message must be a SessionStart, within 10 s"));
    };
    let mut start: SessionStart = serde_json::from_str(text.as_str())
        .map_err(|e| bad(&format!("the first message is no SessionStart: {e}")))?;
    if start.exec.stdin.is_some() {
        return Err(bad("exec.stdin: a session's input comes as messages"));
    }
    if wants_tty {
        start.tty = start.tty.or(Some(WindowSize { rows: 24, cols: 80 }));
    }
    open(state, actor, name, &start).await
}

async fn open(
    state: &State,
    actor: &Actor,
    name: &str,
    start: &SessionStart,
) -> Result<(Session, &'static str, Intent), Problem> {
    let mut detail = audited::command_detail(&start.exec);
    if let Some(fields) = detail.as_object_mut() {
        fields.insert("tty".into(), json!(start.tty.is_some()));
    }
    let intent = audited::begin(state, actor, "instance.session", name, detail)
        .await
        .map_err(|Failed(problem)| problem)?;
    match state.controller.open_session(name, start).await {
        Ok((session, channel)) => Ok((session, channel, intent)),
        Err(e) => {
            let problem = e.problem();
            audited::finish(intent, outcome_of_problem(&problem)).await;
            Err(problem)
        }
    }
}

/// What the log says of a call that ended with a problem.
pub(crate) fn outcome_of_problem(problem: &Problem) -> Outcome {
    match (problem.code.as_str(), problem.status) {
        ("outcome_unknown", _) => Outcome::unknown(&problem.code),
        (code, 400..=499) => Outcome::refused(code),
        (code, _) => Outcome::failed(code),
    }
}

/// Carries messages both ways until the command ended or the caller is gone; then the command ends with
/// the session, which is dropped here.
async fn carry(
    session: Session,
    channel: &str,
    (to, acknowledges): (&mut SplitSink<WebSocket, Message>, bool),
    from: SplitStream<WebSocket>,
) -> Outcome {
    let Session {
        pid,
        input,
        signals,
        output,
    } = session;
    let started = ExecEvent::Started {
        pid,
        channel: channel.into(),
    };
    if send(to, &started).await.is_err() {
        return Outcome::unknown("hung_up");
    }
    let (taken, told) = watch::channel(0);
    let mut hearing = Hearing::new(input, signals, taken);
    // With the other branch the command is dropped, and ends.
    let wrong = tokio::select! {
        outcome = tell(to, output, acknowledges.then_some(told)) => return outcome,
        wrong = hearing.listen(from) => wrong,
    };
    if let Some(what) = wrong {
        let event = ExecEvent::Error {
            code: "outcome_unknown".into(),
            message: what.into(),
        };
        send_last(to, &event).await;
        return Outcome::unknown("bad_message");
    }
    Outcome::unknown("hung_up")
}

/// From the command to the caller, until its end.
async fn tell(
    to: &mut SplitSink<WebSocket, Message>,
    mut output: mpsc::Receiver<SessionOutput>,
    mut taken: Option<watch::Receiver<u64>>,
) -> Outcome {
    let mut ping = interval(PING);
    ping.reset();
    let mut acknowledged = 0;
    loop {
        let said = tokio::select! {
            said = output.recv() => said,
            _ = ping.tick() => {
                if to.send(Message::Ping(Bytes::new())).await.is_err() {
                    return Outcome::unknown("hung_up");
                }
                continue;
            }
            bytes = more_than(acknowledged + WINDOW_BYTES / 4, &mut taken) => {
                acknowledged = bytes;
                let message = Bytes::copy_from_slice(&acknowledgement(bytes));
                if to.send(Message::Binary(message)).await.is_err() {
                    return Outcome::unknown("hung_up");
                }
                continue;
            }
        };
        let sent = match said {
            Some(SessionOutput::Stdout(bytes)) => to.send(framed(Stream::Stdout, &bytes)).await,
            Some(SessionOutput::Stderr(bytes)) => to.send(framed(Stream::Stderr, &bytes)).await,
            last => {
                let (event, outcome) = last_event(last);
                send_last(to, &event).await;
                return outcome;
            }
        };
        if sent.is_err() {
            return Outcome::unknown("hung_up");
        }
    }
}

/// How much input was taken, once it is so much.
async fn more_than(least_bytes: u64, taken: &mut Option<watch::Receiver<u64>>) -> u64 {
    let Some(taken) = taken else {
        return std::future::pending().await;
    };
    let bytes = taken.wait_for(|bytes| *bytes >= least_bytes).await;
    match bytes.map(|bytes| *bytes) {
        Ok(bytes) => bytes,
        Err(_) => std::future::pending().await,
    }
}

fn framed(stream: Stream, bytes: &Bytes) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(stream as u8);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// The final event and what the log says. No final status is an error, never success.
fn last_event(last: Option<SessionOutput>) -> (ExecEvent, Outcome) {
    match last {
        Some(SessionOutput::Ended { end, duration }) => {
            let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            let (exit_code, signal) = match end {
                CommandEnd::Exited(code) => (Some(code), None),
                CommandEnd::Signalled(signal) => (None, Some(signal)),
                CommandEnd::TimedOut => (None, None),
            };
            let event = ExecEvent::Exit {
                exit_code,
                signal,
                timed_out: end == CommandEnd::TimedOut,
                duration_ms,
            };
            let outcome = match end {
                CommandEnd::Exited(code) => Outcome::exited(code),
                CommandEnd::Signalled(signal) => {
                    Outcome::failed(format!("ended by signal {signal}"))
                }
                CommandEnd::TimedOut => Outcome::failed("ended by its deadline"),
            };
            (event, outcome.duration_ms(duration_ms))
        }
        Some(SessionOutput::Failed(
            e @ (ChannelError::NothingRan(_) | ChannelError::Unreachable(_)),
        )) => {
            let event = ExecEvent::Error {
                code: "nothing_ran".into(),
                message: e.to_string(),
            };
            (event, Outcome::failed("nothing_ran"))
        }
        other => {
            let message = match other {
                Some(SessionOutput::Failed(e)) => e.to_string(),
                _ => "the channel ended without a final status".into(),
            };
            let event = ExecEvent::Error {
                code: "outcome_unknown".into(),
                message,
            };
            (event, Outcome::unknown("outcome_unknown"))
        }
    }
}

async fn send(to: &mut SplitSink<WebSocket, Message>, event: &ExecEvent) -> Result<(), ()> {
    let text = serde_json::to_string(event).map_err(drop)?;
    to.send(Message::Text(text.into())).await.map_err(drop)
}

async fn send_last(to: &mut SplitSink<WebSocket, Message>, event: &ExecEvent) {
    // Whoever is gone by now can't be told.
    if send(to, event).await.is_ok() {
        let _ = timeout(Duration::from_secs(5), to.close()).await;
    }
}

/// `POST /instances/{name}/exec` as a stream of events, one JSON document a line.
pub(crate) async fn stream(
    state: &State,
    pending: &Pending,
    name: &str,
    start: &SessionStart,
) -> Result<Response, Failed> {
    let (session, channel) = state.controller.open_session(name, start).await?;
    let intent = pending.take();
    let (lines, body) = mpsc::channel::<Result<Bytes, std::convert::Infallible>>(8);
    tokio::spawn(async move {
        // The input goes with its sender: whatever the request held was sent first.
        let Session {
            pid, input, output, ..
        } = session;
        let _ = input.send(SessionInput::StdinEof).await;
        let started = ExecEvent::Started {
            pid,
            channel: channel.into(),
        };
        let outcome = write_lines(&lines, started, output).await;
        drop(input);
        if let Some(intent) = intent {
            audited::finish(intent, outcome.channel(channel)).await;
        }
    });
    let body = futures::stream::unfold(body, |mut body| async move {
        let line = body.recv().await?;
        Some((line, body))
    });
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(body)).into_response())
}

async fn write_lines(
    lines: &mpsc::Sender<Result<Bytes, std::convert::Infallible>>,
    started: ExecEvent,
    mut output: mpsc::Receiver<SessionOutput>,
) -> Outcome {
    let began = Instant::now();
    let mut stdout = Pieces::default();
    let mut stderr = Pieces::default();
    let mut events = vec![started];
    loop {
        for event in events.drain(..) {
            let Ok(mut line) = serde_json::to_vec(&event) else {
                return Outcome::unknown("outcome_unknown");
            };
            line.push(b'\n');
            if lines.send(Ok(line.into())).await.is_err() {
                let ran_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Outcome::unknown("hung_up").duration_ms(ran_ms);
            }
        }
        let said = tokio::select! {
            said = output.recv() => said,
            () = lines.closed() => return Outcome::unknown("hung_up"),
        };
        match said {
            Some(SessionOutput::Stdout(bytes)) => events.extend(stdout.push(&bytes).map(out)),
            Some(SessionOutput::Stderr(bytes)) => events.extend(stderr.push(&bytes).map(err)),
            last => {
                let (event, outcome) = last_event(last);
                let rest = stdout.finish().map(out).into_iter();
                for event in rest.chain(stderr.finish().map(err)).chain([event]) {
                    if let Ok(mut line) = serde_json::to_vec(&event) {
                        line.push(b'\n');
                        let _ = lines.send(Ok(line.into())).await;
                    }
                }
                return outcome;
            }
        }
    }
}

fn out((data, encoding): (String, api::exec::Encoding)) -> ExecEvent {
    ExecEvent::Stdout { data, encoding }
}

fn err((data, encoding): (String, api::exec::Encoding)) -> ExecEvent {
    ExecEvent::Stderr { data, encoding }
}
