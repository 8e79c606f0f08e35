//! The part of a route that reads HTTP: for routes with a policy, and for gRPC.
//!
//! ```text
//!  Caddy ──unix socket of the route──▶ serve ─┐ redirect ▸ guard ▸ size ▸ app's answer in time
//!  Caddy ──loopback, HTTP/2 (grpc)───▶ grpc  ─┴▶ [`pass`] ──▶ port of the instance
//! ```
//! The policy is read anew for every request, so that a change holds from the next one on. Bodies are
//! passed on piece by piece in both directions and never collected. Everything of a connection ends
//! when its route is closed. Never serves anything of its own but the reason of a refusal.

pub mod failures;
pub mod grpc;
pub mod guard;
mod idle;
mod pass;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::HostName;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use wire::gateway::policy::{RouteAuth, RoutePolicy};

use super::route::Target;
use super::splice::route_closed;
use guard::{Guard, Verdict};
use idle::Watched;
use pass::Upgrade;

/// What a connection reads of head and body before it is passed on, at most.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long the rest of a refused body is read, so that the refusal is heard and not cut off.
const LINGER: Duration = Duration::from_secs(3);

/// The body of an answer.
type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A route as its requests need it.
#[derive(Clone)]
pub struct Way {
    /// The name it answers to.
    pub host: HostName,
    /// Where it leads and what it asks; closed with the route.
    pub target: watch::Receiver<Target>,
    /// Checks credentials.
    pub guard: Arc<Guard>,
}

/// Serves a connection of the reverse proxy until it ends, is silent for too long, or its route is
/// closed.
pub async fn serve(client: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, way: Way) {
    let mut closed = way.target.clone();
    let (client, silence) = Watched::new(client);
    tokio::select! {
        biased;
        () = route_closed(&mut closed) => {}
        () = silence => {}
        () = exchange(client, way) => {}
    }
}

async fn exchange(client: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, way: Way) {
    // A connection is upgraded once at most.
    let (upgrades, mut upgraded) = mpsc::channel(1);
    let service = service_fn(move |request| {
        let (way, upgrades) = (way.clone(), upgrades.clone());
        async move { Ok::<_, Infallible>(answer(&way, request, upgrades).await) }
    });
    // The reverse proxy closes what it does not use, so a head has all the time of the connection.
    let served = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the reverse proxy ended");
    }
    if let Some(upgrade) = upgraded.recv().await {
        pass::both_ways(upgrade).await;
    }
}

async fn answer(
    way: &Way,
    mut request: Request<Incoming>,
    upgrades: mpsc::Sender<Upgrade>,
) -> Response<Body> {
    let target = way.target.borrow().clone();
    match admit(way, &target.policy, &mut request).await {
        Ok(()) => pass::http(request, &target, upgrades).await,
        Err(refusal) => {
            // Closed with bytes unread, the connection would take the refusal with it.
            let _ = timeout(LINGER, drain(request.into_body())).await;
            *refusal
        }
    }
}

async fn drain(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// What the policy says of a request; good credentials are taken out of it.
async fn admit(
    way: &Way,
    policy: &RoutePolicy,
    request: &mut Request<Incoming>,
) -> Result<(), Box<Response<Body>>> {
    if policy.redirect_https && came_by_http(request.headers()) {
        return Err(Box::new(to_https(&way.host, request)));
    }
    if let Some(auth) = &policy.auth {
        match way
            .guard
            .admit(&way.host, auth, request.headers_mut())
            .await
        {
            Verdict::In => {}
            Verdict::Out => return Err(Box::new(ask_for(auth, &way.host))),
            Verdict::Wait(wait) => return Err(Box::new(must_wait(wait))),
            Verdict::Busy => {
                let why = "Too many passwords are being checked (503). Try again in a moment";
                return Err(Box::new(refusal(StatusCode::SERVICE_UNAVAILABLE, why)));
            }
        }
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    match (policy.max_body_bytes, length) {
        (Some(most), Some(length)) if length > most => Err(Box::new(too_large(most))),
        _ => Ok(()),
    }
}

/// The reverse proxy says how the client came; what the client itself says of it never gets here. On
/// `*.localhost` there is no https to be sent to.
fn came_by_http(headers: &HeaderMap) -> bool {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
    };
    let host = text("x-forwarded-host").unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    text("x-forwarded-proto") == Some("http") && !name.ends_with(".localhost")
}

fn to_https(host: &HostName, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let mut answer = refusal(
        StatusCode::PERMANENT_REDIRECT,
        "This page is served by https",
    );
    if let Ok(location) = HeaderValue::from_str(&format!("https://{host}{path}")) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}

fn ask_for(auth: &RouteAuth, host: &HostName) -> Response<Body> {
    let (scheme, why) = match auth {
        RouteAuth::Basic { .. } => ("Basic", "This page needs a name and a password (401)"),
        RouteAuth::Token { .. } => (
            "Bearer",
            "This page needs a token (401), as Authorization: Bearer or X-Route-Token",
        ),
    };
    let mut answer = refusal(StatusCode::UNAUTHORIZED, why);
    if let Ok(challenge) = HeaderValue::from_str(&format!("{scheme} realm=\"{host}\"")) {
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    answer
}

fn must_wait(wait: Duration) -> Response<Body> {
    // Whole seconds, and never too early.
    let seconds = wait.as_secs() + 1;
    let why =
        format!("Too many wrong credentials from your address (429). Try again in {seconds} s");
    let mut answer = refusal(StatusCode::TOO_MANY_REQUESTS, &why);
    answer
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    answer
}

fn too_large(most: u64) -> Response<Body> {
    let why = format!("The request is larger than the {most} bytes that this page takes (413)");
    refusal(StatusCode::PAYLOAD_TOO_LARGE, &why)
}

fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let text = Bytes::from(format!("{why}\n"));
    let mut answer = Response::new(
        Full::new(text)
            .map_err(|never: Infallible| match never {})
            .boxed_unsync(),
    );
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    let unkept = HeaderValue::from_static("no-store");
    answer.headers_mut().insert(header::CACHE_CONTROL, unkept);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_from_elsewhere_is_redirected() {
        let check = |proto: &'static str, host: &'static str, redirected| {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-proto", HeaderValue::from_static(proto));
            headers.insert("x-forwarded-host", HeaderValue::from_static(host));
            assert_eq!(came_by_http(&headers), redirected, "{proto} {host}");
        };
        check("http", "web.prox.local", true);
        check("http", "web.prox.local:8080", true);
        check("https", "web.prox.local", false);
        check("http", "web.localhost", false);
        check("http", "web.localhost:8080", false);
        check("http", "weblocalhost", true);
        assert!(!came_by_http(&HeaderMap::new()));
    }
}
