//! The relay's HTTP API, whatever it is served on.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `PUT /gateway` | `GatewayState` | 200 `GatewayDiff`, `ETag` of the state; 422 when it contradicts itself; 500 when steps failed |
//! | `PATCH /gateway`, `If-Match` | `GatewayChange` | the same; 412 when the appliance has another state than the one with that tag |
//! | `GET /gateway` | – | 200 `GatewayReport` |
//! | `GET /gateway/services` | – | 200 `GatewayReport` without names and routes |
//! | `GET /gateway/routes/HOST` | – | 200 `RouteReport`; 404 when that route is not open |
//! | `POST /probe` | `ProbeRequest` | 204 when the instance answers; 504 with what was seen last |
//! | `GET /health` | – | 200 `{"status":"ok","version"}` (on TCP `wire::agent::Health`) |
//!
//! Errors are RFC 9457 problems. Who may call is decided where the router is served. A probe ends
//! when its caller hangs up; an apply does not.

use std::sync::Arc;
use std::time::Duration;

use api::{HostName, Problem};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use wire::gateway::change::GatewayChange;
use wire::gateway::{GatewayDiff, GatewayReport, GatewayState, ProbeRequest};

use super::tunnel::is_a_guests;
use crate::VERSION;
use crate::answer::{Failure, json, no_such_method, no_such_path};
use crate::gateway::Gateway;
use crate::gateway::apply::ApplyError;
use crate::gateway::system::System;
use crate::probe;

/// A state of 4 MiB has tens of thousands of hosts.
const BODY_MAX_BYTES: usize = 4 << 20;
const BODY_DEADLINE: Duration = Duration::from_secs(30);
const APPLY_DEADLINE: Duration = Duration::from_secs(180);
/// The longest that a probe tries.
const PROBE_MAX_MS: u64 = 600_000;
const REPORT_DEADLINE: Duration = Duration::from_secs(20);

/// A state to apply, and where the answer goes.
pub struct Apply {
    /// What should hold.
    pub wanted: Wanted,
    /// Whoever asked may be gone by then; the state is applied all the same.
    pub answer: oneshot::Sender<Result<Applied, ApplyError>>,
}

/// What is asked of an appliance.
pub enum Wanted {
    /// All of it.
    State(Box<GatewayState>),
    /// What is new of the state with the tag `of`.
    Change {
        /// As an `ETag` has it, without its quotation marks.
        of: String,
        /// What is new.
        change: Box<GatewayChange>,
    },
}

/// A state that holds.
pub struct Applied {
    /// What had to be done.
    pub diff: GatewayDiff,
    /// By which the next change says of what it is one.
    pub tag: Option<String>,
}

/// What the handlers share.
pub struct Shared<S> {
    /// For reports.
    pub gateway: Arc<Gateway<S>>,
    /// To the one task that applies.
    pub applies: mpsc::Sender<Apply>,
}

/// The routes over a gateway, without a fallback.
pub fn gateway<S: System>(shared: Arc<Shared<S>>) -> Router {
    Router::new()
        .route(
            "/gateway",
            get(read::<S>).put(apply::<S>).patch(change::<S>),
        )
        .route("/gateway/services", get(look::<S>))
        .route("/gateway/routes/{host}", get(route::<S>))
        .route("/probe", post(probe::<S>))
        .with_state(shared)
}

/// The whole API for root on the appliance.
pub fn inside(gateway: Router) -> Router {
    gateway
        .route("/health", get(health))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
}

async fn health() -> Response {
    json(
        StatusCode::OK,
        &serde_json::json!({ "status": "ok", "version": VERSION }),
    )
}

async fn read<S: System>(State(shared): State<Arc<Shared<S>>>) -> Response {
    told(shared.gateway.report()).await
}

async fn look<S: System>(State(shared): State<Arc<Shared<S>>>) -> Response {
    told(shared.gateway.look()).await
}

/// A report within its deadline.
async fn told(report: impl Future<Output = GatewayReport>) -> Response {
    match timeout(REPORT_DEADLINE, report).await {
        Ok(report) => json(StatusCode::OK, &report),
        Err(_) => Failure(
            Problem::new(
                504,
                "report_deadline",
                "the appliance did not answer in time",
            )
            .hint("look at the load and the services of the appliance"),
        )
        .into_response(),
    }
}

async fn route<S: System>(
    State(shared): State<Arc<Shared<S>>>,
    Path(host): Path<HostName>,
) -> Result<Response, Failure> {
    match shared.gateway.route(&host).await {
        Some(report) => Ok(json(StatusCode::OK, &report)),
        None => {
            Err(Problem::new(404, "no_such_route", format!("no route for {host} is open")).into())
        }
    }
}

