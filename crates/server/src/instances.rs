//! `/instances`: what can be done inside a guest.

use api::Problem;
use api::exec::{ExecRequest, ExecResult};
use axum::extract::{Path, State as Extract};
use axum::routing::post;
use axum::{Extension, Json, Router};

use crate::State;
use crate::answer::{Body, Failed};
use crate::audited::Told;

pub(crate) fn routes() -> Router<State> {
    Router::new().route("/instances/{name}/exec", post(exec))
}

/// Runs a command in an instance. Hanging up ends the command and its whole process tree.
#[utoipa::path(post, path = "/api/v1/instances/{name}/exec", tag = "instances", params(("name" = String, Path)), request_body = ExecRequest,
    responses((status = 200, body = ExecResult), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem),
        (status = 502, body = Problem, description = "code `nothing_ran` or `outcome_unknown`")))]
pub(crate) async fn exec(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Body(request): Body<ExecRequest>,
) -> Result<(Extension<Told>, Json<ExecResult>), Failed> {
    let result = state.controller.exec(&name, &request).await?;
    Ok((Extension(Told::ran(&result)), Json(result)))
}
