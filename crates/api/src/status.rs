//! `GET /status`: all of it at a glance, what differs from what is wanted, and what is done about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::InstanceId;
use crate::gateway::ZoneStatus;

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// The controller's version.
    pub version: String,
    /// Every configured zone.
    pub zones: Vec<ZoneStatus>,
    /// Instances by status.
    pub instances: BTreeMap<String, u32>,
    /// Every zone and instance that is not as wanted.
    pub drift: Vec<Drift>,
    /// Guests that carry our mark and stand in no record.
    pub orphans: Vec<Orphan>,
    /// Operations under way: `KIND TARGET`.
    pub operations: Vec<String>,
}

/// A zone or an instance that is not as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Drift {
    /// `zone`, `app` or `sandbox`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What differs, in sentences.
    pub differs: Vec<String>,
    /// What is done about it without anybody asking; none when it waits for a person.
    pub repair: Option<Repair>,
    /// What a person can do.
    pub next: Option<String>,
}

/// What is done about a drift.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Repair {
    /// The step under way, in words; none between two tries.
    pub doing: Option<String>,
    /// How many tries in a row have failed.
    pub failed_attempts: u32,
    /// Why the last one failed.
    pub last_cause: Option<String>,
    /// Milliseconds until it is looked at again; none while a step is under way.
    pub next_try_in_ms: Option<u64>,
}

/// A guest that carries our mark and stands in no record. It is left alone until somebody removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Orphan {
    /// Its id.
    pub id: InstanceId,
    /// What its mark calls it; none when it was never complete.
    pub name: Option<String>,
    /// The zone that its mark names.
    pub zone: Option<String>,
    /// `app`, `sandbox` or `appliance`, as its mark says.
    pub kind: Option<String>,
    /// `running`, `stopped` or `partial`.
    pub state: String,
}
