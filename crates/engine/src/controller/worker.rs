//! One task per zone and per instance: idempotent reconciliations, one at a time per object, woken by
//! requests and by a timer. Owns the tasks; knows nothing of what they reconcile.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::ZoneName;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use super::attention::Attention;
use super::{Controller, Object};

/// How often an instance is looked at when nothing wakes it.
pub(super) const PERIOD: Duration = Duration::from_secs(30);
/// How often a zone is: everything in it waits for its appliance.
const ZONE_PERIOD: Duration = Duration::from_secs(10);

/// When a zone is looked at for what can wait, such as the lease of a new guest: one look is for all that
/// came meanwhile.
const SOON: Duration = Duration::from_secs(1);

/// How long a controller waits for what may take its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The longest pause between two looks at an object, whatever became of the first.
    pub longest_pause: Duration,
    /// How long an appliance may take from its start to the first answer of its relay, and its
    /// services after that to be well.
    pub appliance: Duration,
    /// How long a guest may take from its start to the first answer of its agent.
    pub agent: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            longest_pause: Duration::from_secs(60),
            appliance: Duration::from_secs(30),
            agent: Duration::from_secs(30),
        }
    }
}

/// How many reconciliations of instances run at once. Most of them wait for a guest.
const AT_ONCE: usize = 64;

/// How a reconciliation left its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    /// As wanted, or as far as it goes without a person.
    Yes,
    /// As wanted, but only so long: look again then.
    Until(Duration),
    /// Not yet: look again after this time, unless woken before.
    Retry(Duration),
    /// Not as wanted, for this cause: look again, later each time.
    Unwell(String),
    /// The object is no more.
    Gone,
}

/// All workers of a controller.
pub(crate) struct Workers {
    /// None after the stop: nobody is woken any more.
    tasks: Mutex<Option<HashMap<Object, Task>>>,
    permits: Arc<Semaphore>,
}

struct Task {
    wake: Arc<Notify>,
    abort: AbortHandle,
    attention: Attention,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            tasks: Mutex::new(Some(HashMap::new())),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Workers {
    pub(crate) fn stop(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, task) in tasks.take().into_iter().flatten() {
            task.abort.abort();
        }
    }
}

impl Controller {
    /// Wakes the object's worker, making it first if there is none.
    pub(crate) fn wake(&self, object: Object) {
        let mut tasks = self
            .inner
            .workers
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(tasks) = tasks.as_mut() else {
            return;
        };
        // One that ended by a panic is made anew: what it left half-done is a legal start.
        if let Some(task) = tasks.get(&object).filter(|t| !t.abort.is_finished()) {
            task.wake.notify_one();
            return;
        }
        let wake = Arc::new(Notify::new());
        wake.notify_one();
        let attention = Attention::default();
        let run = self
            .clone()
            .look_after(object.clone(), wake.clone(), attention.clone());
        let abort = tokio::spawn(run).abort_handle();
        let task = Task {
            wake,
            abort,
            attention,
        };
        tasks.insert(object, task);
    }

    /// Wakes a zone's worker in a moment, however often this is called until then.
    pub(super) fn wake_soon(&self, zone: &ZoneName) {
        if !self.soon().insert(zone.clone()) {
            return;
        }
        let (controller, zone) = (self.clone(), zone.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SOON).await;
            controller.soon().remove(&zone);
            controller.wake(Object::Zone(zone));
        });
    }

    fn soon(&self) -> MutexGuard<'_, HashSet<ZoneName>> {
        let zones = self.inner.soon.lock();
        zones.unwrap_or_else(PoisonError::into_inner)
    }

    /// What the worker of an object is at.
    pub(crate) fn attention(&self, object: &Object) -> Attention {
        let tasks = self.inner.workers.tasks.lock();
        let tasks = tasks.unwrap_or_else(PoisonError::into_inner);
        let task = tasks.as_ref().and_then(|tasks| tasks.get(object));
        task.map(|task| task.attention.clone()).unwrap_or_default()
    }

    async fn look_after(self, object: Object, wake: Arc<Notify>, attention: Attention) {
        let period = match &object {
            Object::Zone(_) => ZONE_PERIOD,
            Object::Instance(_) => PERIOD,
        };
        let mut pause = period;
        loop {
            // Waking and the timer mean the same: look again.
            let pause_now = pause.min(self.inner.pace.longest_pause);
            attention.sleep(pause_now);
            let _ = tokio::time::timeout(pause_now, wake.notified()).await;
            let settled = match &object {
                // Never behind instances: what a zone lacks may be what they all wait for.
                Object::Zone(name) => self.reconcile_zone(name, &attention).await,
                Object::Instance(id) => {
                    let Ok(_permit) = self.inner.workers.permits.acquire().await else {
                        return;
                    };
                    self.reconcile_instance(id, &wake, &attention).await
                }
            };
            match settled {
                Ok(Settled::Yes) => {
                    attention.well();
                    pause = period;
                }
                Ok(Settled::Until(end)) => {
                    attention.well();
                    pause = end;
                }
                Ok(Settled::Retry(after)) => pause = after,
                Ok(Settled::Unwell(cause)) => pause = back_off(attention.unwell(cause)),
                Ok(Settled::Gone) => {
                    if self.forget_worker(&object, &wake) {
                        return;
                    }
                    pause = Duration::ZERO;
                }
                Err(e) => {
                    pause = back_off(attention.unwell(e.to_string()));
                    tracing::warn!(
                        ?object,
                        retry_s = pause.as_secs(),
                        "reconciliation failed: {e}"
                    );
                }
            }
        }
    }

    /// Removes the worker unless it was woken meanwhile (the name may have come back).
    fn forget_worker(&self, object: &Object, wake: &Arc<Notify>) -> bool {
        let mut tasks = self
            .inner
            .workers
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A permit left behind means a wake-up that nobody has seen yet.
        let woken = {
            let mut notified = std::pin::pin!(wake.notified());
            notified.as_mut().enable()
        };
        if !woken && let Some(tasks) = tasks.as_mut() {
            tasks.remove(object);
        }
        !woken
    }
}

/// 1 s, 2 s, 4 s … at most a minute.
fn back_off(failures: u32) -> Duration {
    Duration::from_secs(1u64 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(60))
}
