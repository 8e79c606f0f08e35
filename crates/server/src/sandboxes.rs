//! `/sandboxes`: guests with a life of a stated length.

use api::Problem;
use api::app::{DeployAccepted, OperationAccepted};
use api::sandbox::{ExtendRequest, Sandbox, SandboxRequest};
use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::StatusCode;

use crate::State;
use crate::answer::{Body, Failed, Params};
use crate::audited::Told;
use crate::operations::{Wait, accepted, ended_well};

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/sandboxes", get(list).post(create))
        .route("/sandboxes/{id}", get(show).delete(kill))
        .route("/sandboxes/{id}/extend", post(extend))
}

/// All sandboxes.
#[utoipa::path(get, path = "/api/v1/sandboxes", tag = "sandboxes", responses((status = 200, body = [Sandbox])))]
pub(crate) async fn list(Extract(state): Extract<State>) -> Result<Json<Vec<Sandbox>>, Failed> {
    Ok(Json(state.controller.sandboxes().await?))
}

/// One sandbox, by its name or its id.
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)), responses(
    (status = 200, body = Sandbox), (status = 404, body = Problem)))]
pub(crate) async fn show(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
) -> Result<Json<Sandbox>, Failed> {
    Ok(Json(state.controller.sandbox(&id).await?))
}

/// Makes a sandbox. Its name and address are reserved when this answers; with `wait` its agent has answered too.
#[utoipa::path(post, path = "/api/v1/sandboxes", tag = "sandboxes", params(Wait), request_body = SandboxRequest, responses(
    (status = 201, body = Sandbox, description = "with `wait`: commands can be run in it"),
    (status = 202, body = DeployAccepted), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn create(
    Extract(state): Extract<State>,
    Params(wait): Params<Wait>,
    Body(request): Body<SandboxRequest>,
) -> Result<Response, Failed> {
    let wait = wait.parse().map_err(|problem| *problem)?;
    let (operation_id, name) = state.controller.create_sandbox(&request).await?;
    let told = Extension(Told::deploying(&operation_id, &name));
    if let Some(patience) = wait
        && ended_well(&state.controller, &operation_id, patience).await?
    {
        let sandbox = state.controller.sandbox(name.as_str()).await?;
        return Ok((StatusCode::CREATED, told, Json(sandbox)).into_response());
    }
    let accepted = Json(DeployAccepted { operation_id, name });
    Ok((StatusCode::ACCEPTED, told, accepted).into_response())
}

/// Lets a sandbox live so long from now on.
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/extend", tag = "sandboxes", params(("id" = String, Path)), request_body = ExtendRequest, responses(
    (status = 200, body = Sandbox), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn extend(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    Body(request): Body<ExtendRequest>,
) -> Result<Json<Sandbox>, Failed> {
    Ok(Json(
        state.controller.extend_sandbox(&id, request.ttl_s).await?,
    ))
}

/// Ends a sandbox and removes everything of it.
#[utoipa::path(delete, path = "/api/v1/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)), responses(
    (status = 202, body = OperationAccepted), (status = 404, body = Problem)))]
pub(crate) async fn kill(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Extension<Told>, Json<OperationAccepted>), Failed> {
    Ok(accepted(state.controller.kill_sandbox(&id).await?))
}
