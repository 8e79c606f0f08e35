//! What people add to a zone's gateway: routes, published ports, names, reserved addresses.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{HostName, InstanceName, MacAddr};

/// `PUT /appliance/vhosts/{host}`: where a host name leads and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RouteSettings {
    /// The app.
    pub instance: InstanceName,
    /// TCP port in it; it speaks HTTP/1.1, or HTTP/2 without TLS for gRPC.
    pub port: u16,
    /// Send requests by http to https.
    #[serde(default)]
    pub redirect_https: bool,
    /// Who may come in; everybody without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RouteAuthRequest>,
    /// The largest body of a request, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u64>,
    /// How long the app may take until its answer begins, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// `POST /appliance/vhosts`: a new route. Refused when the host has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RouteRequest {
    /// `NAME.DOMAIN` of the zone, or a name of a domain of your own.
    pub host: HostName,
    /// Where it leads.
    pub settings: RouteSettings,
}

/// What opens a route. Only a digest of it is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RouteAuthRequest {
    /// HTTP basic authentication.
    Basic {
        /// 1 to 64 printable characters without a colon.
        user: String,
        /// 12 to 256 characters without control characters.
        password: String,
    },
    /// `Authorization: Bearer TOKEN` or `X-Route-Token: TOKEN`.
    Token {
        /// 20 to 256 letters, digits and `- . _ ~ + / =`; take a random one.
        token: String,
    },
}

impl fmt::Debug for RouteAuthRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Token { .. } => "Token(…)",
        })
    }
}

/// A transport protocol.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `POST /appliance/ports`: a port of the zone's outside that leads to a port of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PortRequest {
    /// The app.
    pub instance: InstanceName,
    /// The port in it.
    pub port: u16,
    /// Of both ports; TCP without it.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port outside; the same number without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<u16>,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PortView {
    /// Of both ports.
    pub protocol: Protocol,
    /// The port outside: on the appliance's WAN address, and with a managed WAN on every address of
    /// the node too.
    pub listen: u16,
    /// The app it leads to.
    pub instance: InstanceName,
    /// The port in it.
    pub port: u16,
}

/// `POST /appliance/dns/records`: a further name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecordRequest {
    /// `NAME.DOMAIN` of the zone.
    pub name: HostName,
    /// The address it stands for; or give `instance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<Ipv4Addr>,
    /// The app whose address it stands for, also after that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceName>,
}

/// `POST /appliance/dhcp/reservations`: an address and a name for a machine that is no instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReservationRequest {
    /// The machine's Ethernet address.
    pub mac: MacAddr,
    /// The address it gets.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// Its name in the zone's domain.
    pub name: InstanceName,
}

/// One reserved address of a machine that is no instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReservationView {
    /// The machine's Ethernet address.
    pub mac: MacAddr,
    /// The address it gets.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// Its full name.
    pub name: HostName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_a_route_is_not_shown() {
        let text = r#"{"instance":"web","port":80,"auth":{"kind":"basic","user":"a","password":"open sesame!"}}"#;
        let settings: RouteSettings = serde_json::from_str(text).unwrap();
        let shown = format!("{settings:?}");
        assert!(!shown.contains("sesame"), "{shown}");
    }
}
