//! The agent in a guest: one router behind one door.
//!
//! ```text
//!   TCP 39383 ──────── TLS ─┐            ┌─ open ──────── GET /health
//!   abstract socket ── TLS ─┼──▶ router ─┼─ identity ──── PUT /identity
//!   unix socket ────────────┘            └─ exec, files, forward ─ their modules
//! ```
//! Without a valid identity nothing listens. Nothing slow happens before it does. When it is told to stop,
//! commands whose callers wait are ended first; what commands left running on purpose stays.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use wire::agent::{Health, Scope};

use crate::answer::{json, no_such_method, no_such_path};
use crate::door::{self, Crowd, Limits};
use crate::durable::FileError;
use crate::exec::{self, Groups, Processes};
use crate::init::{self, InitError};
use crate::relay::notify;
use crate::trust::bundle::BundleError;
use crate::trust::{Trust, renewal, require};
use crate::{files, forward};

/// For each listener 512 connections in all, with those that are about to go; see [`Crowd`].
const LIMITS: Limits = Limits {
    proven: 400,
    unproven: 96,
};

/// How long commands are given to be gone when the agent stops.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What the agent is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The identity bundle.
    pub bundle: PathBuf,
    /// Where to listen on TCP, with TLS.
    pub listen: Option<SocketAddr>,
    /// The abstract unix socket on which to listen with TLS, for a controller on the same machine.
    pub inside: Option<String>,
    /// Where to listen on a unix socket, without TLS but with tokens all the same.
    pub unix: Option<PathBuf>,
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is no valid identity.
    #[error(transparent)]
    Identity(#[from] BundleError),
    /// The TCP port cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The unix socket cannot be made.
    #[error(transparent)]
    Socket(#[from] FileError),
    /// A signal handler could not be installed.
    #[error("signals cannot be received: {0}")]
    Signal(#[source] std::io::Error),
    /// Commands could not be run.
    #[error("children cannot be watched: {0}")]
    Processes(#[source] std::io::Error),
}

/// Runs the agent until it is told to stop.
pub async fn run(options: Options) -> Result<(), GuestError> {
    let began = Instant::now();
    let mut terminate = signal(SignalKind::terminate()).map_err(GuestError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(GuestError::Signal)?;
    let trust = Arc::new(Trust::load(&options.bundle)?);
    let guest = Guest::start(&options, trust, began)?;
    let processes = guest.processes.clone();
    notify::send("READY=1");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = guest.serve() => {}
        () = notify::watchdog() => {}
    }
    notify::send("STOPPING=1");
    tracing::info!("the agent stops");
    if !processes.stop(STOP_PATIENCE).await {
        tracing::error!("the agent leaves commands behind that it could not end");
    }
    Ok(())
}

/// Runs the agent as process 1 of a guest that has no init system, until the guest is told to halt.
/// A guest whose agent can't serve goes on: what it says stands on its console.
pub async fn init(options: Options) -> Result<(), InitError> {
    let began = Instant::now();
    init::prepare()?;
    init::run(async {
        let served = Trust::load(&options.bundle)
            .map_err(GuestError::from)
            .and_then(|trust| Guest::start(&options, Arc::new(trust), began));
        match served {
            Ok(guest) => guest.serve().await,
            Err(error) => tracing::error!(%error, "the agent cannot serve"),
        }
    })
    .await
}

/// An agent that listens.
pub struct Guest {
    tcp: Option<TcpListener>,
    inside: Option<UnixListener>,
    unix: Option<UnixListener>,
    trust: Arc<Trust>,
    processes: Arc<Processes>,
    router: Router,
}

impl Guest {
    /// Begins to listen. `began` is when the agent was started.
    pub fn start(options: &Options, trust: Arc<Trust>, began: Instant) -> Result<Self, GuestError> {
        let tcp = options.listen.map(|address| {
            door::listen(address).map_err(|source| GuestError::Listen { address, source })
        });
        let unix = options.unix.as_deref().map(door::listen_unix);
        // Any process of the guest can take the name first. The controller then finds the agent by TCP.
        let inside = options
            .inside
            .as_deref()
            .and_then(|name| match door::listen_abstract(name) {
                Ok(listener) => Some(listener),
                Err(error) => {
                    tracing::warn!(%error, socket = name, "the abstract socket can't be had");
                    None
                }
            });
        let groups = Groups::of_this_process();
        let groups = groups.inspect_err(
            |error| tracing::info!(%error, "commands get no control groups of their own"),
        );
        let processes = Processes::start(groups.ok()).map_err(GuestError::Processes)?;
        let guest = Self {
            tcp: tcp.transpose()?,
            inside,
            unix: unix.transpose()?,
            router: router(&trust, processes.clone(), began),
            processes,
            trust,
        };
        tracing::info!(
            version = crate::VERSION,
            instance = guest.trust.instance(),
            listen = ?guest.address(),
            "the agent is ready"
        );
        Ok(guest)
    }

    /// Where it listens on TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Answers callers, for ever.
    pub async fn serve(self) {
        let plain = self.router.clone();
        let tcp = secured(self.tcp, &self.trust, &self.router);
        let inside = secured(self.inside, &self.trust, &self.router);
        let unix = async {
            match self.unix {
                Some(listener) => {
                    door::accept(listener, Crowd::new(LIMITS), move |stream, seat| {
                        door::serve(stream, seat, plain.clone())
                    })
                    .await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tcp => {}
            () = inside => {}
            () = unix => {}
        }
    }
}

/// Answers the callers of a listener over TLS, for ever; without one it waits as long.
async fn secured<L>(listener: Option<L>, trust: &Arc<Trust>, router: &Router)
where
    L: door::Listener<Stream: door::stream::Duplex>,
{
    match listener {
        Some(listener) => {
            door::accept(listener, Crowd::new(LIMITS), |stream, seat| {
                door::serve_tls(stream, seat, trust.clone(), router.clone())
            })
            .await;
        }
        None => std::future::pending().await,
    }
}

/// Every route of the agent, each behind the scope that it needs. Routes of other modules bring
/// no fallback of their own.
pub fn router(trust: &Arc<Trust>, processes: Arc<Processes>, began: Instant) -> Router {
    health(trust, began)
        .merge(renewal::router(trust))
        .merge(require(exec::router(processes), trust, Scope::Exec))
        .merge(require(files::router(), trust, Scope::Files))
        .merge(require(forward::router(), trust, Scope::Forward))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
}

/// `GET /health`, the one open route.
pub fn health(trust: &Arc<Trust>, began: Instant) -> Router {
    Router::new()
        .route("/health", get(tell_health))
        .with_state((trust.clone(), began))
}

async fn tell_health(State((trust, began)): State<(Arc<Trust>, Instant)>) -> Response {
    let health = Health {
        status: "ok".into(),
        version: crate::VERSION.into(),
        instance: trust.instance().into(),
        uptime_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    json(StatusCode::OK, &health)
}
