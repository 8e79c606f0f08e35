//! `/orphans`: guests that carry our mark and stand in no record.

use api::Problem;
use api::status::Orphan;
use axum::extract::{Path, State as Extract};
use axum::routing::{delete, get};
use axum::{Json, Router};

use crate::State;
use crate::answer::Failed;

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/orphans", get(list))
        .route("/orphans/{id}", delete(remove))
}

/// All orphans. They are left alone until somebody removes them.
#[utoipa::path(get, path = "/api/v1/orphans", tag = "system", responses((status = 200, body = [Orphan])))]
pub(crate) async fn list(Extract(state): Extract<State>) -> Result<Json<Vec<Orphan>>, Failed> {
    Ok(Json(state.controller.orphans().await?))
}

/// Stops an orphan and removes all of it; answers with what it was when it is gone.
#[utoipa::path(delete, path = "/api/v1/orphans/{id}", tag = "system", params(("id" = String, Path)), responses(
    (status = 200, body = Orphan), (status = 404, body = Problem), (status = 502, body = Problem)))]
pub(crate) async fn remove(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
) -> Result<Json<Orphan>, Failed> {
    Ok(Json(state.controller.remove_orphan(&id).await?))
}
