//! The REST API: authentication, JSON in and out, events. Every rule is the engine's; this crate
//! turns HTTP into requests and answers into HTTP.
//!
//! ```text
//!   TCP (loopback) ──▶ host check ▸ bearer token ─┐
//!   unix socket    ──▶ peer credentials ──────────┴▶ audit ▸ idempotency key ▸ handler ▸ problem or answer
//! ```
//!
//! One noun, one file: [`system`], [`zones`], [`apps`], [`sandboxes`], [`instances`], [`egress`], [`sessions`],
//! [`files`], [`forward`], [`appliance`], [`entries`], [`operations`], [`audit_records`].

mod answer;
mod appliance;
mod apps;
mod audit_records;
mod audited;
mod auth;
mod egress;
mod entries;
mod files;
mod forward;
mod hearing;
mod idempotency;
mod instances;
mod openapi;
mod operations;
mod orphans;
mod sandboxes;
mod sessions;
mod straight;
mod system;
mod zones;

use std::net::SocketAddr;
use std::path::Path;

use axum::extract::DefaultBodyLimit;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use axum::{Router, middleware};
use engine::Controller;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, HeaderName};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tower_http::set_header::SetResponseHeaderLayer;

pub use auth::{AdminTokenError, admin_token};
pub use openapi::document as openapi_document;

/// The largest body of a request: command input as base64 with its frame.
const BODY_LIMIT: usize = 12 << 20;

/// Who is at the other end of a connection, as far as the transport knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Somebody on a TCP socket. Loopback is no identity.
    Tcp,
    /// The user with this id, on the unix socket.
    Unix { uid: Option<u32> },
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Unix { uid: Some(uid) } => write!(f, "unix socket, user {uid}"),
            Self::Unix { uid: None } => f.write_str("unix socket"),
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(_: IncomingStream<'_, TcpListener>) -> Self {
        Self::Tcp
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self::Unix {
            uid: stream.io().peer_cred().ok().map(|c| c.uid()),
        }
    }
}

/// What handlers work with.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) controller: Controller,
    /// Where every change is written down before it is made.
    pub(crate) audit: audit::Log,
    /// What must not stand in it.
    pub(crate) passwords: audited::Passwords,
    /// Where the unix socket is, for hints.
    pub(crate) socket: std::path::PathBuf,
}

/// The whole API over a controller. `socket` is named in hints only.
pub(crate) fn router(controller: Controller, audit: audit::Log, socket: &Path) -> Router {
    let state = State {
        controller,
        audit,
        passwords: audited::Passwords::default(),
        socket: socket.to_owned(),
    };
    let protected = Router::new()
        .merge(system::routes())
        .merge(zones::routes())
        .merge(apps::routes())
        .merge(instances::routes())
        .merge(egress::routes())
        .merge(sessions::routes())
        .merge(files::routes())
        .merge(forward::routes())
        .merge(sandboxes::routes())
        .merge(orphans::routes())
        .merge(appliance::routes())
        .merge(entries::routes())
        .merge(operations::routes())
        .merge(audit_records::routes())
        .layer(middleware::from_fn_with_state(
            state.clone(),
            idempotency::once,
        ))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            audited::actions,
        ))
        .layer(middleware::from_fn_with_state(state.clone(), auth::require));
    let header = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    Router::new()
        .nest("/api/v1", protected.merge(system::open_routes()))
        .merge(openapi::routes())
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::method_not_allowed)
        .layer(middleware::from_fn(auth::check_host))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            audited::refusals,
        ))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(header("x-content-type-options", "nosniff"))
        .layer(header("x-frame-options", "DENY"))
        .layer(header("referrer-policy", "no-referrer"))
        .layer(SetResponseHeaderLayer::if_not_present(
            CACHE_CONTROL,
            HeaderValue::from_static("no-store"),
        ))
        .with_state(state)
}

/// The two listeners of a controller.
pub struct Listeners {
    /// For people and programs with a token.
    pub tcp: TcpListener,
    /// For the local root user.
    pub unix: UnixListener,
}

/// Why the API stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener failed.
    #[error("the API can't be served any more: {0}")]
    Listener(#[from] std::io::Error),
    /// The store failed before anything was served.
    #[error("the API can't be served: {0}")]
    Store(#[from] engine::store::StoreError),
}

/// Serves the API until `stop`; requests under way may end. Watches end at once. What changes
/// something is written to `audit` first.
pub async fn serve(
    controller: Controller,
    audit: audit::Log,
    listeners: Listeners,
    socket: &Path,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    idempotency::settle_left_over(&controller).await?;
    let app = router(controller, audit, socket).layer(axum::Extension(stop.clone()));
    let tcp = axum::serve(
        listeners.tcp,
        app.clone().into_make_service_with_connect_info::<Peer>(),
    )
    .with_graceful_shutdown(stop.clone().cancelled_owned());
    let unix = axum::serve(
        listeners.unix,
        app.into_make_service_with_connect_info::<Peer>(),
    )
    .with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::try_join!(async { tcp.await }, async { unix.await })?;
    Ok(())
}

/// Binds both listeners. A socket file that nobody listens on any more is replaced; one that somebody
/// answers on means that a controller runs.
pub async fn bind(tcp: SocketAddr, socket: &Path) -> Result<Listeners, BindError> {
    let failed = |at: String| move |e| BindError { at, cause: e };
    if tokio::net::UnixStream::connect(socket).await.is_ok() {
        return Err(BindError {
            at: socket.display().to_string(),
            cause: std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                "a controller is running already",
            ),
        });
    }
    let _ = std::fs::remove_file(socket);
    let unix = UnixListener::bind(socket).map_err(failed(socket.display().to_string()))?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(failed(socket.display().to_string()))?;
    let tcp = TcpListener::bind(tcp)
        .await
        .map_err(failed(tcp.to_string()))?;
    Ok(Listeners { tcp, unix })
}

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {at}: {cause}")]
pub struct BindError {
    at: String,
    #[source]
    cause: std::io::Error,
}
