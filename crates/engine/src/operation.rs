//! Operations as they are recorded: steps with times, each event durable before the next begins.

use std::sync::Arc;
use std::time::Instant;

use api::OperationId;
use api::app::Failure;
use api::operation::{OperationEvent, OperationStatus, StepState};
use tokio::sync::watch;

use crate::controller::Attention;
use crate::ports::{Entropy, Store};
use crate::store::StoreError;

/// Tells watchers that some operation has a new event or end. They read what is new from the store.
#[derive(Debug, Clone)]
pub struct Feed {
    version: Arc<watch::Sender<u64>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            version: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Feed {
    /// A receiver that wakes on every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Wakes all watchers.
    pub fn announce(&self) {
        self.version.send_modify(|v| *v = v.wrapping_add(1));
    }
}

/// Why a step did not reach its end.
#[derive(Debug, Clone)]
pub enum StepError {
    /// It failed: cause and hint.
    Failed {
        /// What went wrong.
        cause: String,
        /// What may help.
        hint: Option<String>,
    },
    /// Something else is wanted by now; start over with a fresh look.
    Superseded,
}

impl From<crate::ports::PortError> for StepError {
    fn from(e: crate::ports::PortError) -> Self {
        Self::Failed {
            cause: e.to_string(),
            hint: e.hint,
        }
    }
}

impl From<StoreError> for StepError {
    fn from(e: StoreError) -> Self {
        Self::Failed {
            cause: e.to_string(),
            hint: None,
        }
    }
}

impl From<api::InvalidName> for StepError {
    fn from(e: api::InvalidName) -> Self {
        Self::Failed {
            cause: e.to_string(),
            hint: None,
        }
    }
}

/// Writes the events of one operation. Without an operation (a repair that nobody asked for) the
/// same steps go to the log only.
#[derive(Clone)]
pub struct Recorder {
    store: Arc<dyn Store>,
    entropy: Arc<dyn Entropy>,
    feed: Feed,
    operation: Option<OperationId>,
    object: String,
    attention: Attention,
}

impl Recorder {
    /// A recorder for `operation`, if there is one, about `object`, whose worker's attention it leads.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        entropy: Arc<dyn Entropy>,
        feed: Feed,
        operation: Option<OperationId>,
        object: impl Into<String>,
        attention: &Attention,
    ) -> Self {
        Self {
            store,
            entropy,
            feed,
            operation,
            object: object.into(),
            attention: attention.clone(),
        }
    }

    /// Runs one step between its `started` and its `done` or `failed` event. The future's message
    /// becomes the `done` event's.
    pub async fn step<F>(&self, step: &str, begin: &str, work: F) -> Result<(), StepError>
    where
        F: Future<Output = Result<String, StepError>>,
    {
        self.event(step, StepState::Started, begin, None).await?;
        let began = Instant::now();
        self.attention.begin(begin);
        let outcome = work.await;
        self.attention.end();
        let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &outcome {
            Ok(message) => {
                self.event(step, StepState::Done, message, Some(elapsed))
                    .await?
            }
            Err(StepError::Failed { cause, .. }) => {
                self.event(step, StepState::Failed, cause, Some(elapsed))
                    .await?;
            }
            Err(StepError::Superseded) => {}
        }
        outcome.map(drop)
    }

    /// Records how far a step is.
    pub async fn progress(&self, step: &str, message: &str) -> Result<(), StepError> {
        self.event(step, StepState::Progress, message, None).await
    }

    async fn event(
        &self,
        step: &str,
        state: StepState,
        message: &str,
        elapsed_ms: Option<u64>,
    ) -> Result<(), StepError> {
        let level_is_failed = state == StepState::Failed;
        if level_is_failed {
            tracing::warn!(object = %self.object, step, elapsed_ms, "{message}");
        } else {
            tracing::info!(object = %self.object, step, ?state, elapsed_ms, "{message}");
        }
        let Some(id) = &self.operation else {
            return Ok(());
        };
        let event = OperationEvent {
            seq: 0,
            time: self.entropy.now().to_string(),
            step: step.into(),
            state,
            message: message.into(),
            elapsed_ms,
        };
        self.store.append_event(id, &event).await?;
        self.feed.announce();
        Ok(())
    }

    /// Ends the operation.
    pub async fn finish(&self, failure: Option<&Failure>) -> Result<(), StoreError> {
        let Some(id) = &self.operation else {
            return Ok(());
        };
        let status = match failure {
            None => OperationStatus::Succeeded,
            Some(_) => OperationStatus::Failed,
        };
        self.store
            .finish_operation(id, status, failure, self.entropy.now())
            .await?;
        self.feed.announce();
        Ok(())
    }

    /// Whether this records the operation with that id.
    pub fn is_of(&self, id: &OperationId) -> bool {
        self.operation.as_ref() == Some(id)
    }

    /// Whether somebody asked for this.
    pub fn is_asked_for(&self) -> bool {
        self.operation.is_some()
    }
}
