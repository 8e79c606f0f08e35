//! The daemon on the appliance: keeps the zone's gateway as it should be and owns its routes.
//!
//! ```text
//!  relay.sock ──▶ router ──Apply──▶ owner task ──▶ Gateway::apply (one at a time)
//!                    └──────────────────────────▶ Gateway::report (any time)
//! ```
//! At start the last saved state is applied, so an appliance that restarts needs no controller.
//! Owns the relay's socket; never listens anywhere unless its directories are as they should be.

pub mod notify;
pub mod route;
pub mod router;
pub mod splice;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

use crate::durable::{self, FileError};
use crate::gateway::apply::RestoreError;
use crate::gateway::paths::Paths;
use crate::gateway::system::System;
use crate::gateway::{Gateway, identity};
use route::RouteTable;
use router::{Apply, Shared, router};

/// Callers of the API at a time; it has one, the controller.
const CALLERS: usize = 32;
/// Applies that may wait for the one under way.
const WAITING_APPLIES: usize = 4;
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// Why the relay cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A directory or socket of its own could not be made.
    #[error(transparent)]
    File(#[from] FileError),
    /// A signal handler could not be installed.
    #[error("signals cannot be received: {0}")]
    Signal(#[source] std::io::Error),
}

/// Runs the relay until it is told to stop.
pub async fn run<S: System>(paths: Paths, system: S) -> Result<(), RelayError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RelayError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RelayError::Signal)?;
    let relay = Relay::start(paths, system).await?;
    notify::send("READY=1");
    tracing::info!(version = crate::VERSION, "the relay is ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = relay.serve() => {}
        () = notify::watchdog() => {}
    }
    notify::send("STOPPING=1");
    tracing::info!("the relay stops; the appliance's other services go on");
    Ok(())
}

/// A relay that has restored its state and listens.
pub struct Relay {
    listener: UnixListener,
    router: Router,
}

impl Relay {
    /// Prepares the appliance, applies the last saved state and begins to listen. A state that
    /// cannot be restored is no reason not to run: the controller can then say what should hold.
    pub async fn start<S: System>(paths: Paths, system: S) -> Result<Self, RelayError> {
        durable::directory(paths.run(), 0o755)?;
        let group = identity::caddy(&paths).map(|user| user.gid);
        if group.is_none() {
            tracing::warn!("there is no user and group `caddy`; only root can use the routes");
        }
        let routes = RouteTable::new(&paths.routes(), group)?;
        durable::directory(&paths.marks(), 0o700)?;
        let listener = listen(&paths.relay_socket(), &paths.marks())?;
        let gateway = Arc::new(Gateway::new(paths, system, routes));
        gateway.prepare()?;
        restore(&gateway).await;
        let (applies, queue) = mpsc::channel(WAITING_APPLIES);
        tokio::spawn(own(gateway.clone(), queue));
        let shared = Arc::new(Shared { gateway, applies });
        Ok(Self {
            listener,
            router: router(shared),
        })
    }

    /// Answers the API's callers, for ever.
    pub async fn serve(self) {
        let callers = Arc::new(Semaphore::new(CALLERS));
        loop {
            let Ok(permit) = callers.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let router = self.router.clone();
                    tokio::spawn(async move {
                        serve_one(stream, router).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a caller could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_one(stream: UnixStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a caller's connection ended");
    }
}

/// The socket of the API, for root alone: it appears with its mode, out of a directory that nobody
/// else can enter. One that an earlier process left is replaced; that there are not two relays at a
/// time is systemd's business.
fn listen(path: &Path, private: &Path) -> Result<UnixListener, FileError> {
    let first = private.join("relay.sock");
    durable::remove_if_there(&first)?;
    let listener = UnixListener::bind(&first).map_err(FileError::new("listen on", path))?;
    std::fs::set_permissions(&first, Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&first, path))
        .map_err(FileError::new("place", path))?;
    Ok(listener)
}

async fn restore<S: System>(gateway: &Gateway<S>) {
    match gateway.restore().await {
        Ok(None) => {
            tracing::info!("no state is saved yet; the controller will say what should hold")
        }
        Ok(Some(diff)) if diff.is_empty() => tracing::info!("the saved state holds"),
        Ok(Some(diff)) => tracing::info!(?diff, "the saved state was restored"),
        Err(RestoreError::Load(error)) => tracing::error!(%error, "the saved state is lost"),
        Err(RestoreError::Apply(error)) => {
            tracing::error!(%error, "the saved state holds only in part");
        }
    }
}

/// Applies one state after the other. Here and not in the handlers, because a caller that hangs up
/// must not end an apply half-way.
async fn own<S: System>(gateway: Arc<Gateway<S>>, mut queue: mpsc::Receiver<Apply>) {
    while let Some(Apply { state, answer }) = queue.recv().await {
        let applied = gateway.apply(state).await;
        match &applied {
            Ok(diff) if diff.is_empty() => tracing::debug!("applied a state that held already"),
            Ok(diff) => tracing::info!(?diff, "applied a state"),
            Err(error) => tracing::error!(%error, "a state could not be applied"),
        }
        // The caller may have hung up; the log has the outcome.
        let _ = answer.send(applied);
    }
}
