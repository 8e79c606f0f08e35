//! `/zones`: bringing networks up and taking them down.

use api::gateway::{DownRequest, ZoneStatus};
use api::{OperationId, Problem};
use axum::extract::{Path, State as Extract};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use engine::controller::DownOptions;
use http::StatusCode;

use crate::State;
use crate::answer::{Body, Failed};
use crate::audited::Told;
use api::app::OperationAccepted;

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/zones", get(list))
        .route("/zones/{zone}/up", post(up))
        .route("/zones/{zone}/down", post(down))
}

/// Every zone and how it stands.
#[utoipa::path(get, path = "/api/v1/zones", tag = "zones", responses((status = 200, body = [ZoneStatus])))]
pub(crate) async fn list(Extract(state): Extract<State>) -> Result<Json<Vec<ZoneStatus>>, Failed> {
    Ok(Json(state.controller.zone_list().await?))
}

type Accepted = (StatusCode, Extension<Told>, Json<OperationAccepted>);

fn accepted(operation_id: OperationId) -> Accepted {
    let told = Extension(Told::accepted(&operation_id));
    let answer = Json(OperationAccepted { operation_id });
    (StatusCode::ACCEPTED, told, answer)
}

/// Brings a zone up; doing it again mends what is missing.
#[utoipa::path(post, path = "/api/v1/zones/{zone}/up", tag = "zones", params(("zone" = String, Path)), responses(
    (status = 202, body = OperationAccepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn up(
    Extract(state): Extract<State>,
    Path(zone): Path<String>,
) -> Result<Accepted, Failed> {
    Ok(accepted(state.controller.zone_up(Some(&zone)).await?))
}

/// Takes a zone down. Refused while it has instances, unless they are to go with it.
#[utoipa::path(post, path = "/api/v1/zones/{zone}/down", tag = "zones", params(("zone" = String, Path)), request_body = DownRequest,
    responses((status = 202, body = OperationAccepted), (status = 409, body = Problem)))]
pub(crate) async fn down(
    Extract(state): Extract<State>,
    Path(zone): Path<String>,
    Body(request): Body<DownRequest>,
) -> Result<Accepted, Failed> {
    let options = DownOptions {
        with_instances: request.with_instances,
    };
    Ok(accepted(
        state.controller.zone_down(Some(&zone), options).await?,
    ))
}
