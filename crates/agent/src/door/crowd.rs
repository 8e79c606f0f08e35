//! Who may be at the door at a time, and for how long without showing a token.
//!
//! ```text
//!             a free seat                    a valid token
//!   accepted ─────────────▶ unproven ──────────────────────▶ proven ──▶ gone
//!                              │ 5 s without proof, or pushed out
//!                              └──────────────────────────────────────▶ gone
//! ```
//! Unproven connections have few seats. When these are taken and another one comes, one that was
//! refused already is pushed out, else the one that has waited longest, but not before it had the
//! time that an honest caller needs: so neither many silent connections nor many noisy ones keep
//! somebody with a token outside, and proven ones share nothing with them but the processor. Knows
//! nothing of TLS or HTTP.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long an unproven connection may take from one answer to the next request, and from its
/// beginning to its first: handshake and header included.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection that was not refused is left alone even when others wait for its seat.
const FAIR_CHANCE: Duration = Duration::from_millis(400);
/// A connection that was refused so often in a row is closed.
const REFUSALS: u32 = 16;
/// Seats for connections that were pushed out and are about to go.
const LEAVING: usize = 16;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// With a valid token.
    pub proven: usize,
    /// Without one so far.
    pub unproven: usize,
}

/// The connections of one listener.
pub struct Crowd {
    limits: Limits,
    /// One permit a connection, of any kind.
    seats: Arc<Semaphore>,
    proven: Arc<Semaphore>,
    unproven: Mutex<Unproven>,
    /// Told when a seat of an unproven connection becomes free.
    left: Notify,
}

#[derive(Default)]
struct Unproven {
    /// The number of the next connection; the least one in `waiting` is the oldest.
    next: u64,
    waiting: BTreeMap<u64, Arc<Peer>>,
}

/// What is known of one connection. Requests carry it as an extension.
pub struct Peer {
    number: u64,
    came: Instant,
    crowd: Arc<Crowd>,
    proven: AtomicBool,
    proof: Mutex<Option<OwnedSemaphorePermit>>,
    refusals: AtomicU32,
    answered: Mutex<Instant>,
    pushed_out: Notify,
}

/// A connection's place. Whoever holds the connection's socket holds this; dropping it makes room.
pub struct Seat {
    peer: Arc<Peer>,
    _place: OwnedSemaphorePermit,
}

impl Crowd {
    /// An empty one.
    pub fn new(limits: Limits) -> Arc<Self> {
        let all = limits.proven + limits.unproven + LEAVING;
        Arc::new(Self {
            limits,
            seats: Arc::new(Semaphore::new(all)),
            proven: Arc::new(Semaphore::new(limits.proven)),
            unproven: Mutex::default(),
            left: Notify::new(),
        })
    }

    /// Waits for room for one more connection. Called by one task, the one that accepts.
    pub async fn room(self: &Arc<Self>) -> Option<Room> {
        let place = self.seats.clone().acquire_owned().await.ok()?;
        loop {
            let left = self.left.notified();
            let patience = match self.push_out() {
                None => break,
                Some(patience) => patience,
            };
            // Both ends of the wait lead to another look.
            let _ = timeout_at(patience, left).await;
        }
        Some(Room {
            crowd: self.clone(),
            place,
        })
    }

    /// Makes room among the unproven if that is needed and fair; else says when it will be fair.
    fn push_out(&self) -> Option<Instant> {
        let mut unproven = self.unproven();
        if unproven.waiting.len() < self.limits.unproven {
            return None;
        }
        let mut waiting = unproven.waiting.values();
        let refused = waiting.find(|peer| peer.refusals.load(Ordering::Relaxed) > 0);
        let number = match refused {
            Some(peer) => peer.number,
            None => {
                let (number, oldest) = unproven.waiting.first_key_value()?;
                let fair = oldest.came + FAIR_CHANCE;
                if fair > Instant::now() {
                    return Some(fair);
                }
                *number
            }
        };
        unproven.waiting.remove(&number)?.pushed_out.notify_one();
        None
    }

    fn unproven(&self) -> MutexGuard<'_, Unproven> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, number: u64) {
        if self.unproven().waiting.remove(&number).is_some() {
            self.left.notify_one();
        }
    }
}

/// Room for one connection that has not come yet.
pub struct Room {
    crowd: Arc<Crowd>,
    place: OwnedSemaphorePermit,
}

impl Room {
    /// The connection has come.
    pub fn take(self) -> Seat {
        let now = Instant::now();
        let mut unproven = self.crowd.unproven();
        let number = unproven.next;
        unproven.next += 1;
        let peer = Arc::new(Peer {
            number,
            came: now,
            crowd: self.crowd.clone(),
            proven: AtomicBool::new(false),
            proof: Mutex::default(),
            refusals: AtomicU32::new(0),
            answered: Mutex::new(now),
            pushed_out: Notify::new(),
        });
        unproven.waiting.insert(number, peer.clone());
        drop(unproven);
        Seat {
            peer,
            _place: self.place,
        }
    }
}

impl Seat {
    /// Whose seat it is.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.peer.crowd.leave(self.peer.number);
        // Requests that outlive their connection keep the peer, and must not keep its place.
        self.peer.proof().take();
    }
}

impl Peer {
    /// The connection belongs to somebody with a valid token. False when there are too many such.
    pub fn prove(&self) -> bool {
        self.refusals.store(0, Ordering::Relaxed);
        let mut proof = self.proof();
        if proof.is_some() {
            return true;
        }
        let Ok(permit) = self.crowd.proven.clone().try_acquire_owned() else {
            return false;
        };
        *proof = Some(permit);
        self.proven.store(true, Ordering::Relaxed);
        drop(proof);
        self.crowd.leave(self.number);
        true
    }

    /// A request was answered. True when that was one refusal too many and the connection must end.
    pub fn answered(&self, refused: bool) -> bool {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        refused && self.refusals.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSALS
    }

    /// Returns when the connection has to end from our side; never once it has shown a token.
    pub async fn shown_out(&self) {
        loop {
            let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
            let patience = answered + PATIENCE;
            tokio::select! {
                () = self.pushed_out.notified() => {}
                () = sleep_until(patience) => {
                    let again = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
                    if again != answered {
                        continue;
                    }
                }
            }
            if self.proven.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            return;
        }
    }

    fn proof(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
