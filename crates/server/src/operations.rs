//! `/operations`: what is under way, and its events as they happen.

use std::convert::Infallible;
use std::time::Duration;

use api::Problem;
use api::operation::{Operation, OperationStatus};
use axum::extract::{Path, State as Extract};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use axum::{Extension, Json, Router};
use engine::Controller;
use futures::stream::{self, Stream, StreamExt};
use http::HeaderMap;
use tokio_util::sync::CancellationToken;

use crate::State;
use crate::answer::Failed;

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
