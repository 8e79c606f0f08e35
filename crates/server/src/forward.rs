//! `POST /instances/{name}/forward`: a connection to a port of a guest, over an upgraded request. From the
//! `101` on the bytes are the connection's; each side's end reaches the other.

use ::audit::Outcome;
use api::Problem;
use axum::Router;
use axum::extract::{Path, Request, State as Extract};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::State;
use crate::answer::{Failed, Params};
use crate::audited::{self, Pending};

pub(crate) fn routes() -> Router<State> {
    Router::new().route("/instances/{name}/forward", post(forward))
}

/// Which port.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// TCP port on the guest's loopback.
    port: u16,
}

/// Connects to a TCP port on a guest's loopback. The request carries `Connection: Upgrade` and `Upgrade: tcp`.
#[utoipa::path(post, path = "/api/v1/instances/{name}/forward", tag = "instances", params(("name" = String, Path), Which), responses(
    (status = 101, description = "from here on the bytes of the connection"),
    (status = 404, body = Problem), (status = 426, body = Problem), (status = 502, body = Problem)))]
pub(crate) async fn forward(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Params(which): Params<Which>,
    mut request: Request,
) -> Result<Response, Failed> {
    let upgrade = request.headers().get(UPGRADE);
    if !upgrade.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"tcp")) {
        return Err(
            Problem::new(426, "upgrade_required", "this call becomes a connection")
                .hint("send Connection: Upgrade and Upgrade: tcp")
                .into(),
        );
    }
    let mut guest = state.controller.forward(&name, which.port).await?;
    let pending = request.extensions().get::<Pending>().cloned();
    let intent = pending.and_then(|p| p.take());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let carried = match upgraded.await {
            Ok(caller) => {
                let mut caller = TokioIo::new(caller);
                tokio::io::copy_bidirectional(&mut caller, &mut guest)
                    .await
                    .map_err(|e| e.to_string())
            }
            Err(e) => Err(e.to_string()),
        };
        let outcome = match carried {
            Ok((sent, received)) => Outcome::ok().detail(serde_json::json!({
                "sent_bytes": sent, "received_bytes": received,
            })),
            Err(e) => Outcome::failed(e),
        };
        if let Some(intent) = intent {
            audited::finish(intent, outcome).await;
        }
    });
    let headers = [
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("tcp")),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
