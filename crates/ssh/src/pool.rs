//! Connections that are kept between commands: a few for each host, shared within the server's `MaxSessions`, closed
//! when nobody has used them for a while.
//!
//! ```text
//!   lease ─▶ one with room? ─yes─▶ channel ─▶ command ─▶ finished: kept, until idle for too long
//!              │ no                   │ refused twice: the server's limit is known now ─▶ look again
//!              │                      │ dead, and nothing was sent ─▶ another one, silently
//!              ▼                      └ the command's end was not seen ─▶ retired: takes nothing more, cut when empty
//!            open another (bounded), or wait for room
//! ```
//!
//! A connection whose reader may stand still (streams, terminals, tunnels) is nobody else's meanwhile, for one unread
//! channel stops all channels of its connection. What a connection was opened with is part of its name here: when
//! `known_hosts` or a key file changes, connections from before take nothing more.
//!
//! Owns connections; knows nothing of commands.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use russh::Channel;
use russh::client::Msg;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::connection::{Caller, Connection, NoChannel};
use crate::error::Error;
use crate::hosts::{Hosts, Vm};
use crate::identity;

/// The most connections to one host, those of streams and terminals included.
const MAX_CONNECTIONS: usize = 16;
/// How many of them are opened at the same time; sshd drops logins by chance when more than ten are on their way.
const MAX_OPENING: usize = 8;
/// How many channels a connection carries. Servers allow ten where nothing else is configured, and one that has just
/// ended may still count.
const CHANNELS: usize = 8;

/// Whether others may use the connection at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Whoever leases it reads at once all that comes.
    Shared,
    /// Its reader may stand still.
    Own,
}

/// The kept connections of one [`Remote`](crate::Remote). Clones are the same pool.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    hosts: Mutex<HashMap<String, Host>>,
    changed: Notify,
    idle: Duration,
}

struct Host {
    kept: Vec<Kept>,
    opening: usize,
    /// How many channels the server allows a connection, as far as refusals have taught.
    limit: usize,
    /// Whether the server has a session to spare for what watches a connection's commands.
    watched: bool,
    next: u64,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            opening: 0,
            limit: CHANNELS,
            watched: true,
            next: 0,
        }
    }
}

struct Kept {
    id: u64,
    connection: Arc<Connection>,
    open: usize,
    uses: u64,
    own: bool,
    retired: bool,
    idle_since: Instant,
}

impl Kept {
    fn is_usable(&self) -> bool {
        !self.retired && !self.connection.is_closed()
    }
}

/// A place on a connection. Gone without [`Lease::finished`], it retires the connection.
pub(crate) struct Lease {
    pool: Pool,
    key: String,
    id: u64,
    connection: Arc<Connection>,
    /// How often the connection had been leased before.
    uses: u64,
    clean: bool,
}

impl Lease {
    /// The connection itself.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Whether nobody had used it before.
    pub fn is_new(&self) -> bool {
        self.uses == 0
    }

    /// The command's end was seen, so the connection is as good as before.
    pub fn finished(mut self) {
        self.clean = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(&self.key, self.id, self.clean);
    }
}

/// The right to open one more connection.
struct Opening<'a> {
    pool: &'a Pool,
    key: &'a str,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(host) = self.pool.hosts().get_mut(self.key) {
            host.opening = host.opening.saturating_sub(1);
        }
        self.pool.0.changed.notify_waiters();
    }
}

enum Place<'a> {
    Taken(Lease),
    Open(Opening<'a>),
    Wait,
}

/// What became of a lease whose channel was refused.
enum Refused {
    Again,
    For(Error),
}

/// How long one has not been used.
enum Idle {
    Gone,
    Wait(Duration),
    Over(Arc<Connection>),
}

impl Pool {
    /// Keeps connections this long without use; zero keeps none.
    pub fn new(idle: Duration) -> Self {
        Self(Arc::new(Shared {
            hosts: Mutex::default(),
            changed: Notify::new(),
            idle,
        }))
    }

