//! The configuration file, parsed into checked values. No I/O: the caller reads the file.
//!
//! Unknown keys are errors that name the nearest known key. What belongs to later parts of the
//! product (`vms`, `remote_execution`) is accepted and left alone here.

mod acme;
mod node;
mod outside;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use api::{Domain, InstanceName, InterfaceName, NodeName, ZoneName};
use ipnet::Ipv4Net;
use serde::Deserialize;

use acme::AcmeSection;
use node::{NodeSection, check_nodes};

pub use node::NodeConfig;

use crate::zone::{ApplianceSpec, Wan, ZoneSpec};

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/proximity/config.yml";

/// Everything the controller is told by its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address the REST API listens on.
    pub listen: SocketAddr,
    /// Where state lives.
    pub data_dir: PathBuf,
    /// Where images live; shared by every controller of a machine.
    pub image_dir: PathBuf,
    /// Where further recipes are read from.
    pub catalog_dir: PathBuf,
    /// Nodes by name. In this version all of them are `lxc`.
    pub nodes: BTreeMap<NodeName, NodeConfig>,
    /// Zones by name.
    pub zones: BTreeMap<ZoneName, ZoneSpec>,
}

/// Why a configuration can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// What is wrong, with the key.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl ConfigError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    server: ServerSection,
    nodes: BTreeMap<String, NodeSection>,
    zones: BTreeMap<String, ZoneSection>,
    // Parsed by `proximity remote`; here they only must not count as unknown.
    vms: serde_json::Value,
    remote_execution: serde_json::Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServerSection {
    listen: SocketAddr,
    data_dir: PathBuf,
    image_dir: PathBuf,
    catalog_dir: PathBuf,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8765)),
            data_dir: "/var/lib/proximity".into(),
            image_dir: "/var/cache/proximity/images".into(),
            catalog_dir: "/etc/proximity/catalog".into(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ZoneSection {
    node: Option<String>,
    bridge: Option<String>,
    subnet: Option<String>,
    domain: Option<String>,
    upstream_dns: Option<Vec<IpAddr>>,
    dhcp_lease: Option<String>,
    wan: WanSection,
    acme: Option<AcmeSection>,
    wan_dns: bool,
    open_to: Vec<String>,
    appliance: ApplianceSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WanSection {
    managed: Option<bool>,
    bridge: Option<String>,
    subnet: Option<String>,
    address: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApplianceSection {
    name: Option<String>,
    vmid: serde_json::Value,
    os: String,
    cores: u32,
    memory_mb: u32,
    disk_gb: u32,
    management_ui: String,
}

impl Default for ApplianceSection {
    fn default() -> Self {
        Self {
            name: None,
            vmid: "auto".into(),
            os: "debian".into(),
            cores: 2,
            memory_mb: 1024,
            disk_gb: 8,
            management_ui: "cockpit".into(),
        }
    }
}

impl Config {
    /// The configuration of a machine that has none: one node `local`, one zone `default`.
    pub fn built_in() -> Result<Self, ConfigError> {
        Self::check(File::default())
    }

    /// Parses the text of a configuration file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Self::built_in();
        }
        let file: File = serde_saphyr::from_str(text).map_err(|e| explain(&e.to_string()))?;
        Self::check(file)
    }

    fn check(mut file: File) -> Result<Self, ConfigError> {
        if file.nodes.is_empty() {
            file.nodes.insert("local".into(), NodeSection::lxc());
        }
        if file.zones.is_empty() {
            file.zones.insert("default".into(), ZoneSection::default());
        }
        let nodes = check_nodes(&file.nodes)?;
        let mut zones = BTreeMap::new();
        for (index, (name, section)) in file.zones.iter().enumerate() {
            let name: ZoneName = parse(&format!("zones.{name}"), name)?;
            let spec = check_zone(&name, section, &nodes, index)?;
            zones.insert(name, spec);
        }
        check_overlaps(&zones)?;
        if !file.server.listen.ip().is_loopback() {
            return Err(ConfigError::new(
                format!(
                    "server.listen: {} is not a loopback address, and this version serves no TLS",
                    file.server.listen
                ),
                "listen on 127.0.0.1 and reach it through an SSH tunnel or a TLS proxy of yours",
            ));
        }
        for (key, dir) in [
            ("data_dir", &file.server.data_dir),
            ("image_dir", &file.server.image_dir),
            ("catalog_dir", &file.server.catalog_dir),
        ] {
            check_dir(key, dir)?;
        }
        Ok(Self {
            listen: file.server.listen,
            data_dir: file.server.data_dir,
            image_dir: file.server.image_dir,
            catalog_dir: file.server.catalog_dir,
            nodes,
            zones,
        })
    }
}

/// These paths end up in LXC configuration lines, where a `:` or a space would split them.
pub fn check_dir(key: &str, dir: &std::path::Path) -> Result<(), ConfigError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    match dir.to_str() {
        Some(text) if dir.is_absolute() && text.chars().all(legal) => Ok(()),
        _ => Err(ConfigError::new(
            format!("server.{key}: {dir:?} can't be used"),
            "use an absolute path of letters, digits and / . _ -",
        )),
    }
}

