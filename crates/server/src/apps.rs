//! `/catalog` and `/apps`.

use api::Problem;
use api::app::{App, DeployAccepted, DeployRequest, OperationAccepted, RecipeSummary};
use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use engine::controller::Power;
use http::StatusCode;
use http::header::{CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::State;
use crate::answer::{Body, Failed, Params};
use crate::audited::Told;
use crate::operations::{Wait, accepted, ended_well};

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/catalog", get(catalog))
        .route("/catalog/{id}", get(recipe))
        .route("/apps", get(list))
        .route("/apps/deploy", post(deploy))
        .route("/apps/{name}", get(show).delete(delete))
        .route("/apps/{name}/start", post(start))
        .route("/apps/{name}/stop", post(stop))
        .route("/apps/{name}/restart", post(restart))
        .route("/apps/{name}/logs", get(logs))
}

/// What can be deployed.
#[utoipa::path(get, path = "/api/v1/catalog", tag = "apps", responses((status = 200, body = [RecipeSummary])))]
pub(crate) async fn catalog(Extract(state): Extract<State>) -> Json<Vec<RecipeSummary>> {
    Json(state.controller.recipes().await)
}

/// One recipe.
#[utoipa::path(get, path = "/api/v1/catalog/{id}", tag = "apps", params(("id" = String, Path)), responses(
    (status = 200, body = RecipeSummary), (status = 404, body = Problem)))]
pub(crate) async fn recipe(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
) -> Result<Json<RecipeSummary>, Failed> {
    Ok(Json(state.controller.recipe(&id).await?))
}

/// All apps.
#[utoipa::path(get, path = "/api/v1/apps", tag = "apps", responses((status = 200, body = [App])))]
pub(crate) async fn list(Extract(state): Extract<State>) -> Result<Json<Vec<App>>, Failed> {
    Ok(Json(state.controller.apps().await?))
}

/// One app.
#[utoipa::path(get, path = "/api/v1/apps/{name}", tag = "apps", params(("name" = String, Path)), responses(
    (status = 200, body = App), (status = 404, body = Problem)))]
pub(crate) async fn show(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
) -> Result<Json<App>, Failed> {
    Ok(Json(state.controller.app(&name).await?))
}

/// Deploys an app. Name and address are reserved when this answers; the operation tells the rest.
#[utoipa::path(post, path = "/api/v1/apps/deploy", tag = "apps", params(Wait), request_body = DeployRequest, responses(
    (status = 201, body = App, description = "with `wait`: it runs and has answered"),
    (status = 202, body = DeployAccepted), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn deploy(
    Extract(state): Extract<State>,
    Params(wait): Params<Wait>,
    Body(request): Body<DeployRequest>,
) -> Result<Response, Failed> {
    let wait = wait.parse().map_err(|problem| *problem)?;
    let (operation_id, name) = state.controller.deploy(&request).await?;
    let told = Extension(Told::deploying(&operation_id, &name));
    if let Some(patience) = wait
        && ended_well(&state.controller, &operation_id, patience).await?
    {
        let app = state.controller.app(name.as_str()).await?;
        return Ok((StatusCode::CREATED, told, Json(app)).into_response());
    }
    let accepted = Json(DeployAccepted { operation_id, name });
    Ok((StatusCode::ACCEPTED, told, accepted).into_response())
}

type Accepted = Result<(StatusCode, Extension<Told>, Json<OperationAccepted>), Failed>;

/// Deletes an app and everything of it.
#[utoipa::path(delete, path = "/api/v1/apps/{name}", tag = "apps", params(("name" = String, Path)), responses(
    (status = 202, body = OperationAccepted), (status = 404, body = Problem)))]
pub(crate) async fn delete(Extract(state): Extract<State>, Path(name): Path<String>) -> Accepted {
    Ok(accepted(state.controller.delete(&name).await?))
}

async fn power(state: State, name: String, kind: Power) -> Accepted {
    Ok(accepted(state.controller.set_power(&name, kind).await?))
}

/// Starts an app.
#[utoipa::path(post, path = "/api/v1/apps/{name}/start", tag = "apps", params(("name" = String, Path)), responses(
    (status = 202, body = OperationAccepted), (status = 409, body = Problem)))]
pub(crate) async fn start(Extract(state): Extract<State>, Path(name): Path<String>) -> Accepted {
    power(state, name, Power::Start).await
}

/// Stops an app.
#[utoipa::path(post, path = "/api/v1/apps/{name}/stop", tag = "apps", params(("name" = String, Path)), responses(
    (status = 202, body = OperationAccepted), (status = 409, body = Problem)))]
pub(crate) async fn stop(Extract(state): Extract<State>, Path(name): Path<String>) -> Accepted {
    power(state, name, Power::Stop).await
}

/// Stops an app and starts it again.
#[utoipa::path(post, path = "/api/v1/apps/{name}/restart", tag = "apps", params(("name" = String, Path)), responses(
    (status = 202, body = OperationAccepted), (status = 409, body = Problem)))]
pub(crate) async fn restart(Extract(state): Extract<State>, Path(name): Path<String>) -> Accepted {
    power(state, name, Power::Restart).await
}

/// How much of a log.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Lines {
    /// How many lines from the end; 100 when left out, at most 1000.
    lines: Option<usize>,
}

/// The last lines of an app's journal, or of its console when it does not run. Data from a guest: an attachment, never a page.
#[utoipa::path(get, path = "/api/v1/apps/{name}/logs", tag = "apps", params(("name" = String, Path), Lines), responses(
    (status = 200, body = String, content_type = "text/plain"), (status = 404, body = Problem)))]
pub(crate) async fn logs(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Params(params): Params<Lines>,
) -> Result<Response, Failed> {
    let lines = state
        .controller
        .logs(&name, params.lines.unwrap_or(100).min(1000))
        .await?;
    let text: String = lines.into_iter().map(|l| l + "\n").collect();
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CONTENT_DISPOSITION, "attachment; filename=\"app.log\""),
        (CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'"),
    ];
    Ok((headers, text).into_response())
}
