//! The routes: one unix socket a host name, spliced to a port of an instance.
//!
//! Caddy connects to `ROUTES/HOST`; a task a route accepts, connects to the target and copies bytes
//! both ways. Opening, leading elsewhere or closing a route touches that socket alone.
//!
//! ```text
//!            open                    target changed                    closed
//! (no file) ──────▶ listening ──────▶ same socket, new connections ──────▶ (no file)
//!                                     and requests go to the new           all connections
//!                                     target (see [`splice`])              end at once
//! ```
//! A `watch` channel a route carries its target and policy to all of its tasks; dropping the sender is
//! how a route ends. Never looks into the bytes and never connects anywhere but to the given target.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{HostName, InstanceId};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use wire::gateway::policy::RoutePolicy;
use wire::gateway::{GatewayState, Route, RouteReport};

use super::front::Way;
use super::front::guard::Guard;
use super::splice;
use crate::durable::{self, FileError};

/// Connections that one route may have at a time; more wait to be accepted.
const CONNECTIONS_A_ROUTE: usize = 512;
/// Connections of all routes together; more are refused.
const CONNECTIONS_OVERALL: usize = 2048;
const HEALTH_DEADLINE: Duration = Duration::from_secs(1);
/// Sockets that are looked for by name, not in the list of all.
const ASKED_ONE_BY_ONE: usize = 16;
/// Health checks under way at a time.
const HEALTH_CHECKS: usize = 32;

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The instance, for reports.
    pub instance: InstanceId,
    /// Its address and port.
    pub address: SocketAddrV4,
    /// What it asks of a request.
    pub policy: RoutePolicy,
}

impl Target {
    /// The targets of all routes of a (valid) state.
    pub fn all_of(state: &GatewayState) -> BTreeMap<HostName, Self> {
        Self::of(&state.routes, state)
    }

    /// The targets of some routes of a (valid) state.
    pub fn of(routes: &[Route], state: &GatewayState) -> BTreeMap<HostName, Self> {
        let addresses: BTreeMap<_, _> = state
            .hosts
            .iter()
            .map(|h| (&h.instance, h.address))
            .collect();
        routes
            .iter()
            .filter_map(|route| {
                let address = *addresses.get(&route.instance)?;
                let target = Self {
                    instance: route.instance.clone(),
                    address: SocketAddrV4::new(address, route.port),
                    policy: route.policy.clone(),
                };
                Some((route.host.clone(), target))
            })
            .collect()
    }
}

/// All open routes. Clones share them.
#[derive(Clone)]
pub struct RouteTable {
    directory: PathBuf,
    /// The group that may connect: Caddy's.
    group: Option<u32>,
    routes: Arc<Mutex<BTreeMap<HostName, OpenRoute>>>,
    overall: Arc<Semaphore>,
    guard: Arc<Guard>,
}

struct OpenRoute {
    target: watch::Sender<Target>,
    connections: Arc<AtomicU32>,
}

impl OpenRoute {
    /// Its facts; whether the target takes connections is not known yet.
    fn report(&self, host: &HostName) -> RouteReport {
        let target = self.target.borrow();
        RouteReport {
            host: host.clone(),
            instance: target.instance.clone(),
            address: *target.address.ip(),
            port: target.address.port(),
            healthy: false,
            connections: self.connections.load(Ordering::Relaxed),
        }
    }
}

