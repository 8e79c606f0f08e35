//! Zones: one isolated network each, with a bridge and an appliance.
//!
//! This module owns the zone's specification and what follows from it by arithmetic: addresses,
//! specs for the ports. What to do about differences is [`plan`]'s business; doing it is the
//! controller's.

pub mod plan;

use std::net::{IpAddr, Ipv4Addr};

use api::app::Limits;
use api::{Domain, InstanceId, InstanceName, InterfaceName, MacAddr, NodeName, ZoneName};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use wire::family::{FamilyFile, FamilyName};
use wire::gateway::ZoneNetwork;
use wire::gateway::edge::{Acme, Outside};

use crate::catalog::GuestFile;
use crate::config::host_address;
use crate::image::{IdRange, ImageFile, ImageSpec, Init};
use crate::ports::{ChannelTarget, GuestSpec, Nic, NodeNetworkSpec};

/// What a zone should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSpec {
    /// Its name.
    pub name: ZoneName,
    /// The node that it lives on.
    pub node: NodeName,
    /// Its bridge.
    pub bridge: InterfaceName,
    /// Its subnet, a /24.
    pub subnet: Ipv4Net,
    /// Its DNS domain.
    pub domain: Domain,
    /// Where other names are asked.
    pub upstream_dns: Vec<IpAddr>,
    /// DHCP lease time in seconds.
    pub lease_s: u32,
    /// The way out.
    pub wan: Wan,
    /// Who signs certificates for names of other domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
    /// What of it is open to the networks outside.
    #[serde(default, skip_serializing_if = "Outside::is_closed")]
    pub outside: Outside,
    /// Its gateway guest.
    pub appliance: ApplianceSpec,
}

/// A zone's way to the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wan {
    /// A bridge of ours with NAT on the node; both ends have fixed addresses.
    Managed {
        /// Its name.
        bridge: InterfaceName,
        /// A /30: first address the node's, second the appliance's.
        subnet: Ipv4Net,
    },
    /// A bridge that is there already; the appliance asks for an address by DHCP.
    Bridged {
        /// Its name.
        bridge: InterfaceName,
    },
}

/// What an appliance should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplianceSpec {
    /// Its name.
    pub name: InstanceName,
    /// What it is made of. Not written when it is Debian, so that zones made before there was a choice are what
    /// they were.
    #[serde(default, skip_serializing_if = "FamilyName::is_debian")]
    pub os: FamilyName,
    /// CPU cores.
    pub cores: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Disk in GiB.
    pub disk_gb: u32,
}

/// The interfaces of an appliance, as its image configures them.
const WAN_INTERFACE: &str = "eth0";
const LAN_INTERFACE: &str = "eth1";

impl ZoneSpec {
    /// The appliance's address in the zone: `.1`.
    pub fn gateway(&self) -> Ipv4Addr {
        host_address(&self.subnet, 1)
    }

    /// The addresses that apps get: `.100` to `.250`.
    pub fn dhcp_range(&self) -> (Ipv4Addr, Ipv4Addr) {
        (
            host_address(&self.subnet, 100),
            host_address(&self.subnet, 250),
        )
    }

    /// The addresses that sandboxes get: `.2` to `.99`.
    pub fn static_range(&self) -> (Ipv4Addr, Ipv4Addr) {
        (
            host_address(&self.subnet, 2),
            host_address(&self.subnet, 99),
        )
    }

    /// An address of the zone with the prefix of its subnet.
    pub fn with_prefix(&self, address: Ipv4Addr) -> Option<Ipv4Net> {
        Ipv4Net::new(address, self.subnet.prefix_len()).ok()
    }

    /// The first two bytes of the subnet. Together with the last two of an address they make the
    /// MAC, so no two addresses of a node share one: zones of a node do not overlap.
    pub fn mac_tag(&self) -> u16 {
        let [a, b, _, _] = self.subnet.network().octets();
        u16::from_be_bytes([a, b])
    }

    /// The MAC of an address in this zone.
    pub fn mac_of(&self, address: Ipv4Addr) -> MacAddr {
        MacAddr::derived(self.mac_tag(), address)
    }

    /// What the node's network must provide.
    pub fn node_network(&self) -> NodeNetworkSpec {
        NodeNetworkSpec {
            zone: self.name.clone(),
            bridge: self.bridge.clone(),
            subnet: self.subnet,
            wan: self.wan.clone(),
        }
    }

    /// The network as the appliance must serve it.
    pub fn served_network(&self) -> Result<ZoneNetwork, api::InvalidName> {
        let (dhcp_first, dhcp_last) = self.dhcp_range();
        Ok(ZoneNetwork {
            domain: self.domain.clone(),
            subnet: self.subnet,
            gateway: self.gateway(),
            dhcp_first,
            dhcp_last,
            lease_s: self.lease_s,
            upstream_dns: self.upstream_dns.clone(),
            wan: WAN_INTERFACE.parse()?,
            lan: LAN_INTERFACE.parse()?,
        })
    }