fn check_zone(
    name: &ZoneName,
    section: &ZoneSection,
    nodes: &BTreeMap<NodeName, NodeConfig>,
    index: usize,
) -> Result<ZoneSpec, ConfigError> {
    let at = |key: &str| format!("zones.{name}.{key}");
    let node = match &section.node {
        Some(n) => parse::<NodeName>(&at("node"), n)?,
        None => nodes.keys().next().cloned().ok_or_else(|| {
            ConfigError::new("nodes: none is configured", "add `local: { backend: lxc }`")
        })?,
    };
    if !nodes.contains_key(&node) {
        let known: Vec<_> = nodes.keys().map(NodeName::as_str).collect();
        return Err(ConfigError::new(
            format!(
                "{}: there is no node {node:?}",
                at("node"),
                node = node.as_str()
            ),
            format!("known nodes: {}", known.join(", ")),
        ));
    }
    let subnet_text = section.subnet.as_deref().unwrap_or("10.20.0.0/24");
    let subnet = check_subnet(&at("subnet"), subnet_text)?;
    let lease_text = section.dhcp_lease.as_deref().unwrap_or("12h");
    let appliance = &section.appliance;
    let wan = check_wan(&at("wan"), &section.wan, index)?;
    Ok(ZoneSpec {
        name: name.clone(),
        node,
        bridge: parse(
            &at("bridge"),
            section.bridge.as_deref().unwrap_or("proximity-lan"),
        )?,
        subnet,
        domain: parse::<Domain>(
            &at("domain"),
            section.domain.as_deref().unwrap_or("prox.local"),
        )?,
        upstream_dns: section
            .upstream_dns
            .clone()
            .unwrap_or_else(|| vec![IpAddr::from([8, 8, 8, 8]), IpAddr::from([1, 1, 1, 1])]),
        lease_s: parse_duration_s(lease_text).ok_or_else(|| {
            ConfigError::new(
                format!("{}: {lease_text:?} is not a duration", at("dhcp_lease")),
                "write it like 30m or 12h (at least 2m)",
            )
        })?,
        outside: outside::check(&at("open_to"), section.wan_dns, &section.open_to, &wan)?,
        wan,
        acme: section
            .acme
            .as_ref()
            .map(|a| acme::check(&at("acme"), a))
            .transpose()?,
        appliance: check_appliance(&at("appliance"), appliance, name)?,
    })
}

fn check_subnet(key: &str, text: &str) -> Result<Ipv4Net, ConfigError> {
    let hint = "write a private IPv4 network of /24 like 10.20.0.0/24";
    let net: Ipv4Net = text
        .parse()
        .map_err(|_| ConfigError::new(format!("{key}: {text:?} is not an IPv4 network"), hint))?;
    if net.network() != net.addr() {
        return Err(ConfigError::new(
            format!("{key}: {net} has host bits set"),
            format!("write {}", net.trunc()),
        ));
    }
    if !net.network().is_private() || !net.broadcast().is_private() {
        return Err(ConfigError::new(
            format!("{key}: {net} is not a private network"),
            hint,
        ));
    }
    if net.prefix_len() != 24 {
        return Err(ConfigError::new(
            format!("{key}: {net} is a /{}", net.prefix_len()),
            "this version has zones of /24 (gateway .1, static .2–.99, DHCP .100–.250)",
        ));
    }
    Ok(net)
}