impl RouteTable {
    /// An empty table over `directory`, from which sockets that an earlier process left are removed.
    /// `group` may connect to the sockets; without one only root may.
    pub fn new(directory: &Path, group: Option<u32>) -> Result<Self, FileError> {
        durable::directory(directory, 0o750)?;
        own(directory, group).map_err(FileError::new("change the group of", directory))?;
        let stale = fs::read_dir(directory).map_err(FileError::new("list", directory))?;
        for entry in stale {
            let entry = entry.map_err(FileError::new("list", directory))?;
            durable::remove_if_there(&entry.path())?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            group,
            routes: Arc::default(),
            overall: Arc::new(Semaphore::new(CONNECTIONS_OVERALL)),
            guard: Arc::new(Guard::new().map_err(FileError::new("make a guard for", directory))?),
        })
    }

    /// Closes all routes but those of `targets`; returns the closed ones.
    pub fn close_others(&self, targets: &BTreeMap<HostName, Target>) -> Vec<HostName> {
        let others = {
            let routes = self.locked();
            let others = routes.keys().filter(|host| !targets.contains_key(*host));
            others.cloned().collect()
        };
        self.close(others)
    }

    /// Closes those of these routes that are open; returns them.
    pub fn close(&self, mut closed: Vec<HostName>) -> Vec<HostName> {
        let mut routes = self.locked();
        closed.retain(|host| routes.contains_key(host));
        for host in &closed {
            // The name goes first: who asks from now on learns that there is no such route.
            if let Err(error) = durable::remove_if_there(&self.directory.join(host.as_str())) {
                tracing::warn!(%error, "the socket of a closed route stays behind");
            }
            routes.remove(host);
        }
        closed
    }

    /// Opens the routes of `targets` that are not open and leads those elsewhere that have another
    /// target; returns both, and what could not be opened.
    pub fn open(&self, targets: &BTreeMap<HostName, Target>) -> (Vec<HostName>, Vec<FileError>) {
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
        let there = match self.sockets(targets) {
            Ok(there) => there,
            Err(error) => return (opened, vec![error]),
        };
        for (host, target) in targets {
            match self.open_one(host, target, &there) {
                Ok(true) => opened.push(host.clone()),
                Ok(false) => {}
                Err(error) => failed.push(error),
            }
        }
        (opened, failed)
    }

    /// The names of the sockets of these routes that are there, or of all. Many are read at once: asked one by one, a
    /// thousand take longer than everything else that a new route needs.
    fn sockets(&self, of: &BTreeMap<HostName, Target>) -> Result<BTreeSet<OsString>, FileError> {
        if of.len() <= ASKED_ONE_BY_ONE {
            let there = |host: &&HostName| self.directory.join(host.as_str()).exists();
            return Ok(of.keys().filter(there).map(|h| h.as_str().into()).collect());
        }
        let failed = || FileError::new("list", &self.directory);
        let entries = fs::read_dir(&self.directory).map_err(failed())?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        names.collect::<Result<_, _>>().map_err(failed())
    }

    fn open_one(
        &self,
        host: &HostName,
        target: &Target,
        there: &BTreeSet<OsString>,
    ) -> Result<bool, FileError> {
        let mut routes = self.locked();
        // A socket that somebody removed would never be connected to again: it is made anew.
        let is_there = there.contains(OsStr::new(host.as_str()));
        if let Some(route) = routes.get(host).filter(|_| is_there) {
            return Ok(route.target.send_if_modified(|now| {
                let differs = now != target;
                now.clone_from(target);
                differs
            }));
        }
        let listener = self.listen(&self.directory.join(host.as_str()))?;
        let route = OpenRoute {
            target: watch::Sender::new(target.clone()),
            connections: Arc::default(),
        };
        let accept = Accept {
            listener,
            way: self.way(host, &route),
            connections: route.connections.clone(),
            here: Arc::new(Semaphore::new(CONNECTIONS_A_ROUTE)),
            overall: self.overall.clone(),
        };
        tokio::spawn(accept.run());
        routes.insert(host.clone(), route);
        Ok(true)
    }

    fn way(&self, host: &HostName, route: &OpenRoute) -> Way {
        Way {
            host: host.clone(),
            target: route.target.subscribe(),
            guard: self.guard.clone(),
        }
    }

    /// The open route of a host, for one call that counts among its connections.
    pub fn lane(&self, host: &HostName) -> Option<Lane> {
        let routes = self.locked();
        let route = routes.get(host)?;
        Some(Lane {
            way: self.way(host, route),
            counted: Counted::new(&route.connections),
        })
    }

    /// Binds under another name and renames, so that the socket has its owner when it appears.
    fn listen(&self, path: &Path) -> Result<UnixListener, FileError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}"));
        durable::remove_if_there(&temporary)?;
        let listener = UnixListener::bind(&temporary).map_err(FileError::new("listen on", path))?;
        own(&temporary, self.group)
            .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660)))
            .and_then(|()| fs::rename(&temporary, path))
            .map_err(FileError::new("place", path))?;
        Ok(listener)
    }

    /// All open routes; whether their targets take connections is tried now.
    pub async fn report(&self) -> Vec<RouteReport> {
        let open: Vec<_> = {
            let routes = self.locked();
            let each = routes.iter();
            each.map(|(host, route)| route.report(host)).collect()
        };
        let permits = Arc::new(Semaphore::new(HEALTH_CHECKS));
        let checks: Vec<_> = open
            .into_iter()
            .map(|report| {
                let permits = permits.clone();
                let address = SocketAddrV4::new(report.address, report.port);
                let check = tokio::spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    takes_connections(address).await
                });
                (report, check)
            })
            .collect();
        let mut reports = Vec::with_capacity(checks.len());
        for (report, check) in checks {
            let healthy = check.await.unwrap_or(false);
            reports.push(RouteReport { healthy, ..report });
        }
        reports
    }

    /// One open route; whether its target takes connections is tried now.
    pub async fn report_of(&self, host: &HostName) -> Option<RouteReport> {
        let report = self.locked().get(host)?.report(host);
        let healthy = takes_connections(SocketAddrV4::new(report.address, report.port)).await;
        Some(RouteReport { healthy, ..report })
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostName, OpenRoute>> {
        // No code panics while it holds the lock; the map is whole in any case.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn own(path: &Path, group: Option<u32>) -> std::io::Result<()> {
    group.map_or(Ok(()), |group| {
        std::os::unix::fs::chown(path, None, Some(group))
    })
}

async fn takes_connections(address: SocketAddrV4) -> bool {
    matches!(
        timeout(HEALTH_DEADLINE, TcpStream::connect(address)).await,
        Ok(Ok(_))
    )
}

/// A place on an open route, beside the connections of its socket.
pub struct Lane {
    /// The route.
    pub way: Way,
    /// Counts as long as it lives.
    pub counted: Counted,
}

/// The task that accepts a route's connections.
struct Accept {
    listener: UnixListener,
    way: Way,
    connections: Arc<AtomicU32>,
    here: Arc<Semaphore>,
    overall: Arc<Semaphore>,
}

impl Accept {
    async fn run(self) {
        let mut closed = self.way.target.clone();
        loop {
            let connection = tokio::select! {
                biased;
                () = splice::route_closed(&mut closed) => return,
                connection = self.next() => connection,
            };
            if let Some(connection) = connection {
                tokio::spawn(connection);
            }
        }
    }

    /// The next connection as a task to run, or `None` when it could not be had.
    async fn next(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let host = &self.way.host;
        let here = self.here.clone().acquire_owned().await.ok()?;
        let client = match self.listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, route.host = %host, "a connection could not be accepted");
                // Out of file descriptors: others must end first.
                sleep(Duration::from_millis(100)).await;
                return None;
            }
        };
        let Ok(overall) = self.overall.clone().try_acquire_owned() else {
            tracing::warn!(route.host = %host, "a connection was refused: {CONNECTIONS_OVERALL} are open");
            return None;
        };
        let way = self.way.clone();
        let counted = Counted::new(&self.connections);
        Some(async move {
            let _held = (here, overall, counted);
            splice::run(client, way).await;
        })
    }
}

/// Counts a connection as long as it lives.
pub struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