    /// A place on a kept connection, or on a new one. Waits at most so long for one.
    pub async fn connection(
        &self,
        vm: &Vm,
        caller: Caller<'_>,
        sharing: Sharing,
        wait: Duration,
    ) -> Result<Lease, Error> {
        let key = key(vm, caller.hosts);
        let until = tokio::time::Instant::now() + wait;
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change between looking and waiting is missed.
            changed.as_mut().enable();
            match self.place(&key, sharing) {
                Place::Taken(lease) => return Ok(lease),
                Place::Open(opening) => {
                    let connection = Connection::open(vm, caller).await?;
                    return Ok(self.keep(&opening, connection, sharing));
                }
                Place::Wait => timeout_at(until, changed).await.map_err(|_| busy(vm))?,
            }
        }
    }

    /// A channel on a kept connection, or on a new one. Waits at most so long for a place.
    pub async fn lease(
        &self,
        vm: &Vm,
        caller: Caller<'_>,
        sharing: Sharing,
        wait: Duration,
    ) -> Result<(Lease, Channel<Msg>), Error> {
        let until = Instant::now() + wait;
        loop {
            let wait = until.saturating_duration_since(Instant::now());
            let lease = self.connection(vm, caller, sharing, wait).await?;
            match lease.connection.open_channel().await {
                Ok(channel) => {
                    self.used_again(&lease);
                    return Ok((lease, channel));
                }
                Err(NoChannel::Gone(error)) if lease.uses == 0 => return Err(error),
                // It had died, or never answered. Nothing was sent on it: another one.
                Err(NoChannel::Gone(_)) => {}
                Err(NoChannel::Refused(error)) => match self.refused(lease, error).await {
                    Ok((lease, channel)) => return Ok((lease, channel)),
                    Err(Refused::Again) => {}
                    Err(Refused::For(error)) => return Err(error),
                },
            }
        }
    }

    /// A channel on a connection that is kept, if there is one with room: nothing is opened, and nobody logs in.
    pub async fn kept(
        &self,
        vm: &Vm,
        hosts: &Hosts,
        sharing: Sharing,
    ) -> Option<(Lease, Channel<Msg>)> {
        let key = key(vm, hosts);
        let Place::Taken(lease) = self.place(&key, sharing) else {
            return None;
        };
        match lease.connection.open_channel().await {
            Ok(channel) => {
                self.used_again(&lease);
                Some((lease, channel))
            }
            // `lease` finds out whether it is full.
            Err(NoChannel::Refused(_)) => {
                lease.finished();
                None
            }
            Err(NoChannel::Gone(_)) => None,
        }
    }

    /// Asks once more, since a session that has just ended may have counted; then the limit is believed.
    async fn refused(&self, lease: Lease, error: Error) -> Result<(Lease, Channel<Msg>), Refused> {
        if lease.uses > 0
            && let Ok(channel) = lease.connection.open_channel().await
        {
            return Ok((lease, channel));
        }
        let mut hosts = self.hosts();
        let host = hosts.get_mut(&lease.key);
        let others = host.and_then(|host| {
            let kept = host.kept.iter_mut().find(|kept| kept.id == lease.id)?;
            let others = kept.open.saturating_sub(1);
            if others > 0 {
                host.limit = host.limit.min(others);
            } else if kept.connection.warden().is_some() {
                host.watched = false;
            }
            Some(others)
        });
        drop(hosts);
        if others.unwrap_or_default() > 0 {
            // It is full, and otherwise as good as before.
            lease.finished();
            return Err(Refused::Again);
        }
        if lease.uses == 0 {
            return Err(Refused::For(error));
        }
        Err(Refused::Again)
    }

    fn place<'a>(&'a self, key: &'a str, sharing: Sharing) -> Place<'a> {
        let mut hosts = self.hosts();
        let host = hosts.entry(key.to_owned()).or_default();
        host.kept.retain(|kept| kept.open > 0 || kept.is_usable());
        let limit = host.limit;
        let room = |kept: &&mut Kept| {
            let free = match sharing {
                Sharing::Shared => !kept.own && kept.open < limit,
                Sharing::Own => kept.open == 0,
            };
            free && kept.is_usable()
        };
        if let Some(kept) = host.kept.iter_mut().find(room) {
            return Place::Taken(self.take(key, kept, sharing));
        }
        let all = host.kept.len().saturating_add(host.opening);
        if all < MAX_CONNECTIONS && host.opening < MAX_OPENING {
            host.opening = host.opening.saturating_add(1);
            return Place::Open(Opening { pool: self, key });
        }
        Place::Wait
    }

    fn take(&self, key: &str, kept: &mut Kept, sharing: Sharing) -> Lease {
        let uses = kept.uses;
        kept.open = kept.open.saturating_add(1);
        kept.uses = kept.uses.saturating_add(1);
        kept.own = sharing == Sharing::Own;
        Lease {
            pool: self.clone(),
            key: key.to_owned(),
            id: kept.id,
            connection: Arc::clone(&kept.connection),
            uses,
            clean: false,
        }
    }

    fn keep(&self, opening: &Opening<'_>, connection: Connection, sharing: Sharing) -> Lease {
        let mut hosts = self.hosts();
        let host = hosts.entry(opening.key.to_owned()).or_default();
        let mut kept = Kept {
            id: host.next,
            connection: Arc::new(connection),
            open: 0,
            uses: 0,
            own: false,
            retired: false,
            idle_since: Instant::now(),
        };
        host.next = host.next.saturating_add(1);
        if !self.0.idle.is_zero() {
            let (shared, key) = (Arc::downgrade(&self.0), opening.key.to_owned());
            tokio::spawn(close_idle(shared, key, kept.id, self.0.idle));
        }
        let lease = self.take(opening.key, &mut kept, sharing);
        host.kept.push(kept);
        lease
    }

    fn give_back(&self, key: &str, id: u64, clean: bool) {
        let mut hosts = self.hosts();
        let Some(host) = hosts.get_mut(key) else {
            return;
        };
        let Some(kept) = host.kept.iter_mut().find(|kept| kept.id == id) else {
            return;
        };
        kept.open = kept.open.saturating_sub(1);
        kept.retired |= !clean || self.0.idle.is_zero();
        if kept.open == 0 {
            kept.own = false;
            kept.idle_since = Instant::now();
        }
        host.kept.retain(|kept| kept.open > 0 || kept.is_usable());
        drop(hosts);
        self.0.changed.notify_waiters();
    }

    /// Takes a connection out that nobody has used for long enough.
    fn idle(&self, key: &str, id: u64) -> Idle {
        let mut hosts = self.hosts();
        let Some(host) = hosts.get_mut(key) else {
            return Idle::Gone;
        };
        let Some(at) = host.kept.iter().position(|kept| kept.id == id) else {
            return Idle::Gone;
        };
        let unused = host.kept.get(at).filter(|kept| kept.open == 0);
        let unused = unused.map_or(Duration::ZERO, |kept| kept.idle_since.elapsed());
        let longer = self.0.idle.saturating_sub(unused);
        if !longer.is_zero() {
            return Idle::Wait(longer);
        }
        let over = host.kept.swap_remove(at);
        if host.kept.is_empty() && host.opening == 0 {
            // With it goes what was learned of the server, which may have another configuration by then.
            hosts.remove(key);
        }
        Idle::Over(over.connection)
    }

    /// What is used a second time will be used again, so a watcher for all of its commands pays.
    fn used_again(&self, lease: &Lease) {
        let mut hosts = self.hosts();
        let watched = hosts.get_mut(&lease.key).is_some_and(|host| host.watched);
        drop(hosts);
        if watched && lease.uses > 0 {
            lease.connection.watch();
        }
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<String, Host>> {
        self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes one connection when nobody has used it for long enough; ends with it.
async fn close_idle(shared: Weak<Shared>, key: String, id: u64, mut wait: Duration) {
    loop {
        tokio::time::sleep(wait).await;
        let Some(pool) = shared.upgrade().map(Pool) else {
            return;
        };
        match pool.idle(&key, id) {
            Idle::Gone => return,
            Idle::Wait(longer) => wait = longer,
            Idle::Over(connection) => {
                pool.0.changed.notify_waiters();
                drop(pool);
                connection.close().await;
                return;
            }
        }
    }
}

fn busy(vm: &Vm) -> Error {
    Error::NotStarted {
        vm: vm.id.to_string(),
        reason: format!(
            "all {MAX_CONNECTIONS} connections to it were taken until the deadline passed"
        ),
    }
}

/// What a connection was opened with: the way, and the state of the files that vouch for it.
fn key(vm: &Vm, hosts: &Hosts) -> String {
    let mut key = String::new();
    let mut at = Some(vm);
    while let Some(hop) = at {
        let file = identity::key_path(hop, &hosts.settings);
        let (user, address) = (&hop.user, hop.address());
        let words = [
            user,
            &address,
            &file.display().to_string(),
            &stamp(&file),
            &stamp(&identity::certificate_path(&file)),
            &stamp(hop.known_hosts(&hosts.settings)),
        ];
        for word in words {
            key.push('\0');
            key.push_str(word);
        }
        // The configuration has been checked: it goes in no circle.
        at = hop.jump.as_ref().and_then(|id| hosts.vms.get(id));
    }
    key
}

fn stamp(path: &Path) -> String {
    match std::fs::metadata(path) {
        Ok(meta) => format!(
            "{}.{}.{}.{}",
            meta.ino(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        ),
        Err(_) => "none".to_owned(),
    }
}