fn check_wan(key: &str, wan: &WanSection, index: usize) -> Result<Wan, ConfigError> {
    let managed = wan
        .managed
        .unwrap_or(wan.bridge.is_none() || wan.subnet.is_some());
    if managed {
        if let Some(address) = &wan.address {
            return Err(ConfigError::new(
                format!("{key}.address: {address:?} makes no sense on a managed WAN"),
                "leave it out, or name your own bridge and set managed: false",
            ));
        }
        // A /30 of its own for each zone: the node's end and the appliance's end.
        let fourth = u8::try_from(index * 4).unwrap_or(252);
        let default = format!("10.19.255.{fourth}/30");
        let text = wan.subnet.clone().unwrap_or(default);
        let subnet: Ipv4Net = text.parse().map_err(|_| {
            ConfigError::new(
                format!("{key}.subnet: {text:?} is not an IPv4 network"),
                "write a private /30 like 10.19.255.0/30",
            )
        })?;
        if subnet.prefix_len() != 30
            || subnet.network() != subnet.addr()
            || !subnet.network().is_private()
        {
            return Err(ConfigError::new(
                format!("{key}.subnet: {subnet} is not a private /30 in network form"),
                "write one like 10.19.255.0/30: it links the node and the appliance, nothing else",
            ));
        }
        let default_bridge = if index == 0 {
            "proximity-wan".to_owned()
        } else {
            format!("proximity-wan{index}")
        };
        let bridge = wan.bridge.clone().unwrap_or(default_bridge);
        return Ok(Wan::Managed {
            bridge: parse(&format!("{key}.bridge"), &bridge)?,
            subnet,
        });
    }
    let Some(bridge) = &wan.bridge else {
        return Err(ConfigError::new(
            format!("{key}: managed is false and no bridge is named"),
            "name the bridge: wan: { bridge: vmbr0, address: dhcp }",
        ));
    };
    if let Some(subnet) = &wan.subnet {
        return Err(ConfigError::new(
            format!("{key}.subnet: {subnet:?} makes no sense on a bridge of yours"),
            "leave it out, or let the WAN be managed: wan: { managed: true }",
        ));
    }
    match wan.address.as_deref() {
        None | Some("dhcp") => Ok(Wan::Bridged {
            bridge: parse(&format!("{key}.bridge"), bridge)?,
        }),
        Some(other) => Err(ConfigError::new(
            format!("{key}.address: {other:?} is not supported"),
            "write `dhcp`; a fixed address is given by a reservation on your DHCP server",
        )),
    }
}

fn check_appliance(
    key: &str,
    section: &ApplianceSection,
    zone: &ZoneName,
) -> Result<ApplianceSpec, ConfigError> {
    if !matches!(section.management_ui.as_str(), "cockpit") {
        return Err(ConfigError::new(
            format!(
                "{key}.management_ui: {:?} is not known",
                section.management_ui
            ),
            "write `cockpit`",
        ));
    }
    for (name, value, low, high) in [
        ("cores", section.cores, 1, 64),
        ("memory_mb", section.memory_mb, 256, 65_536),
        ("disk_gb", section.disk_gb, 1, 1024),
    ] {
        if value < low || value > high {
            return Err(ConfigError::new(
                format!("{key}.{name}: {value} is out of range"),
                format!("{low} to {high}"),
            ));
        }
    }
    // A number means something on Proxmox only; it is accepted so that one file serves both.
    if !(section.vmid == "auto" || section.vmid.is_u64()) {
        return Err(ConfigError::new(
            format!("{key}.vmid: {} is not a VMID", section.vmid),
            "write `auto` or a number",
        ));
    }
    let name = match &section.name {
        Some(name) => name.clone(),
        None if zone.as_str() == "default" => "prox-appliance".into(),
        None => format!("prox-appliance-{zone}"),
    };
    let os = section.os.parse().map_err(|_| {
        ConfigError::new(
            format!("{key}.os: {:?} is not known", section.os),
            "write `debian`, or `alpine` on a machine that has `apk`",
        )
    })?;
    Ok(ApplianceSpec {
        name: parse::<InstanceName>(&format!("{key}.name"), &name)?,
        os,
        cores: section.cores,
        memory_mb: section.memory_mb,
        disk_gb: section.disk_gb,
    })
}

