//! Sandboxes: guests with a life of a stated length, for code that nobody vouches for.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::app::{AppStatus, Failure, Limits, LimitsRequest};
use crate::egress::Egress;
use crate::{ImageName, InstanceId, InstanceName, ZoneName};

/// How long a sandbox lives when nothing is said, in seconds.
pub const DEFAULT_TTL_S: u64 = 3600;
/// The longest life that can be asked for, in seconds: 30 days.
pub const MAX_TTL_S: u64 = 30 * 24 * 3600;

/// `POST /sandboxes`: everything may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SandboxRequest {
    /// Its name; made of its id when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is made of; `debian` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How long it lives, in seconds; an hour when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// The zone; the only or the default one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Limits that differ from the image's.
    #[serde(default, skip_serializing_if = "LimitsRequest::is_empty")]
    pub limits: LimitsRequest,
    /// What it may reach outside its zone; the internet when left out.
    #[serde(default, skip_serializing_if = "Egress::is_internet")]
    pub egress: Egress,
}

/// `POST /sandboxes/{id}/extend`: it lives so long from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExtendRequest {
    /// In seconds, from now.
    pub ttl_s: u64,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sandbox {
    /// Its name, unique on this controller.
    pub name: InstanceName,
    /// Its id, never used twice.
    pub id: InstanceId,
    /// What it is made of.
    pub image: ImageName,
    /// The zone it lives in.
    pub zone: ZoneName,
    /// Its address in the zone.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: Ipv4Addr,
    /// Where it is in its life.
    pub status: AppStatus,
    /// What stopped it, when `status` is `failed` or `lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Its limits.
    pub limits: Limits,
    /// What it may reach outside its zone.
    #[serde(default)]
    pub egress: Egress,
    /// When it was asked for (RFC 3339, UTC).
    pub created_at: String,
    /// When it ends by itself (RFC 3339, UTC).
    pub expires_at: String,
    /// How many seconds are left until then.
    pub expires_in_s: u64,
    /// How many seconds are left until it is warned of its end: a minute before, or a tenth of its life if
    /// that is less. 0 from then on.
    pub warned_in_s: u64,
}
