//! Runs commands in this guest for callers over HTTP.
//!
//! ```text
//!   POST /exec ───┬─▶ Order (checked) ─▶ spawn ─▶ Process::conduct ─┬─▶ collect: one ExecResult
//!   GET /session ─┘                                    │           ├─▶ stream:  lines of ExecEvent
//!                                            children: one status  └─▶ session: websocket messages
//! ```
//! A command runs in a process group of its own, with a terminal in a session of its own. It ends by
//! itself, by its deadline, or because its caller went away; in the last two cases its whole tree ends
//! with it. Every command has exactly one status, and a lost one is an error. All buffers are
//! bounded: a caller that does not read slows its own command and nothing else. Who may call is decided where
//! the router is served.

mod cgroup;
mod children;
mod collect;
mod failure;
mod fork;
mod hearing;
mod order;
mod output;
mod process;
mod session;
mod spawn;
mod stream;
mod terminal;
mod text;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::exec::ExecRequest;
use api::session::ACKNOWLEDGED;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use cgroup::Group;
use failure::Failure;
use order::Order;

pub use cgroup::{Groups, NoGroups};
pub(crate) use children::{adopt, reap};

/// How many commands run at a time.
const RUNNING_MAX: usize = 1024;
/// A request is at most this long, input included.
const REQUEST_MAX_BYTES: usize = 16 << 20;
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// The most of one message of a websocket from a caller: the largest one that is allowed, and some
/// room so that a larger one can be refused by name.
const MESSAGE_MAX_BYTES: usize = 128 << 10;

/// The commands that run here. There is one in a process, since a process has one set of children:
/// nothing else in it may wait for children (`std::process::Child::wait`, `tokio::process`).
pub struct Processes {
    slots: Arc<Semaphore>,
    groups: Option<Arc<Groups>>,
    stopping: watch::Sender<bool>,
}

/// The place of one running command.
struct Slot {
    _place: OwnedSemaphorePermit,
    groups: Option<Arc<Groups>>,
    stopping: watch::Receiver<bool>,
}

impl Slot {
    /// A control group for the command, where there are such.
    fn group(&self) -> Option<Group> {
        self.groups.as_ref()?.claim()
    }

    /// Ends when the agent stops.
    async fn stopped(&mut self) {
        if self.stopping.wait_for(|stopping| *stopping).await.is_err() {
            // Whoever could stop it is gone.
            std::future::pending::<()>().await;
        }
    }
}

impl Processes {
    /// Begins to take in orphans and statuses; commands get control groups of their own if `groups`
    /// can make them. Needs a runtime, and lives as long as that.
    pub fn start(groups: Option<Groups>) -> io::Result<Arc<Self>> {
        children::adopt()?;
        process_tree::start_hunter()?;
        let groups = groups.map(Arc::new);
        if let Some(groups) = &groups {
            tokio::spawn(Groups::keep(Arc::downgrade(groups), groups.changed()));
        }
        Ok(Arc::new(Self {
            slots: Arc::new(Semaphore::new(RUNNING_MAX)),
            groups,
            stopping: watch::Sender::new(false),
        }))
    }

    /// How many commands run now.
    pub fn running(&self) -> usize {
        RUNNING_MAX.saturating_sub(self.slots.available_permits())
    }

    /// Ends every command with its whole tree, and starts no more. False when something is still there
    /// after `patience`.
    pub async fn stop(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.stopping.send_replace(true);
        let all = u32::try_from(RUNNING_MAX).unwrap_or(u32::MAX);
        let ended = timeout_at(until, self.slots.acquire_many(all)).await;
        // Those whose callers had gone before.
        let hunts = move || process_tree::await_hunts_until(until.into_std());
        let hunted = tokio::task::spawn_blocking(hunts).await;
        if let Some(groups) = &self.groups {
            groups.clear();
        }
        ended.is_ok() && hunted.unwrap_or(false)
    }

    fn slot(&self) -> Result<Slot, Failure> {
        let stopping = self.stopping.subscribe();
        if *stopping.borrow() {
            return Err(Failure::Stopping);
        }
        let place = self.slots.clone().try_acquire_owned();
        Ok(Slot {
            _place: place.map_err(|_| Failure::Full(RUNNING_MAX))?,
            groups: self.groups.clone(),
            stopping,
        })
    }
}

/// `POST /exec` and `GET /session`, as `wire::agent` says.
pub fn router(processes: Arc<Processes>) -> Router {
    Router::new()
        .route("/exec", post(exec))
        .route("/session", get(open))
        .with_state(processes)
}

async fn exec(
    State(processes): State<Arc<Processes>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let order = Order::of(parse(body).await?)?;
    let slot = processes.slot()?;
    if wants_stream(&headers) {
        stream::run(order, slot)
    } else {
        collect::run(order, slot).await
    }
}

async fn open(State(processes): State<Arc<Processes>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .protocols([ACKNOWLEDGED])
        .max_message_size(MESSAGE_MAX_BYTES)
        .max_frame_size(MESSAGE_MAX_BYTES)
        .on_upgrade(move |socket| session::run(processes, socket))
        .into_response()
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    accept.is_some_and(|v| v.contains("application/x-ndjson"))
}

async fn parse(body: Body) -> Result<ExecRequest, Failure> {
    let wrong = |status, what: String| Failure::Request { status, what };
    let body = timeout(REQUEST_DEADLINE, to_bytes(body, REQUEST_MAX_BYTES))
        .await
        .map_err(|_| wrong(408, "the request did not arrive in time".into()))?
        .map_err(|e| {
            let what =
                format!("the request is longer than {REQUEST_MAX_BYTES} bytes or broke off: {e}");
            wrong(413, what)
        })?;
    // Where in the text the fault is, and never the text: it may hold secrets.
    serde_json::from_slice(&body).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => wrong(
            422,
            format!(
                "this is no request to run a command: see line {}, column {}",
                e.line(),
                e.column()
            ),
        ),
        _ => wrong(400, format!("the request is not JSON: line {}", e.line())),
    })
}
