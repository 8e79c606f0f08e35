//! The gateway API of an appliance: the whole desired state goes in, the difference that was
//! applied comes out, and a report tells what holds right now.
//!
//! A state is complete, so that applying it twice is the same as once and a lost message loses nothing; who knows
//! which one an appliance has may send what is new of it ([`change`]).

pub mod change;
pub mod edge;
mod egress;
pub mod policy;

use std::net::{IpAddr, Ipv4Addr};

use api::{Domain, HostName, InstanceId, InstanceName, InterfaceName, MacAddr};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use egress::{EgressRule, RefusedReport, ZonePort};

use edge::{Edge, EdgeReport};
use policy::RoutePolicy;

/// Everything an appliance should do for its zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayState {
    /// The network the appliance serves.
    pub network: ZoneNetwork,
    /// Instances with a reserved address and a name, sorted by name.
    pub hosts: Vec<ReservedHost>,
    /// Host names that the reverse proxy answers to, sorted by host.
    pub routes: Vec<Route>,
    /// Leases of these hosts as the controller remembers them, for an appliance that has none of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// Ports of apps that the zone's other apps may reach, sorted by instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<ZonePort>,
    /// Guests that may reach less than the whole internet, sorted by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    /// What people added beside them.
    #[serde(default, skip_serializing_if = "Edge::is_empty")]
    pub edge: Edge,
}

/// The zone's network as its appliance sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneNetwork {
    /// The DNS domain that is answered here and never forwarded.
    pub domain: Domain,
    /// The zone's subnet, network address form (`10.20.0.0/24`).
    pub subnet: Ipv4Net,
    /// The appliance's own address in it.
    pub gateway: Ipv4Addr,
    /// First address that DHCP gives out.
    pub dhcp_first: Ipv4Addr,
    /// Last address that DHCP gives out.
    pub dhcp_last: Ipv4Addr,
    /// Lease time in seconds.
    pub lease_s: u32,
    /// Resolvers that other names are forwarded to, in order.
    pub upstream_dns: Vec<IpAddr>,
    /// The interface towards the outside.
    pub wan: InterfaceName,
    /// The interface towards the guests.
    pub lan: InterfaceName,
}

/// An instance's reserved address and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservedHost {
    /// Whose address it is.
    pub instance: InstanceId,
    /// Its name in the zone's domain.
    pub name: InstanceName,
    /// The Ethernet address that gets the reservation.
    pub mac: MacAddr,
    /// The reserved address.
    pub address: Ipv4Addr,
}

/// A host name in the reverse proxy that leads to a port of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The host name that a client asks for.
    pub host: HostName,
    /// The instance it leads to; its address comes from `hosts`, never from a name a guest claims.
    pub instance: InstanceId,
    /// TCP port on the instance.
    pub port: u16,
    /// What it asks of a request.
    #[serde(default, skip_serializing_if = "RoutePolicy::is_plain")]
    pub policy: RoutePolicy,
}

/// What an apply changed. All empty when the state held already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayDiff {
    /// Names of hosts that were published or changed.
    pub hosts_published: Vec<InstanceName>,
    /// Names of hosts that were withdrawn.
    pub hosts_withdrawn: Vec<InstanceName>,
    /// Routes that were opened or led elsewhere.
    pub routes_opened: Vec<HostName>,
    /// Routes that were closed.
    pub routes_closed: Vec<HostName>,
    /// Services whose configuration changed, with what was done ("dnsmasq: restarted").
    pub services_changed: Vec<String>,
}

impl GatewayDiff {
    /// True when nothing had to be done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What holds on the appliance right now, read when asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayReport {
    /// Version of the agent that answers.
    pub agent_version: String,
    /// Address of the WAN interface, if it has one.
    pub wan_address: Option<Ipv4Addr>,
    /// Address of the LAN interface, if it has one.
    pub lan_address: Option<Ipv4Addr>,
    /// State of each service, sorted by name: `dnsmasq`, `nftables`, `caddy`, `cockpit`, `relay`.
    pub services: Vec<ServiceReport>,
    /// Leases as dnsmasq has written them.
    pub leases: Vec<Lease>,
    /// Names that dnsmasq answers from our host directory.
    pub names: Vec<NameRecord>,
    /// Open routes with the health of their target.
    pub routes: Vec<RouteReport>,
    /// What guests with an egress rule were refused lately, sorted by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedReport>,
    /// Certificates and operators' sites.
    #[serde(default)]
    pub edge: EdgeReport,
}

/// One service of the appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// The service's name.
    pub name: String,
    /// `active`, `inactive`, `failed`, `activating` …; for `nftables` `configured` when our ruleset
    /// is in the kernel and `missing` when it is not.
    pub state: String,
}

/// One DHCP lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// When it ends, seconds since the epoch; 0 never.
    pub expires_s: u64,
    /// Who holds it.
    pub mac: MacAddr,
    /// The leased address.
    pub address: Ipv4Addr,
    /// The host name the client sent: data from a guest, only ever shown.
    pub client_name: Option<String>,
}

/// One name that the zone's DNS answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameRecord {
    /// The full name.
    pub name: HostName,
    /// Its address.
    pub address: Ipv4Addr,
}

/// One open route and whether its target accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// The host name it answers to.
    pub host: HostName,
    /// The instance it leads to.
    pub instance: InstanceId,
    /// Where its connections go.
    pub address: Ipv4Addr,
    /// Port there.
    pub port: u16,
    /// Whether the target took a connection when this was read.
    pub healthy: bool,
    /// Connections open now.
    pub connections: u32,
}

/// What counts as an app's own answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Readiness {
    /// The port takes a connection.
    Tcp,
    /// An HTTP request for the path is answered with a status below 400.
    Http {
        /// Path with an optional query.
        path: String,
    },
}

/// Asks the appliance to wait until an instance answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    /// Address in the zone's subnet.
    pub address: Ipv4Addr,
    /// Port there.
    pub port: u16,
    /// What counts as an answer.
    pub readiness: Readiness,
    /// How long to try, in milliseconds.
    pub deadline_ms: u64,
}

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Whether the instance answered as asked.
    pub ready: bool,
    /// The last thing that was seen ("connection refused", "status 502").
    pub last: String,
    /// How long it took.
    pub elapsed_ms: u64,
}
