//! What the gateway of a zone shows: services, leases, names and routes, read when asked.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{HostName, InstanceId, InstanceName, InterfaceName, MacAddr, NodeName, ZoneName};

/// `GET /system/infrastructure`: the facts of one zone, read from its appliance just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Infrastructure {
    /// Whether the zone can take apps: bridge and appliance are there and every service is well.
    pub available: bool,
    /// The zone.
    pub zone: ZoneName,
    /// The node that it lives on.
    pub node: NodeName,
    /// Its bridge.
    pub bridge_name: InterfaceName,
    /// Its subnet, `10.20.0.0/24`.
    pub subnet: String,
    /// The appliance's address in it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub gateway_ip: Ipv4Addr,
    /// The appliance's name.
    pub appliance_name: String,
    /// The hypervisor's number for it, where the backend has one.
    pub appliance_vmid: Option<u32>,
    /// State of the appliance's guest: `running`, `stopped`, `absent`.
    pub appliance_state: String,
    /// The appliance's address towards the outside.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub appliance_wan_ip: Option<Ipv4Addr>,
    /// The zone's DNS domain.
    pub dns_domain: String,
    /// Whether its DNS is answered on the appliance's outside too.
    #[serde(default)]
    pub dns_outside: bool,
    /// Networks outside whose machines reach the zone's addresses.
    #[serde(default)]
    pub open_to: Vec<String>,
    /// Apps of the zone that run.
    pub connected_apps: u32,
    /// State by service: `dnsmasq`, `iptables` (the historical name of the firewall row), `caddy`,
    /// `cockpit`, `relay`.
    pub services: BTreeMap<String, String>,
    /// What is wrong, in sentences; empty when all is well.
    pub problems: Vec<String>,
}

/// One zone and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ZoneStatus {
    /// Its name.
    pub name: ZoneName,
    /// The node that it lives on.
    pub node: NodeName,
    /// Its bridge.
    pub bridge: InterfaceName,
    /// Its subnet.
    pub subnet: String,
    /// Its DNS domain.
    pub domain: String,
    /// What is wanted: `up` or `down`.
    pub desired: String,
    /// What is: `up`, `down`, `changing`, `degraded`.
    pub state: String,
    /// Instances in it.
    pub instances: u32,
    /// What differs from what is wanted.
    pub drift: Vec<String>,
}

/// One DHCP lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseView {
    /// The leased address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: Ipv4Addr,
    /// Who holds it.
    pub mac: MacAddr,
    /// The instance it is reserved for, if it is one of ours.
    pub instance: Option<InstanceName>,
    /// Its name in the zone's DNS, if it is no instance of ours and has one: `LABEL.dyn.DOMAIN`.
    #[serde(default)]
    pub name: Option<HostName>,
    /// The name the client sent, if dnsmasq kept it: data from a guest.
    pub client_name: Option<String>,
    /// When it ends (RFC 3339, UTC); none means never.
    pub expires_at: Option<String>,
}

/// One name the zone's DNS answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DnsRecord {
    /// The full name.
    pub name: HostName,
    /// Record type, `A`.
    pub kind: String,
    /// Its address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: Ipv4Addr,
}

/// One route of the reverse proxy (a *vhost*), with its health just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RouteView {
    /// The host name it answers to.
    pub host: HostName,
    /// The instance it leads to.
    pub instance: InstanceName,
    /// That instance's id.
    pub instance_id: InstanceId,
    /// Port on the instance.
    pub port: u16,
    /// `healthy`, `unhealthy`, `closed` while its app does not run, or `missing` when the appliance
    /// does not have it.
    pub health: String,
    /// Connections open now.
    pub connections: u32,
    /// True for the route that every app has, which comes and goes with it.
    #[serde(default)]
    pub builtin: bool,
    /// Whether requests by http are sent to https.
    #[serde(default)]
    pub redirect_https: bool,
    /// `basic` or `token`; none lets everybody in.
    #[serde(default)]
    pub auth: Option<String>,
    /// The largest body of a request, in bytes.
    #[serde(default)]
    pub max_body_bytes: Option<u64>,
    /// How long the app may take until its answer begins, in milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// `GET /appliance/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApplianceStatus {
    /// Its name.
    pub name: String,
    /// `running`, `stopped`, `absent`.
    pub state: String,
    /// Its address towards the outside.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub wan_ip: Option<Ipv4Addr>,
    /// Its address in the zone.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub lan_ip: Ipv4Addr,
    /// Version of the agent on it.
    pub agent_version: Option<String>,
    /// The management page, once a password is set.
    pub management_url: Option<String>,
    /// State by service.
    pub services: BTreeMap<String, String>,
}

/// `GET /appliance/ca`: the zone's own certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Authority {
    /// The only domain that it can sign for.
    pub domain: String,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// An operator's own site of the reverse proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SiteView {
    /// Its file's name in the appliance's `/etc/proximity/sites-enabled`.
    pub name: String,
    /// `served`, `refused`, `previous` when the file was refused and what stood in it before is served,
    /// or `waiting` until it was looked at.
    pub state: String,
    /// Why the file was refused.
    pub refused: Option<String>,
}

/// `PUT /appliance/password`: opens the login of the management page.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppliancePassword {
    /// 12 to 256 characters without control characters.
    pub password: String,
}

impl std::fmt::Debug for AppliancePassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AppliancePassword(…)")
    }
}

/// `POST /zones/{zone}/down`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DownRequest {
    /// Delete the zone's instances too; without it their presence refuses the call.
    #[serde(default)]
    pub with_instances: bool,
}

/// `GET /system/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The controller's version.
    pub version: String,
}