    /// The appliance as a guest.
    pub fn appliance_guest(&self, id: &InstanceId) -> GuestSpec {
        let lan = Nic {
            bridge: self.bridge.clone(),
            mac: self.mac_of(self.gateway()),
            address: self.with_prefix(self.gateway()),
            gateway: None,
            lease: None,
        };
        let [_, _, c, d] = self.gateway().octets();
        let [tag_a, tag_b] = self.mac_tag().to_be_bytes();
        // 52:79 keeps the outside address apart from every address derived for the inside.
        let wan_mac = MacAddr::from_bytes([0x52, 0x79, tag_a, tag_b, c, d]);
        let wan = match &self.wan {
            Wan::Managed { bridge, subnet } => {
                let mut hosts = subnet.hosts();
                let node = hosts.next();
                let address = hosts
                    .next()
                    .and_then(|a| Ipv4Net::new(a, subnet.prefix_len()).ok());
                Nic {
                    bridge: bridge.clone(),
                    mac: wan_mac,
                    address,
                    gateway: node,
                    lease: None,
                }
            }
            Wan::Bridged { bridge } => Nic {
                bridge: bridge.clone(),
                mac: wan_mac,
                address: None,
                gateway: None,
                lease: None,
            },
        };
        GuestSpec {
            id: id.clone(),
            name: self.appliance.name.clone(),
            zone: self.name.clone(),
            kind: "appliance".into(),
            image: appliance_image(self.appliance.os).digest(),
            limits: Limits {
                cpu_millis: self.appliance.cores.saturating_mul(1000),
                memory_mb: self.appliance.memory_mb,
                pids: 2048,
                disk_gb: Some(self.appliance.disk_gb),
            },
            nics: vec![wan, lan],
            files: self.appliance_files(),
        }
    }

    fn appliance_files(&self) -> Vec<GuestFile> {
        let mut files = network_files(self, &self.appliance.name);
        // On a managed WAN the node sets the address before PID 1 runs; nobody shall take it away again.
        let by_dhcp = matches!(self.wan, Wan::Bridged { .. });
        if let Some((path, content)) = self.appliance.os.family().outside(by_dhcp) {
            files.push(GuestFile {
                path: path.into(),
                mode: 0o644,
                content: content.into(),
            });
        }
        files
    }
}

/// What a guest must know of its network beside its address: its own name and whom to ask for others.
pub(crate) fn network_files(zone: &ZoneSpec, name: &InstanceName) -> Vec<GuestFile> {
    let file = |path: &str, content: String| GuestFile {
        path: path.into(),
        mode: 0o644,
        content,
    };
    let (domain, gateway) = (&zone.domain, zone.gateway());
    vec![
        file("/etc/hostname", format!("{name}\n")),
        file(
            "/etc/hosts",
            format!("127.0.0.1 localhost\n127.0.1.1 {name}.{domain} {name}\n"),
        ),
        file(
            "/etc/resolv.conf",
            format!("nameserver {gateway}\nsearch {domain}\n"),
        ),
    ]
}

/// The appliance's image: the gateway's services, and files of ours that start them on what the
/// relay writes.
pub fn appliance_image(os: FamilyName) -> ImageSpec {
    let family = os.family();
    let file = |file: &FamilyFile| ImageFile {
        path: file.path.into(),
        content: file.content.into(),
        mode: file.mode.into(),
    };
    let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    ImageSpec {
        family: os,
        suite: match os {
            FamilyName::Debian => "bookworm".into(),
            // Its packages come from the repositories of the machine that builds.
            FamilyName::Alpine => String::new(),
        },
        packages: words(family.packages()),
        files: family.files().iter().map(file).collect(),
        init: match os {
            FamilyName::Debian => Init::Systemd,
            FamilyName::Alpine => Init::Openrc,
        },
        enable: words(family.starts()),
        mask: vec![],
        ids: IdRange::Apps,
    }
    .on_base()
}

/// The images that appliances of `zones` need, by the names that `image build` knows them by. Debian's is always
/// among them: a zone that nobody configured has it.
pub fn appliance_images<'a>(zones: impl Iterator<Item = &'a ZoneSpec>) -> Vec<(String, ImageSpec)> {
    let mut systems = vec![FamilyName::Debian];
    for zone in zones {
        if !systems.contains(&zone.appliance.os) {
            systems.push(zone.appliance.os);
        }
    }
    let named = |os: FamilyName| {
        let name = match os {
            FamilyName::Debian => "appliance".into(),
            other => format!("appliance-{other}"),
        };
        (name, appliance_image(os))
    };
    systems.into_iter().map(named).collect()
}

/// What is wanted of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZoneDesired {
    /// Bridge and appliance there and well.
    Up,
    /// Nothing of it there.
    Down,
}

/// A zone as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneRecord {
    /// What it was made of; what is taken down is this, not what the configuration says by then.
    pub spec: ZoneSpec,
    /// The appliance's id, given at the first `up`.
    pub appliance: InstanceId,
    /// What is wanted.
    pub desired: ZoneDesired,
    /// Whether the last reconciliation reached what is wanted.
    pub settled: bool,
}

impl ZoneRecord {
    /// Its appliance as a channel must know it.
    pub fn channel_target(&self) -> ChannelTarget {
        ChannelTarget {
            id: self.appliance.clone(),
            zone: self.spec.name.clone(),
            address: self.spec.gateway(),
            appliance: self.appliance.clone(),
        }
    }
}
