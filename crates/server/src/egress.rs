//! `/instances/{name}/egress`: what an instance may reach outside its zone.

use api::Problem;
use api::egress::{EgressRequest, EgressView};
use axum::extract::{Path, State as Extract};
use axum::routing::get;
use axum::{Json, Router};

use crate::State;
use crate::answer::{Body, Failed};

pub(crate) fn routes() -> Router<State> {
    Router::new().route("/instances/{name}/egress", get(show).put(set))
}

/// The policy of an instance, and what it refused in the last hour.
#[utoipa::path(get, path = "/api/v1/instances/{name}/egress", tag = "instances", params(("name" = String, Path)),
    responses((status = 200, body = EgressView), (status = 404, body = Problem)))]
pub(crate) async fn show(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
) -> Result<Json<EgressView>, Failed> {
    Ok(Json(state.controller.egress(&name).await?))
}

/// Changes the policy of an instance while it runs. It holds when this answers; connections that it does not allow
/// are cut.
#[utoipa::path(put, path = "/api/v1/instances/{name}/egress", tag = "instances", params(("name" = String, Path)), request_body = EgressRequest,
    responses((status = 200, body = EgressView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn set(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Body(request): Body<EgressRequest>,
) -> Result<Json<EgressView>, Failed> {
    state.controller.set_egress(&name, &request.egress).await?;
    Ok(Json(EgressView {
        egress: request.egress,
        refused: Vec::new(),
    }))
}
