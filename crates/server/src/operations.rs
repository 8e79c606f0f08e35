//! `/operations`: what is under way, and its events as they happen.

use std::convert::Infallible;
use std::time::Duration;

use api::app::OperationAccepted;
use api::operation::{Operation, OperationStatus};
use api::{OperationId, Problem};
use axum::extract::{Path, State as Extract};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use axum::{Extension, Json, Router};
use engine::Controller;
use futures::stream::{self, Stream, StreamExt};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;

use crate::State;
use crate::answer::Failed;
use crate::audited::Told;

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/operations", get(list))
        .route("/operations/{id}", get(show))
        .route("/operations/{id}/events", get(events))
}

/// The newest operations, without their events.
#[utoipa::path(get, path = "/api/v1/operations", tag = "operations", responses((status = 200, body = [Operation])))]
pub(crate) async fn list(Extract(state): Extract<State>) -> Result<Json<Vec<Operation>>, Failed> {
    Ok(Json(state.controller.operations().await?))
}

/// One operation with all its events.
#[utoipa::path(get, path = "/api/v1/operations/{id}", tag = "operations", params(("id" = String, Path)), responses(
    (status = 200, body = Operation), (status = 404, body = Problem)))]
pub(crate) async fn show(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
) -> Result<Json<Operation>, Failed> {
    Ok(Json(state.controller.operation(&id, 0).await?))
}

/// Waits until an operation has ended.
pub(crate) async fn await_end(
    controller: &Controller,
    id: &str,
) -> Result<Operation, engine::Error> {
    let mut changed = controller.feed().subscribe();
    loop {
        // Subscribed before reading: what happens in between wakes us.
        changed.mark_unchanged();
        let operation = controller.operation(id, 0).await?;
        if operation.status != OperationStatus::Running {
            return Ok(operation);
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), changed.changed()).await;
    }
}

/// How long a call may wait for what it began.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wait {
    /// Like `60s`; at most `600s`. Without it the answer is `202` at once.
    wait: Option<String>,
}

impl Wait {
    pub(crate) fn parse(&self) -> Result<Option<Duration>, Box<Problem>> {
        let Some(text) = &self.wait else {
            return Ok(None);
        };
        let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>().ok();
        match seconds.filter(|s| (1..=600).contains(s)) {
            Some(s) => Ok(Some(Duration::from_secs(s))),
            None => Err(Box::new(
                Problem::new(
                    400,
                    "bad_query",
                    format!("wait: {text:?} is not a duration"),
                )
                .hint("write it like 60s, at most 600s"),
            )),
        }
    }
}

/// `202` with the operation to watch.
pub(crate) fn accepted(
    operation_id: OperationId,
) -> (StatusCode, Extension<Told>, Json<OperationAccepted>) {
    let told = Extension(Told::accepted(&operation_id));
    let answer = Json(OperationAccepted { operation_id });
    (StatusCode::ACCEPTED, told, answer)
}

/// Waits so long for an operation: true when it succeeded, false when it still runs; a failed one is a
/// problem that names step, cause and next command.
pub(crate) async fn ended_well(
    controller: &Controller,
    id: &OperationId,
    patience: Duration,
) -> Result<bool, Failed> {
    let ended = tokio::time::timeout(patience, await_end(controller, id.as_str())).await;
    let Ok(operation) = ended else {
        return Ok(false);
    };
    let operation = operation?;
    if operation.failure.is_none() && operation.status == OperationStatus::Succeeded {
        return Ok(true);
    }
    let (detail, next) = match operation.failure {
        Some(f) => (format!("step {}: {}", f.step, f.cause), f.next),
        None => (
            "it failed".to_owned(),
            format!("proximity operation watch {id}"),
        ),
    };
    let code = format!("{}_failed", operation.kind);
    Err(Problem::new(502, &code, detail).hint(next).into())
}

/// Events as they happen: `event: step` with an OperationEvent, its `seq` as id; at the end `event:
/// end` with the operation. Goes on after `Last-Event-ID`.
#[utoipa::path(get, path = "/api/v1/operations/{id}/events", tag = "operations",
    params(("id" = String, Path), ("last-event-id" = Option<u32>, Header, description = "go on after this event")),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404, body = Problem)))]
pub(crate) async fn events(
    Extract(state): Extract<State>,
    Extension(stop): Extension<CancellationToken>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failed> {
    let after = match headers.get("last-event-id") {
        None => 0,
        Some(v) => v
            .to_str()
            .ok()
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| {
                Problem::new(
                    400,
                    "bad_event_id",
                    "Last-Event-ID must be an event's number",
                )
            })?,
    };
    // Says 404 before the stream begins.
    state.controller.operation(&id, u32::MAX).await?;
    let watch = Watch {
        changed: state.controller.feed().subscribe(),
        controller: state.controller,
        id,
        after,
        ended: false,
    };
    let stream = stream::unfold(watch, |watch| async move { watch.next().await })
        .flat_map(stream::iter)
        .take_until(stop.cancelled_owned());
    Ok(Sse::new(stream.map(Ok)).keep_alive(KeepAlive::default()))
}

struct Watch {
    controller: Controller,
    changed: tokio::sync::watch::Receiver<u64>,
    id: String,
    after: u32,
    ended: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Vec<Event>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            self.changed.mark_unchanged();
            // An operation that can't be read ends the stream; the client comes back and sees why.
            let operation = self.controller.operation(&self.id, self.after).await.ok()?;
            let mut events = Vec::new();
            for event in &operation.events {
                self.after = event.seq;
                events.extend(
                    Event::default()
                        .id(event.seq.to_string())
                        .event("step")
                        .json_data(event)
                        .ok(),
                );
            }
            if operation.status != OperationStatus::Running {
                self.ended = true;
                let whole = self.controller.operation(&self.id, 0).await.ok()?;
                events.extend(Event::default().event("end").json_data(whole).ok());
            }
            if !events.is_empty() {
                return Some((events, self));
            }
            let _ = tokio::time::timeout(Duration::from_secs(5), self.changed.changed()).await;
        }
    }
}