async fn apply<S: System>(
    State(shared): State<Arc<Shared<S>>>,
    request: Request,
) -> Result<Response, Failure> {
    let state = parse(request.into_body(), "invalid_state", "gateway state").await?;
    shared.hold(Wanted::State(Box::new(state))).await
}

async fn change<S: System>(
    State(shared): State<Arc<Shared<S>>>,
    request: Request,
) -> Result<Response, Failure> {
    let of = request.headers().get(header::IF_MATCH);
    let of = of.and_then(|of| of.to_str().ok()?.strip_prefix('"')?.strip_suffix('"'));
    let of = of.map(str::to_owned).ok_or_else(|| {
        Problem::new(
            428,
            "no_base",
            "the state of which this is a change is not named",
        )
        .hint("send If-Match with the ETag of the last state, or PUT the whole one")
    })?;
    let change = parse(
        request.into_body(),
        "invalid_change",
        "change of a gateway state",
    )
    .await?;
    let change = Box::new(change);
    shared.hold(Wanted::Change { of, change }).await
}

impl<S> Shared<S> {
    /// Has it applied by who applies, and waits for that.
    async fn hold(&self, wanted: Wanted) -> Result<Response, Failure> {
        let (answer, answered) = oneshot::channel();
        self.applies
            .try_send(Apply { wanted, answer })
            .map_err(|_| {
                Problem::new(503, "busy", "too many applies are waiting")
                    .hint("try again in a moment")
            })?;
        match timeout(APPLY_DEADLINE, answered).await {
            Ok(Ok(Ok(Applied { diff, tag }))) => {
                let mut answer = json(StatusCode::OK, &diff);
                let tag = tag.and_then(|tag| HeaderValue::try_from(format!("\"{tag}\"")).ok());
                answer
                    .headers_mut()
                    .extend(tag.map(|tag| (header::ETAG, tag)));
                Ok(answer)
            }
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(Err(_)) => Err(Problem::new(503, "stopping", "the relay is stopping")
                .hint("the state may or may not be saved; apply it again when the relay is back")
                .into()),
            Err(_) => {
                Err(
                    Problem::new(504, "apply_deadline", "applying takes too long and goes on")
                        .hint("read the gateway to see what holds, then apply again")
                        .into(),
                )
            }
        }
    }
}

/// Waits until an instance of the zone answers.
async fn probe<S: System>(
    State(shared): State<Arc<Shared<S>>>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let mut request: ProbeRequest =
        parse(request.into_body(), "invalid_probe", "probe request").await?;
    let address = request.address;
    let accepted = shared.gateway.accepted();
    let in_zone = matches!(&*accepted.borrow(), Some(s) if is_a_guests(&s.network, address));
    if !in_zone {
        let detail = format!("{address} is not a guest's address in the zone");
        return Err(Problem::new(422, "not_in_zone", detail).into());
    }
    request.deadline_ms = request.deadline_ms.min(PROBE_MAX_MS);
    let report = probe::run(&request).await;
    if report.ready {
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = format!(
        "{address}:{} did not answer within {} ms: {}",
        request.port, report.elapsed_ms, report.last
    );
    Err(Problem::new(504, "not_ready", detail).into())
}

/// Reads a body as JSON of `what`; `code` is for one that is JSON of something else.
async fn parse<T: DeserializeOwned>(body: Body, code: &str, what: &str) -> Result<T, Failure> {
    let body = timeout(BODY_DEADLINE, to_bytes(body, BODY_MAX_BYTES))
        .await
        .map_err(|_| Problem::new(408, "body_deadline", "the body did not arrive in time"))?
        .map_err(|e| {
            let detail =
                format!("the body is larger than {BODY_MAX_BYTES} bytes or broke off: {e}");
            Problem::new(413, "body_too_large", detail)
        })?;
    serde_json::from_slice(&body).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => {
            Problem::new(422, code, format!("this is no {what}: {e}"))
                .hint("controller and agent may be of different versions; update the older one")
                .into()
        }
        _ => Problem::new(400, "invalid_json", format!("the body is not JSON: {e}")).into(),
    })
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        let detail = error.to_string();
        Self(match error {
            ApplyError::OtherBase => Problem::new(412, "other_base", detail)
                .hint("nothing was changed; send the whole state"),
            ApplyError::Invalid(_) => Problem::new(422, "invalid_state", detail)
                .hint("nothing was changed; correct the state"),
            ApplyError::Save(_) => Problem::new(500, "not_saved", detail)
                .hint("nothing was changed; free space on the appliance's disk"),
            ApplyError::Incomplete { .. } => Problem::new(500, "apply_incomplete", detail)
                .hint("the state is saved; apply it again once the cause is mended"),
        })
    }
}