fn check_overlaps(zones: &BTreeMap<ZoneName, ZoneSpec>) -> Result<(), ConfigError> {
    let mut nets: Vec<(String, Ipv4Net)> = Vec::new();
    let mut bridges: Vec<(String, &InterfaceName)> = Vec::new();
    for (name, zone) in zones {
        let mut mine = vec![(format!("zones.{name}.subnet"), zone.subnet)];
        bridges.push((format!("zones.{name}.bridge"), &zone.bridge));
        if let Wan::Managed { subnet, bridge } = &zone.wan {
            mine.push((format!("zones.{name}.wan.subnet"), *subnet));
            bridges.push((format!("zones.{name}.wan.bridge"), bridge));
        }
        for (key, net) in mine {
            if let Some((other, taken)) = nets.iter().find(|(_, n)| overlap(n, &net)) {
                return Err(ConfigError::new(
                    format!("{key}: {net} overlaps {other} ({taken})"),
                    "give every zone a network of its own",
                ));
            }
            nets.push((key, net));
        }
    }
    for (i, (name, zone)) in zones.iter().enumerate() {
        let appliance = &zone.appliance.name;
        if let Some((other, _)) = zones
            .iter()
            .take(i)
            .find(|(_, z)| z.appliance.name == *appliance)
        {
            return Err(ConfigError::new(
                format!(
                    "zones.{name}.appliance.name: {appliance} is the appliance of zone {other} too"
                ),
                "give every zone's appliance a name of its own",
            ));
        }
    }
    for (i, (key, bridge)) in bridges.iter().enumerate() {
        if let Some((other, _)) = bridges.iter().take(i).find(|(_, b)| b == bridge) {
            return Err(ConfigError::new(
                format!("{key}: {bridge} is used by {other} too"),
                "give every zone bridges of its own",
            ));
        }
    }
    Ok(())
}

/// Whether two networks share an address.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}

fn parse<T: std::str::FromStr<Err = api::InvalidName>>(
    key: &str,
    text: &str,
) -> Result<T, ConfigError> {
    text.parse().map_err(|e: api::InvalidName| ConfigError {
        message: format!("{key}: {e}"),
        hint: None,
    })
}

fn parse_duration_s(text: &str) -> Option<u32> {
    let (number, factor) = match text.strip_suffix('h') {
        Some(n) => (n, 3600),
        None => (text.strip_suffix('m')?, 60),
    };
    let seconds = number.parse::<u32>().ok()?.checked_mul(factor)?;
    (120..=7 * 24 * 3600).contains(&seconds).then_some(seconds)
}

/// Turns a parser's message into one that names the nearest known key.
fn explain(message: &str) -> ConfigError {
    // "unknown field `x`, expected one of a, b" (or "expected `a`").
    if let Some((_, rest)) = message.split_once("unknown field `")
        && let Some((unknown, rest)) = rest.split_once('`')
    {
        let known = rest.lines().next().unwrap_or("").split([',', '`', ' ']);
        let nearest = known
            .filter(|w| !matches!(*w, "" | "expected" | "one" | "of" | "or"))
            .min_by_key(|k| strsim::damerau_levenshtein(unknown, k));
        return ConfigError {
            message: first_line(message),
            hint: nearest.map(|n| format!("did you mean `{n}`?")),
        };
    }
    ConfigError {
        message: first_line(message),
        hint: Some(
            "`proximity config check` shows the place; keys and examples: docs/configuration.md"
                .into(),
        ),
    }
}

fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or(message);
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// The subnet's parts as the contract fixes them for a /24.
pub fn host_address(subnet: &Ipv4Net, host: u8) -> Ipv4Addr {
    let [a, b, c, _] = subnet.network().octets();
    Ipv4Addr::new(a, b, c, host)
}

#[cfg(test)]
mod tests;
