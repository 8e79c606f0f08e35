//! `PUT /identity`: a new bundle for the same instance, checked like the one at start. Nothing is
//! written: whoever starts the guest next brings a bundle anyway.

use std::sync::Arc;
use std::time::Duration;

use api::Problem;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::put;
use tokio::time::timeout;
use wire::agent::Scope;
use wire::identity::Bundle;
use zeroize::Zeroizing;

use super::bundle::BUNDLE_MAX_BYTES;
use super::{Trust, require};
use crate::answer::Failure;

const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// The route, for bearers of scope identity.
pub fn router(trust: &Arc<Trust>) -> Router {
    let router = Router::new()
        .route("/identity", put(renew))
        .with_state(trust.clone());
    require(router, trust, Scope::Identity)
}

async fn renew(State(trust): State<Arc<Trust>>, request: Request) -> Result<StatusCode, Failure> {
    let bundle = parse(request.into_body()).await?;
    trust.renew(&bundle).map_err(|error| {
        tracing::warn!(%error, "an identity was refused");
        Problem::new(422, "invalid_identity", error.to_string())
            .hint("the current identity goes on")
    })?;
    tracing::info!(not_after = bundle.not_after, "the identity was renewed");
    Ok(StatusCode::NO_CONTENT)
}

async fn parse(body: Body) -> Result<Bundle, Failure> {
    let body = timeout(BODY_DEADLINE, to_bytes(body, BUNDLE_MAX_BYTES))
        .await
        .map_err(|_| Problem::new(408, "body_deadline", "the body did not arrive in time"))?
        .map_err(|_| {
            let detail = format!("the body is larger than {BUNDLE_MAX_BYTES} bytes or broke off");
            Problem::new(413, "body_too_large", detail)
        })?;
    // Not in the parser's words, which may quote the key.
    let malformed = || {
        Problem::new(
            422,
            "invalid_identity",
            "the body is not an identity bundle",
        )
    };
    let text = owned(body);
    let bundle = serde_json::from_slice(&text).map_err(|_| malformed())?;
    Ok(bundle)
}

/// The body in a buffer that is overwritten when it is dropped, which its own is where nobody
/// shares it.
fn owned(body: Bytes) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(
        body.try_into_mut()
            .map_or_else(|body| body.to_vec(), Vec::from),
    )
}
