//! `/catalog` and `/apps`.

use std::time::Duration;

use api::app::{App, DeployAccepted, DeployRequest, OperationAccepted, RecipeSummary};
use api::operation::OperationStatus;
use api::{OperationId, Problem};
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

/// How long a deploy call may wait for the deploy's end.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wait {
    /// Like `60s`; at most `600s`. Without it the answer is `202` at once.
    wait: Option<String>,
}

impl Wait {
    fn parse(&self) -> Result<Option<Duration>, Box<Problem>> {
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
    let accepted = || {
        (
            StatusCode::ACCEPTED,
            Extension(Told::deploying(&operation_id, &name)),
            Json(DeployAccepted {
                operation_id: operation_id.clone(),
                name: name.clone(),
            }),
        )
    };
    let Some(patience) = wait else {
        return Ok(accepted().into_response());
    };
    let ended = tokio::time::timeout(
        patience,
        crate::operations::await_end(&state.controller, operation_id.as_str()),
    )
    .await;
    let Ok(operation) = ended else {
        return Ok(accepted().into_response());
    };
    let operation = operation?;
    match operation.failure {
        None if operation.status == OperationStatus::Succeeded => {
            let app = state.controller.app(name.as_str()).await?;
            let told = Extension(Told::deploying(&operation_id, &name));
            Ok((StatusCode::CREATED, told, Json(app)).into_response())
        }
        failure => {
            let (step, cause, next) = failure.map_or_else(
                || {
                    (
                        "deploy".into(),
                        "it failed".into(),
                        format!("proximity app show {name}"),
                    )
                },
                |f| (f.step, f.cause, f.next),
            );
            Err(
                Problem::new(502, "deploy_failed", format!("step {step}: {cause}"))
                    .hint(next)
                    .into(),
            )
        }
    }
}

type Accepted = Result<(StatusCode, Extension<Told>, Json<OperationAccepted>), Failed>;

fn accepted(operation_id: OperationId) -> (StatusCode, Extension<Told>, Json<OperationAccepted>) {
    let told = Extension(Told::accepted(&operation_id));
    let answer = Json(OperationAccepted { operation_id });
    (StatusCode::ACCEPTED, told, answer)
}

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
