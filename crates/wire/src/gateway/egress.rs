//! What guests may reach: published ports inside the zone, egress policies towards the outside.

use std::net::Ipv4Addr;

use api::InstanceId;
use api::egress::{Destination, Refused};
use serde::{Deserialize, Serialize};

/// A port of an app that the zone's other apps may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZonePort {
    /// The app; its address comes from `hosts`.
    pub instance: InstanceId,
    /// TCP port on it.
    pub port: u16,
}

/// What one guest may reach outside, if that is not the whole internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// The guest's address; the node sees to it that nobody else uses it.
    pub source: Ipv4Addr,
    /// What it may reach; nothing when it is empty.
    pub destinations: Vec<Destination>,
}

/// What a guest with an egress rule was refused lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedReport {
    /// The guest's address.
    pub source: Ipv4Addr,
    /// What it asked for. Data from a guest.
    pub refused: Vec<Refused>,
}
