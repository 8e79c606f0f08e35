//! The daemon on the appliance: keeps the zone's gateway as it should be and owns its routes.
//!
//! ```text
//!  relay.sock ──▶ router ──Apply──▶ owner task ──▶ Gateway::apply (one at a time)
//!  TCP 39384 ─TLS───▲  └────────────────────────▶ Gateway::report (any time)
//!       └─────tunnel──────▶ an agent in the zone
//!  loopback 39386 ◀── gRPC from the reverse proxy ([`front::grpc`])
//! ```
//! At start the last saved state is applied, so an appliance that restarts needs no controller.
//! Owns the relay's socket; never listens anywhere unless its directories are as they should be, nor
//! on TCP without a valid identity. Without one it goes on for root on the appliance: the zone's
//! routes and names do not depend on who may call from outside.

pub mod door;
pub mod front;
pub mod names;
pub mod notify;
pub mod passage;
pub mod route;
pub mod router;
pub mod splice;
pub mod tunnel;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use wire::agent::GRPC_PORT;
use wire::family::{Family, FamilyName, UnknownFamily};
use wire::gateway::GatewayState;

use crate::durable::{self, FileError};
use crate::gateway::apply::{ApplyError, RestoreError};
use crate::gateway::paths::Paths;
use crate::gateway::system::System;
use crate::gateway::{Gateway, claims, identity};
use crate::trust::Trust;
use door::Door;
use route::RouteTable;
use router::{Applied, Apply, Shared, Wanted};

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
    /// The appliance is made of something that is not known: nothing was changed.
    #[error("the appliance cannot be looked after: {0}")]
    Family(#[from] UnknownFamily),
    /// A signal handler could not be installed.
    #[error("signals cannot be received: {0}")]
    Signal(#[source] std::io::Error),
}

/// Where the relay is reached from outside.
#[derive(Debug, Clone)]
pub struct Outside {
    /// The appliance's identity bundle.
    pub bundle: PathBuf,
    /// The TCP port.
    pub listen: SocketAddr,
    /// Where guests with an egress policy ask for names.
    pub names: SocketAddr,
}

/// Runs the relay until it is told to stop.
pub async fn run<S: System>(paths: Paths, system: S, outside: Outside) -> Result<(), RelayError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RelayError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RelayError::Signal)?;
    let mut relay = Relay::start(paths, system, Some(outside.names)).await?;
    open(&mut relay, &outside);
    match front::grpc::listen(GRPC_PORT).await {
        Ok(listener) => drop(tokio::spawn(front::grpc::serve(
            listener,
            relay.routes.clone(),
        ))),
        Err(error) => tracing::error!(%error, "gRPC is not served; the other routes are"),
    }
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

/// Opens the TCP port, or says why it stays closed.
fn open(relay: &mut Relay, outside: &Outside) {
    let trust = match Trust::load(&outside.bundle) {
        Ok(trust) => Arc::new(trust),
        Err(error) => {
            tracing::error!(%error, "the relay's TCP port stays closed");
            return;
        }
    };
    match relay.open(trust, outside.listen) {
        Ok(address) => tracing::info!(listen = %address, "the relay is open to its controller"),
        Err(error) => {
            tracing::error!(%error, address = %outside.listen, "the relay's TCP port stays closed");
        }
    }
}

/// A relay that has restored its state and listens.
pub struct Relay {
    listener: UnixListener,
    /// The routes of the gateway API.
    gateway: Router,
    accepted: watch::Receiver<Option<Arc<GatewayState>>>,
    routes: RouteTable,
    door: Option<Door>,
}

impl Relay {
    /// Prepares the appliance, applies the last saved state and begins to listen on the unix socket.
    /// A state that cannot be restored is no reason not to run: the controller can then say what
    /// should hold. Without a port for names, guests with an egress policy have no DNS.
    pub async fn start<S: System>(
        paths: Paths,
        system: S,
        names: Option<SocketAddr>,
    ) -> Result<Self, RelayError> {
        let family = family(&paths)?;
        durable::directory(paths.run(), 0o755)?;
        let group = identity::caddy(&paths).map(|user| user.gid);
        if group.is_none() {
            tracing::warn!("there is no user and group `caddy`; only root can use the routes");
        }
        let routes = RouteTable::new(&paths.routes(), group)?;
        durable::directory(&paths.marks(), 0o700)?;
        let listener = listen(&paths.relay_socket(), &paths.marks())?;
        let gateway = Arc::new(Gateway::new(paths, system, family, routes.clone()));
        gateway.prepare()?;
        restore(&gateway).await;
        if let Some(address) = names
            && let Err(error) = names::open(gateway.clone(), address).await
        {
            tracing::error!(%error, %address, "guests with an egress policy get no answers from DNS");
        }
        tokio::spawn(claims::watch(gateway.clone()));
        let (applies, queue) = mpsc::channel(WAITING_APPLIES);
        tokio::spawn(own(gateway.clone(), queue));
        let accepted = gateway.accepted();
        let shared = Arc::new(Shared { gateway, applies });
        Ok(Self {
            listener,
            gateway: router::gateway(shared),
            accepted,
            routes,
            door: None,
        })
    }

    /// Opens the TCP port too, for bearers of tokens. Returns where it is.
    pub fn open(&mut self, trust: Arc<Trust>, listen: SocketAddr) -> std::io::Result<SocketAddr> {
        let door = Door::open(listen, trust, self.gateway.clone(), self.accepted.clone())?;
        let address = door.address()?;
        self.door = Some(door);
        Ok(address)
    }

    /// Answers callers, for ever.
    pub async fn serve(self) {
        let inside = serve_inside(self.listener, router::inside(self.gateway));
        let outside = async {
            match self.door {
                Some(door) => door.serve().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = inside => {}
            () = outside => {}
        }
    }
}

/// What the appliance says it is made of.
fn family(paths: &Paths) -> Result<&'static dyn Family, RelayError> {
    let text = durable::read_if_there(&paths.os_release())?.unwrap_or_default();
    let name = FamilyName::of_release(&String::from_utf8_lossy(&text))?;
    Ok(name.family())
}

/// Answers root on the appliance, who needs no token.
async fn serve_inside(listener: UnixListener, router: Router) {
    let callers = Arc::new(Semaphore::new(CALLERS));
    loop {
        let Ok(permit) = callers.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
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
    while let Some(Apply { wanted, answer }) = queue.recv().await {
        let applied = match wanted {
            Wanted::State(state) => gateway.apply(*state).await,
            Wanted::Change { of, change } => gateway.apply_change(&of, *change).await,
        };
        match &applied {
            Ok(diff) if diff.is_empty() => tracing::debug!("applied a state that held already"),
            Ok(diff) => tracing::info!(?diff, "applied a state"),
            // The whole state follows.
            Err(error @ ApplyError::OtherBase) => tracing::info!(%error, "a change was refused"),
            Err(error) => tracing::error!(%error, "a state could not be applied"),
        }
        let tag = gateway.tag();
        let applied = applied.map(|diff| Applied { diff, tag });
        // The caller may have hung up; the log has the outcome.
        let _ = answer.send(applied);
    }
}
