//! Connections to ports of the guest's own loopback: `POST /forward?port=N` with
//! `Connection: Upgrade` and `Upgrade: tcp` becomes a connection to `127.0.0.1:N`, or to `[::1]:N` where
//! only that listens.
//!
//! After `101 Switching Protocols` bytes are passed both ways as they come; the end of one direction is
//! passed on while the other goes on (half-close). Errors are RFC 9457 problems. Who may call is decided
//! where the router is served; it must be served with upgrades. Never connects to another address, never
//! looks into the bytes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::Problem;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use crate::upgrade;

/// Connections at a time.
const CONNECTIONS: usize = 256;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// Nothing said for so long ends a connection. Generous: a websocket may be silent for long.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);
const BUFFER_BYTES: usize = 64 << 10;
const PROTOCOL: &str = "tcp";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// `bad_request`: no port between 1 and 65535.
    #[error("the query can't be read: {0}")]
    Query(String),
    /// `upgrade_required`: the request asks for no upgrade.
    #[error("this is for connections: ask with `Connection: Upgrade` and `Upgrade: tcp`")]
    NoUpgrade,
    /// `busy`: too many connections.
    #[error("{CONNECTIONS} connections are open already")]
    Busy,
    /// `connection_refused`: nobody takes it.
    #[error("nothing takes connections on port {port} of the guest: {source}")]
    Refused {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `connect_deadline`: nobody answers.
    #[error("port {port} of the guest did not answer within {} s", CONNECT_DEADLINE.as_secs())]
    Deadline {
        /// The port.
        port: u16,
    },
    /// `no_such_method`.
    #[error("a connection is opened with POST")]
    Method,
}

impl IntoResponse for ForwardError {
    fn into_response(self) -> Response {
        let (status, code, hint) = match &self {
            Self::Query(_) => (400, "bad_request", None),
            Self::NoUpgrade => (426, "upgrade_required", None),
            Self::Busy => (503, "busy", Some("close one, then try again")),
            Self::Refused { .. } => (
                502,
                "connection_refused",
                Some("see in the guest what listens: ss -ltn"),
            ),
            Self::Deadline { .. } => (504, "connect_deadline", None),
            Self::Method => (405, "no_such_method", None),
        };
        let mut problem = Problem::new(status, code, self.to_string());
        problem.hint = hint.map(str::to_owned);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = HeaderValue::from_static("application/problem+json");
        let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
        if matches!(self, Self::NoUpgrade) {
            let protocol = HeaderValue::from_static(PROTOCOL);
            response.headers_mut().insert(header::UPGRADE, protocol);
        }
        response
    }
}

/// The router of `/forward`. It holds 256 connections at a time and does not ask who calls.
pub fn router() -> Router {
    let route = post(forward).fallback(async || ForwardError::Method);
    Router::new()
        .route("/forward", route)
        .with_state(Arc::new(Semaphore::new(CONNECTIONS)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    port: std::num::NonZeroU16,
}

async fn forward(
    State(connections): State<Arc<Semaphore>>,
    asked: Result<Query<Asked>, QueryRejection>,
    mut request: Request,
) -> Result<Response, ForwardError> {
    let Query(asked) = asked.map_err(|e| ForwardError::Query(e.body_text()))?;
    if !upgrade::is_asked_for(request.headers(), PROTOCOL) {
        return Err(ForwardError::NoUpgrade);
    }
    let upgraded = request.extensions_mut().remove::<OnUpgrade>();
    let upgraded = upgraded.ok_or(ForwardError::NoUpgrade)?;
    let permit = connections.try_acquire_owned();
    let permit = permit.map_err(|_| ForwardError::Busy)?;
    let guest = connect(asked.port.get()).await?;
    tokio::spawn(serve(upgraded, guest, permit));
    Ok(upgrade::switching(PROTOCOL))
}

async fn connect(port: u16) -> Result<TcpStream, ForwardError> {
    let both = async {
        match TcpStream::connect((IpAddr::from(Ipv4Addr::LOCALHOST), port)).await {
            Ok(stream) => Ok(stream),
            // Where there is no IPv6 its error would only confuse.
            Err(source) => TcpStream::connect((IpAddr::from(Ipv6Addr::LOCALHOST), port))
                .await
                .map_err(|_| source),
        }
    };
    match timeout(CONNECT_DEADLINE, both).await {
        Ok(Ok(stream)) => {
            // Only a delay, if it can't be set.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(source)) => Err(ForwardError::Refused { port, source }),
        Err(_) => Err(ForwardError::Deadline { port }),
    }
}

async fn serve(upgrade: OnUpgrade, guest: TcpStream, permit: OwnedSemaphorePermit) {
    match timeout(UPGRADE_DEADLINE, upgrade).await {
        Ok(Ok(peer)) => splice(TokioIo::new(peer), guest).await,
        Ok(Err(error)) => tracing::debug!(%error, "a connection was not upgraded"),
        Err(_) => tracing::debug!("a connection was not upgraded in time"),
    }
    drop(permit);
}

/// Copies both ways until both directions have ended, one of them failed, or nothing was said for long.
async fn splice(peer: impl AsyncRead + AsyncWrite, guest: TcpStream) {
    let spoken = Spoken::new();
    let (from_peer, to_peer) = tokio::io::split(peer);
    let (from_guest, to_guest) = guest.into_split();
    let both = async {
        tokio::try_join!(
            pass(from_peer, to_guest, &spoken),
            pass(from_guest, to_peer, &spoken)
        )
    };
    tokio::select! {
        // How a peer ended its connection is between it and the other one.
        _ = both => {}
        () = spoken.silence() => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    spoken: &Spoken,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        let said = buffer.get(..length).unwrap_or_default();
        if said.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(said).await?;
        to.flush().await?;
        spoken.now();
    }
}

/// When something was last said on a connection, in milliseconds since its beginning.
struct Spoken {
    start: Instant,
    last_ms: AtomicU64,
}

impl Spoken {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }

    fn now(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed, Ordering::Relaxed);
    }

    /// Returns when nothing was said for [`IDLE`].
    async fn silence(&self) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let end = self.start + last + IDLE;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}
