//! What a zone shows beside its instances' own names and routes: ports of the appliance that lead to
//! guests, names and reservations that people asked for.

use std::net::Ipv4Addr;

use api::MacAddr;
use api::entry::Protocol;
use ipnet::Ipv4Net;
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
    /// Who signs certificates for names of other domains; nobody without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
    /// What of the zone is open to the networks outside.
    #[serde(skip_serializing_if = "Outside::is_closed")]
    pub outside: Outside,
}

/// What of a zone is open to the networks outside, beside routes and published ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outside {
    /// Whether DNS is answered on the WAN side, to private networks: names of routes with the
    /// appliance's address there.
    pub dns: bool,
    /// Networks whose machines reach the addresses of instances, but for the agents' ports.
    pub open_to: Vec<Ipv4Net>,
}

impl Outside {
    /// True when nothing is.
    pub fn is_closed(&self) -> bool {
        *self == Self::default()
    }
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

/// A public certificate authority that is asked by ACME (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// Whom the authority writes to.
    pub email: String,
    /// Its directory; the proxy's own choice without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}

/// What holds of the edge on the appliance right now, as far as the state does not tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EdgeReport {
    /// The certificate of the zone's own authority, PEM.
    pub authority: Option<String>,
    /// The operators' own sites.
    pub sites: Vec<SiteReport>,
}

/// An operator's own site of the reverse proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteReport {
    /// Its file's name.
    pub name: String,
    /// Whether some version of it is served.
    pub served: bool,
    /// Whether that is the one in the file now.
    pub current: bool,
    /// Why the one in the file is not.
    pub refused: Option<String>,
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
