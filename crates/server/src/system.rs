//! `/system`, `/status`: health and facts.

use api::Problem;
use api::gateway::{Health, Infrastructure};
use api::status::Status;
use axum::extract::State as Extract;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::State;
use crate::answer::{Failed, Params};

/// Which zone a call is about.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct OfZone {
    /// The zone's name; the only one, or `default`, when left out.
    pub(crate) zone: Option<String>,
}

/// Open to anybody who reaches the port.
pub(crate) fn open_routes() -> Router<State> {
    Router::new().route("/system/health", get(health))
}

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/system/infrastructure", get(infrastructure))
        .route("/status", get(status))
}

/// Whether the controller answers.
#[utoipa::path(get, path = "/api/v1/system/health", tag = "system", security(()), responses((status = 200, body = Health)))]
pub(crate) async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

/// The facts of a zone, read from its appliance just now.
#[utoipa::path(get, path = "/api/v1/system/infrastructure", tag = "system", params(OfZone), responses(
    (status = 200, body = Infrastructure), (status = 404, body = Problem)))]
pub(crate) async fn infrastructure(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Infrastructure>, Failed> {
    Ok(Json(
        state.controller.infrastructure(of.zone.as_deref()).await?,
    ))
}

/// What runs and what drifts.
#[utoipa::path(get, path = "/api/v1/status", tag = "system", responses((status = 200, body = Status)))]
pub(crate) async fn status(Extract(state): Extract<State>) -> Result<Json<Status>, Failed> {
    Ok(Json(state.controller.status().await?))
}
