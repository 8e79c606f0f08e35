//! What a zone shows beside its instances' own names and routes: ports of the appliance that lead to
//! guests, names and reservations that people asked for.

use std::net::Ipv4Addr;

use api::MacAddr;
use api::entry::Protocol;
use serde::{Deserialize, Serialize};

use super::NameRecord;

/// Everything of that kind. Empty in a zone that nobody added anything to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Edge {
    /// Ports of the WAN side that lead to guests, sorted.
    pub ports: Vec<PublishedPort>,
    /// Further names that the zone's DNS answers, sorted by name.
    pub names: Vec<NameRecord>,
    /// Addresses that are kept for machines which are no instances, sorted by MAC.
    pub reservations: Vec<KeptAddress>,
}

impl Edge {
    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A port of the appliance's outside that leads to a port of a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Of both ports.
    pub protocol: Protocol,
    /// The port outside.
    pub listen: u16,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's port.
    pub port: u16,
}

/// An address that DHCP gives to one machine only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptAddress {
    /// The machine.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Ports of the appliance's outside that are its own.
pub const OWN_PORTS: [(Protocol, u16); 7] = [
    (Protocol::Tcp, 53),
    (Protocol::Udp, 53),
    (Protocol::Udp, 68),
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 443),
    (Protocol::Tcp, 9090),
    (Protocol::Tcp, crate::agent::RELAY_PORT),
];
