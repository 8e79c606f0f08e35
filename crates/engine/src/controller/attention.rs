//! What the worker of an object is at, for people who look. Decides nothing and is not durable: after a restart
//! of the controller every object is looked at again anyway.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::status::Repair;
use tokio::time::Instant;

/// What one worker is at. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attention(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The step under way, in words.
    doing: Option<String>,
    /// How often in a row the object was left other than wanted.
    failures: u32,
    /// Why, the last time.
    cause: Option<String>,
    next_look: Option<Instant>,
}

impl Attention {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins.
    pub(crate) fn begin(&self, what: &str) {
        self.state().doing = Some(what.to_owned());
    }

    /// The step is over.
    pub(crate) fn end(&self) {
        self.state().doing = None;
    }

    /// The object is as wanted.
    pub(crate) fn well(&self) {
        let mut state = self.state();
        state.failures = 0;
        state.cause = None;
    }

    /// The object is not as wanted; says how often in a row.
    pub(crate) fn unwell(&self, cause: String) -> u32 {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        state.cause = Some(cause);
        state.failures
    }

    /// How often in a row the object was left other than wanted.
    pub(crate) fn failures(&self) -> u32 {
        self.state().failures
    }

    /// The worker sleeps so long, unless it is woken.
    pub(crate) fn sleep(&self, pause: Duration) {
        let mut state = self.state();
        state.doing = None;
        state.next_look = Instant::now().checked_add(pause);
    }

    /// As people see it.
    pub(crate) fn repair(&self) -> Repair {
        let state = self.state();
        let left = |at: &Instant| at.saturating_duration_since(Instant::now());
        Repair {
            doing: state.doing.clone(),
            failed_attempts: state.failures,
            last_cause: state.cause.clone(),
            next_try_in_ms: state
                .next_look
                .as_ref()
                .filter(|_| state.doing.is_none())
                .map(|at| u64::try_from(left(at).as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_done_and_when_it_is_tried_again() {
        let attention = Attention::default();
        attention.begin("starting the guest");
        assert_eq!(
            attention.repair().doing.as_deref(),
            Some("starting the guest")
        );
        assert_eq!(attention.unwell("no luck".into()), 1);
        assert_eq!(attention.unwell("no luck".into()), 2);
        attention.sleep(Duration::from_secs(4));
        tokio::time::advance(Duration::from_secs(1)).await;
        let repair = attention.repair();
        assert_eq!(repair.next_try_in_ms, Some(3000));
        assert_eq!((repair.doing, repair.failed_attempts), (None, 2));
        assert_eq!(repair.last_cause.as_deref(), Some("no luck"));
        attention.well();
        assert_eq!(attention.failures(), 0);
    }
}
