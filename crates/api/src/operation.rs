//! Operations: durable, resumable jobs with steps and progress events.

use serde::{Deserialize, Serialize};

use crate::{OperationId, app::Failure};

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OperationStatus {
    /// Under way, or waiting for the controller to come back.
    Running,
    /// Reached what it was for.
    Succeeded,
    /// Stopped at a step.
    Failed,
}

impl OperationStatus {
    /// The word used on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// What happened to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum StepState {
    /// It began.
    Started,
    /// It goes on; the message says how far.
    Progress,
    /// It is done.
    Done,
    /// It failed; the operation ends here.
    Failed,
}

/// One event of an operation. `seq` counts from 1 without gaps and is the SSE event id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationEvent {
    /// Position in the operation.
    pub seq: u32,
    /// When it happened (RFC 3339, UTC).
    pub time: String,
    /// The step, like `bridge` or `ready`.
    pub step: String,
    /// What happened to it.
    pub state: StepState,
    /// For people.
    pub message: String,
    /// Milliseconds since the step began; on `done` and `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
}

/// One operation with all that happened so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it does: `zone_up`, `zone_down`, `deploy`, `delete`, `start`, `stop`, `restart`.
    pub kind: String,
    /// The name of the zone or instance it is about.
    pub target: String,
    /// How it stands.
    pub status: OperationStatus,
    /// What happened, in order.
    pub events: Vec<OperationEvent>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// When it was asked for (RFC 3339, UTC).
    pub created_at: String,
    /// When it ended (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}
