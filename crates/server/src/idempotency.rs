//! `Idempotency-Key`: the same write sent twice is done once. Keys belong to a token and live a day.
//!
//! ```text
//!   claimed ──▶ handler ──▶ answered: kept, the same call gets the same answer
//!      │           ├──────▶ answered at length: that it was, and how it ended, is kept instead
//!      │           └──────▶ failed before anything was done: given up, the same call may try again
//!      └▶ the caller hung up, or the controller ended: answered with `outcome_unknown`
//! ```

use std::sync::Arc;

use api::Problem;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State as Extract};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::Controller;
use engine::store::{IdempotencyKey, KeyClaim, Store, StoreError};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use sha2::{Digest, Sha256};

use crate::answer::Failed;
use crate::audited::Told;
use crate::auth::Actor;
use crate::{BODY_LIMIT, State};

const HEADER: &str = "idempotency-key";
/// The largest answer that is kept, in bytes. Those of commands may have many times as many.
const KEPT_MAX_BYTES: usize = 1 << 20;
/// Stands in an answer that was kept from an earlier call.
pub(crate) const REPLAYED: &str = "idempotency-replayed";

pub(crate) async fn once(
    Extract(state): Extract<State>,
    request: Request,
    next: Next,
) -> Result<Response, Failed> {
    let Some(value) = request.headers().get(HEADER).cloned() else {
        return Ok(next.run(request).await);
    };
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return Ok(next.run(request).await);
    }
    if is_streamed(&request) {
        // An answer that has no end yet can't be kept, nor a body with a digest behind it.
        return Err(Problem::new(
            400,
            "no_key_for_streams",
            "a stream is not kept, so it can't be answered again: no Idempotency-Key here",
        )
        .hint("leave the key out; nothing was done")
        .into());
    }
    let text = value.to_str().ok().filter(|k| (1..=255).contains(&k.len()));
    let key = text.ok_or_else(|| {
        Problem::new(
            400,
            "bad_idempotency_key",
            "the Idempotency-Key must have 1 to 255 visible characters",
        )
    })?;
    let actor = request
        .extensions()
        .get::<Actor>()
        .map(|a| a.name.clone())
        .unwrap_or_default();
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|e| Problem::new(413, "bad_body", e.to_string()))?;
    let mut hash = Sha256::new();
    for part in [
        parts.method.as_str().as_bytes(),
        parts.uri.to_string().as_bytes(),
        &body,
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let key = IdempotencyKey {
        token: actor,
        key: key.to_owned(),
        request: hash.finalize().into(),
    };
    let store = state.controller.store();
    let now = state.controller.entropy().now();
    match store
        .claim_key(&key, now)
        .await
        .map_err(engine::Error::from)?
    {
        KeyClaim::Answered(status, body) => return Ok(replay(status, body)),
        KeyClaim::InFlight => {
            return Err(Problem::new(
                409,
                "in_flight",
                "a call with this Idempotency-Key is under way",
            )
            .hint("wait for it, then send the same call again")
            .into());
        }
        KeyClaim::Mismatch => {
            return Err(Problem::new(
                422,
                "key_reused",
                "this Idempotency-Key was used for another call",
            )
            .hint("take a new key for a new call")
            .into());
        }
        KeyClaim::New => {}
    }
    let claim = Claim {
        store: state.controller.store().clone(),
        key: Some(key),
    };
    let ends_with_its_caller = parts.uri.path().ends_with("/exec");
    let carried = async move {
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        claim.settle(response).await
    };
    if ends_with_its_caller {
        return carried.await;
    }
    // Whoever hangs up here comes back with the same key: the answer must be kept for them.
    match tokio::spawn(carried).await {
        Ok(response) => response,
        Err(e) => {
            Err(Problem::new(500, "call_failed", format!("the call ended early: {e}")).into())
        }
    }
}

/// Calls whose body or answer passes through as it comes.
fn is_streamed(request: &Request) -> bool {
    let path = request.uri().path();
    path.ends_with("/files")
        || path.ends_with("/forward")
        || path.ends_with("/exec") && crate::instances::wants_lines(request.headers())
}

/// What is told to who repeats a call whose first answer nobody knows.
fn broken_off() -> (u16, String) {
    let problem = Problem::new(
        502,
        "outcome_unknown",
        "the first call with this Idempotency-Key was broken off before its end",
    )
    .hint("see what became of it (proximity audit tail, proximity operation list), then take a new key for a new call");
    let body = serde_json::to_string(&problem).unwrap_or_default();
    (problem.status, body)
}

/// Answers the keys of calls that the last controller did not bring to an end.
pub(crate) async fn settle_left_over(controller: &Controller) -> Result<(), StoreError> {
    controller.store().settle_open_keys(broken_off()).await
}

/// A claimed key. One that is dropped was broken off.
struct Claim {
    store: Arc<dyn Store>,
    key: Option<IdempotencyKey>,
}

impl Claim {
    /// Keeps what was done, and refusals; a failure before anything was done may pass.
    async fn settle(mut self, response: Response) -> Result<Response, Failed> {
        let Some(key) = &self.key else {
            return Ok(response);
        };
        let (response, kept) = keepable(response).await;
        let settled = self.store.settle_key(key, kept).await;
        self.key = None;
        settled.map_err(engine::Error::from)?;
        Ok(response)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else {
            return;
        };
        let store = self.store.clone();
        // Without a runtime the process is ending: the next one answers the key.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(e) = store.settle_key(&key, Some(broken_off())).await {
                    tracing::error!("the key of a call that was broken off stays open: {e}");
                }
            });
        }
    }
}

/// The response, and what of it is kept.
async fn keepable(response: Response) -> (Response, Option<(u16, String)>) {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX)
        .await
        .unwrap_or_else(|_| Bytes::new());
    let told = parts.extensions.get::<Told>();
    let code = told.and_then(Told::code);
    let nothing_done = parts.status.is_server_error()
        && !matches!(code, Some("outcome_unknown" | "deploy_failed"));
    let kept = (!nothing_done).then(|| {
        if body.len() > KEPT_MAX_BYTES {
            let ended = told.and_then(Told::ended);
            return too_large(parts.status, ended, body.len());
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        (parts.status.as_u16(), text)
    });
    (Response::from_parts(parts, Body::from(body)), kept)
}

/// What is kept of an answer that is too large: that there was one, and how the call ended.
fn too_large(status: StatusCode, ended: Option<&str>, size_bytes: usize) -> (u16, String) {
    let ended = ended.map(|how| format!("; {how}")).unwrap_or_default();
    let problem = Problem::new(
        410,
        "result_not_kept",
        format!(
            "this call was carried out once and answered with {}{ended}; the answer of {size_bytes} bytes was too large to keep",
            status.as_u16()
        ),
    )
    .hint("let the command write to a file and fetch that, or read the answer as a stream; a new key runs it again");
    let body = serde_json::to_string(&problem).unwrap_or_default();
    (problem.status, body)
}

fn replay(status: u16, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let kind = if status.is_success() {
        "application/json"
    } else {
        "application/problem+json"
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
