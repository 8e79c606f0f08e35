//! `/instances`: what can be done inside a guest.

use api::Problem;
use api::exec::{ExecEvent, ExecRequest, ExecResult};
use api::session::SessionStart;
use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use engine::controller::FoundGuest;
use http::HeaderMap;
use http::header::ACCEPT;

use crate::State;
use crate::answer::{Body, Failed};
use crate::audited::{Pending, Told};

/// Deadline of a streamed command when none is given: as without the stream.
const DEFAULT_TIMEOUT_MS: u64 = 600_000;

pub(crate) fn routes() -> Router<State> {
    Router::new().route("/instances/{name}/exec", post(exec))
}

/// Runs a command in an instance. Hanging up ends the command and its whole process tree. With
/// `Accept: application/x-ndjson` the answer is a stream of `ExecEvent`, one a line.
#[utoipa::path(post, path = "/api/v1/instances/{name}/exec", tag = "instances", params(("name" = String, Path)), request_body = ExecRequest,
    responses((status = 200, content((ExecResult = "application/json"), (ExecEvent = "application/x-ndjson"))), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem),
        (status = 502, body = Problem, description = "code `nothing_ran` or `outcome_unknown`")))]
pub(crate) async fn exec(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Extension(pending): Extension<Pending>,
    found: Option<Extension<FoundGuest>>,
    headers: HeaderMap,
    Body(request): Body<ExecRequest>,
) -> Result<Response, Failed> {
    if wants_lines(&headers) {
        let mut start = SessionStart {
            exec: request,
            tty: None,
        };
        start.exec.timeout_ms.get_or_insert(DEFAULT_TIMEOUT_MS);
        return crate::sessions::stream(&state, &pending, &name, &start).await;
    }
    let found = found.map(|Extension(found)| found);
    let result = state.controller.exec_in(found, &name, &request).await?;
    Ok((Extension(Told::ran(&result)), Json(result)).into_response())
}

/// Whether the answer to a command is to be a stream of events.
pub(crate) fn wants_lines(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .any(|v| v.to_str().is_ok_and(|t| t.contains("application/x-ndjson")))
}
