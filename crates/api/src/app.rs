//! Apps and the recipes they are made of.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::egress::Egress;
use crate::{ImageDigest, InstanceId, InstanceName, MacAddr, OperationId, RecipeId, ZoneName};

/// `POST /apps/deploy`: what to deploy and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeployRequest {
    /// The recipe's id in the catalog.
    pub app_id: String,
    /// The instance's name; made of the recipe's id when left out (`nginx`, `nginx-2`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_name: Option<String>,
    /// The zone; the only or the default one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Values for the recipe's parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Limits that differ from the recipe's.
    #[serde(default, skip_serializing_if = "LimitsRequest::is_empty")]
    pub limits: LimitsRequest,
    /// What it may reach outside its zone; the internet when left out.
    #[serde(default, skip_serializing_if = "Egress::is_internet")]
    pub egress: Egress,
    /// Go on with a deploy of this name that failed, from the step that failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
}

/// Limits a caller may set; what is left out comes from the recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LimitsRequest {
    /// CPU time in thousandths of a core (500 = half a core).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Size of the writable disk in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
}

impl LimitsRequest {
    /// True when nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The limits that hold for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// CPU time in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Size of the writable disk in GiB; none means that only the node's disk bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
}

/// `202` answer to a deploy: watch the operation, or ask for the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeployAccepted {
    /// The operation that carries the deploy.
    pub operation_id: OperationId,
    /// The instance's name.
    pub name: InstanceName,
}

/// `202` answer to anything else that takes its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationAccepted {
    /// The operation to watch.
    pub operation_id: OperationId,
}

/// Where an app is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AppStatus {
    /// On the way to its first answer.
    Deploying,
    /// Runs and has answered.
    Running,
    /// Stopped on request.
    Stopped,
    /// The deploy stopped at a step; the guest is kept to look at.
    Failed,
    /// Its guest is gone though nobody asked us to delete it.
    Lost,
    /// On the way out.
    Deleting,
}

impl AppStatus {
    /// The word used on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deploying => "deploying",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Deleting => "deleting",
        }
    }
}

/// Why a step failed and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Failure {
    /// The step that failed, like `ready`.
    pub step: String,
    /// What went wrong.
    pub cause: String,
    /// The next command to try.
    pub next: String,
    /// The last lines of the guest's console, if there is one. Data from a guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console_tail: Vec<String>,
}

/// One app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct App {
    /// Its name, unique on this controller.
    pub name: InstanceName,
    /// Its id, never used twice.
    pub id: InstanceId,
    /// The recipe it was made of.
    pub app_id: RecipeId,
    /// The zone it lives in.
    pub zone: ZoneName,
    /// The hypervisor's number for it, where the backend has one (Proxmox).
    pub vmid: Option<u32>,
    /// Its address in the zone.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: Ipv4Addr,
    /// Its Ethernet address, derived from zone and address.
    pub mac: MacAddr,
    /// The port it answers on, in the guest.
    pub port: u16,
    /// Where it can be opened through the gateway.
    pub url: String,
    /// Where it is in its life.
    pub status: AppStatus,
    /// What stopped the deploy, when `status` is `failed` or `lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The image it was cloned from.
    pub image: ImageDigest,
    /// Its limits.
    pub limits: Limits,
    /// What it may reach outside its zone.
    #[serde(default)]
    pub egress: Egress,
    /// When it was asked for (RFC 3339, UTC).
    pub created_at: String,
}

/// One recipe of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecipeSummary {
    /// Its id, the `app_id` of a deploy.
    pub id: RecipeId,
    /// Its name for people.
    pub title: String,
    /// What it is, in a sentence.
    pub description: String,
    /// The port the app answers on.
    pub port: u16,
    /// Limits an instance gets by default.
    pub limits: Limits,
    /// What can be set with `config`.
    pub parameters: Vec<RecipeParameter>,
    /// Digest of its image.
    pub image: ImageDigest,
    /// Whether the image is in the cache already.
    pub image_cached: bool,
}

/// Something that can be set at deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecipeParameter {
    /// Its key in `config`.
    pub name: String,
    /// What it does.
    pub description: String,
    /// Whether a value must be given.
    pub required: bool,
}
