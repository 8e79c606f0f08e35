//! Idle connections, kept for the next call so that it needs no handshake.
//!
//! Owns nothing but connections with nothing unfinished on them. Bounded for each peer, overall, and in
//! time; what goes over a bound is closed, the oldest first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::InstanceId;
use tokio::time::{Instant, sleep};

use crate::connection::Connection;
use crate::identity::Kind;

const IDLE_PER_PEER: usize = 8;
const IDLE_OVERALL: usize = 512;
const IDLE_FOR: Duration = Duration::from_secs(60);
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Whose connections: an instance as what it answers.
pub(crate) type Key = (Kind, InstanceId);

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// Oldest first; never an empty list.
    peers: HashMap<Key, Vec<(Instant, Connection)>>,
    count: usize,
    sweeping: bool,
}

impl Pool {
    /// The connection to this peer that was used last, if one is idle.
    pub fn take(&self, key: &Key) -> Option<Connection> {
        let mut idle = self.lock();
        let connections = idle.peers.get_mut(key)?;
        let (since, connection) = connections.pop()?;
        if connections.is_empty() {
            idle.peers.remove(key);
        }
        idle.count -= 1;
        (since.elapsed() < IDLE_FOR).then_some(connection)
    }

    /// Keeps a connection for the next call.
    pub fn give(self: &Arc<Self>, key: &Key, connection: Connection) {
        let mut idle = self.lock();
        let connections = idle.peers.entry(key.clone()).or_default();
        connections.push((Instant::now(), connection));
        if connections.len() > IDLE_PER_PEER {
            connections.remove(0);
        } else {
            idle.count += 1;
        }
        if idle.count > IDLE_OVERALL {
            idle.close_oldest();
        }
        if !idle.sweeping {
            idle.sweeping = true;
            let pool = Arc::downgrade(self);
            tokio::spawn(async move {
                loop {
                    sleep(SWEEP_EVERY).await;
                    match pool.upgrade() {
                        Some(pool) if pool.lock().sweep() => {}
                        _ => return,
                    }
                }
            });
        }
    }

    /// Closes the idle connections to this peer.
    pub fn forget(&self, key: &Key) {
        let mut idle = self.lock();
        if let Some(connections) = idle.peers.remove(key) {
            idle.count -= connections.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn close_oldest(&mut self) {
        let oldest = self
            .peers
            .iter()
            .filter_map(|(key, connections)| Some((connections.first()?.0, key)))
            .min_by_key(|(since, _)| *since)
            .map(|(_, key)| key.clone());
        if let Some(key) = oldest
            && let Some(connections) = self.peers.get_mut(&key)
        {
            connections.remove(0);
            self.count -= 1;
            if connections.is_empty() {
                self.peers.remove(&key);
            }
        }
    }

    /// Closes what has been idle for too long; says whether anything is left to watch over.
    fn sweep(&mut self) -> bool {
        self.peers.retain(|_, connections| {
            connections.retain(|(since, _)| since.elapsed() < IDLE_FOR);
            !connections.is_empty()
        });
        self.count = self.peers.values().map(Vec::len).sum();
        self.sweeping = self.count > 0;
        self.sweeping
    }
}
