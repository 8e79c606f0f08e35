//! Bridges, kernel settings and the way out of this machine.
//!
//! ```text
//!   outside ── node ── proximity-wan (/30, NAT) ── appliance ── proximity-lan ── guests
//! ```
//!
//! What is made carries our mark: an interface alias that names the zone, an nftables table named
//! after it. What does not carry it is never touched. The one setting of the node itself,
//! `net.ipv4.ip_forward`, is remembered before it is changed and put back when the last zone goes.

pub(crate) mod guest_ports;
pub mod interfaces;
mod links;
mod published;
mod ruleset;
mod settings;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::entry::Protocol;
use api::{InterfaceName, ZoneName};
use async_trait::async_trait;
use engine::ports::{NetworkObserved, NodeNetwork, NodeNetworkSpec, PortError};
use engine::zone::Wan;
use ipnet::Ipv4Net;

use crate::program::Program;
use links::{Link, Links};
use settings::Settings;

/// The port on this machine.
#[derive(Debug, Clone)]
pub struct LocalNetwork {
    state: PathBuf,
    guests: PathBuf,
    /// Zones of which this process knows that no port of the node leads to them.
    unpublished: Arc<Mutex<BTreeSet<ZoneName>>>,
}

/// A bridge that a zone wants.
struct Wanted<'a> {
    name: &'a str,
    address: Option<Ipv4Net>,
}

impl LocalNetwork {
    /// What must be put back later is remembered in `data_dir`; its guests may use their ports.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            state: data_dir.join("node-network.json"),
            guests: data_dir.join("guests"),
            unpublished: Arc::default(),
        }
    }

    fn unpublished(&self) -> std::sync::MutexGuard<'_, BTreeSet<ZoneName>> {
        self.unpublished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> Settings {
        Settings::new(&self.state)
    }
}

/// The bridges that this machine gets for these zones.
pub fn bridges<'a>(zones: impl IntoIterator<Item = &'a NodeNetworkSpec>) -> Vec<InterfaceName> {
    let of_zone = |spec: &NodeNetworkSpec| match &spec.wan {
        Wan::Managed { bridge, .. } => vec![spec.bridge.clone(), bridge.clone()],
        Wan::Bridged { .. } => vec![spec.bridge.clone()],
    };
    zones.into_iter().flat_map(of_zone).collect()
}

fn wanted(spec: &NodeNetworkSpec) -> Vec<Wanted<'_>> {
    let mut bridges = vec![Wanted {
        name: spec.bridge.as_str(),
        address: None,
    }];
    if let Wan::Managed { bridge, subnet } = &spec.wan {
        let node = subnet
            .hosts()
            .next()
            .and_then(|a| Ipv4Net::new(a, subnet.prefix_len()).ok());
        bridges.push(Wanted {
            name: bridge.as_str(),
            address: node,
        });
    }
    bridges
}

/// Our mark on an interface.
fn mark(spec: &NodeNetworkSpec) -> String {
    format!("proximity zone {}", spec.zone)
}

fn conflicts(spec: &NodeNetworkSpec, links: &[Link]) -> Vec<String> {
    let ours = mark(spec);
    let mut found = Vec::new();
    for want in wanted(spec) {
        if let Some(link) = links.iter().find(|l| l.name == want.name)
            && !link.carries(&ours)
        {
            found.push(format!(
                "there is an interface {} already, and it does not carry the mark of zone {}",
                link.name, spec.zone
            ));
        }
    }
    let mut nets = vec![spec.subnet];
    match &spec.wan {
        Wan::Managed { subnet, .. } => nets.push(*subnet),
        Wan::Bridged { bridge } if !links.iter().any(|l| l.name == bridge.as_str()) => {
            found.push(format!(
                "there is no bridge {bridge} on this machine for the WAN"
            ));
        }
        Wan::Bridged { .. } => {}
    }
    for link in links.iter().filter(|l| !l.carries(&ours)) {
        for address in &link.addresses {
            if let Some(net) = nets
                .iter()
                .find(|n| engine::config::overlap(n, &address.trunc()))
            {
                found.push(format!(
                    "{net} overlaps {address} on interface {}",
                    link.name
                ));
            }
        }
    }
    found
}

#[async_trait]
impl NodeNetwork for LocalNetwork {
    async fn observe(&self, spec: &NodeNetworkSpec) -> Result<NetworkObserved, PortError> {
        let links = Links::connect()?.all().await?;
        let mut drift = Vec::new();
        for want in wanted(spec) {
            match links.iter().find(|l| l.name == want.name) {
                None => drift.push(format!("bridge {} is missing", want.name)),
                Some(link) => {
                    if !link.up {
                        drift.push(format!("bridge {} is down", want.name));
                    }
                    if let Some(address) = want.address
                        && !link.addresses.contains(&address)
                    {
                        drift.push(format!("bridge {} does not have {address}", want.name));
                    }
                    drift.extend(settings::bridge_drift(want.name, want.address.is_some()));
                }
            }
        }
        drift.extend(self.settings().drift(spec)?);
        if !ruleset_stands(spec).await? {
            drift.push(format!(
                "the rules of table {} are missing",
                ruleset::table(spec)
            ));
        }
        let interfaces: Vec<&str> = links.iter().map(|l| l.name.as_str()).collect();
        drift.extend(guest_ports::drift(&self.guests, &interfaces).await?);
        Ok(NetworkObserved {
            drift,
            conflicts: conflicts(spec, &links),
        })
    }

    async fn ensure(&self, spec: &NodeNetworkSpec) -> Result<(), PortError> {
        let handle = Links::connect()?;
        let links = handle.all().await?;
        if let Some(conflict) = conflicts(spec, &links).first() {
            return Err(PortError::new("prepare the node's network", conflict)
                .hint("choose another bridge or subnet in the configuration"));
        }
        // Rules before bridges: no packet of a guest meets a node without them.
        load(&ruleset::render(spec)?, "load the node's rules").await?;
        guest_ports::ensure(&self.guests).await?;
        for want in wanted(spec) {
            match links.iter().find(|l| l.name == want.name) {
                None => handle.add_bridge(want.name, &mark(spec)).await?,
                Some(link) if link.is_unfinished() => {
                    handle.show_mark(want.name, &mark(spec)).await?;
                }
                Some(_) => {}
            }
            settings::close_bridge(want.name, want.address.is_some())?;
            handle.bring_up(want.name, want.address).await?;
        }
        self.settings().forward(spec)
    }

    async fn publish(
        &self,
        spec: &NodeNetworkSpec,
        ports: &[(Protocol, u16)],
    ) -> Result<(), PortError> {
        if ports.is_empty() {
            // Looked at once in the life of a process: most zones publish nothing, and every deploy asks.
            if self.unpublished().contains(&spec.zone) {
                return Ok(());
            }
            published::ensure(spec, ports).await?;
            self.unpublished().insert(spec.zone.clone());
            return Ok(());
        }
        self.unpublished().remove(&spec.zone);
        published::ensure(spec, ports).await
    }

    async fn listens(
        &self,
        spec: &NodeNetworkSpec,
        protocol: Protocol,
        port: u16,
    ) -> Result<bool, PortError> {
        match spec.wan {
            Wan::Managed { .. } => published::listens(protocol, port).await,
            // The appliance has an address of its own there.
            Wan::Bridged { .. } => Ok(false),
        }
    }

    async fn remove(&self, spec: &NodeNetworkSpec) -> Result<(), PortError> {
        let mut errors = Vec::new();
        let ours = mark(spec);
        match Links::connect() {
            Ok(handle) => match handle.all().await {
                Ok(links) => {
                    for link in links.iter().filter(|l| l.carries(&ours)) {
                        errors.extend(handle.remove(link).await.err());
                    }
                }
                Err(e) => errors.push(e),
            },
            Err(e) => errors.push(e),
        }
        errors.extend(
            load(
                &format!(
                    "{}{}",
                    ruleset::render_removal(spec),
                    published::removed(&published::table(spec))
                ),
                "remove the node's rules",
            )
            .await
            .err(),
        );
        errors.extend(guest_ports::remove(&self.guests).await.err());
        errors.extend(self.settings().restore(spec).err());
        match errors.split_first() {
            None => Ok(()),
            Some((first, rest)) => {
                let causes: Vec<String> = std::iter::once(first)
                    .chain(rest)
                    .map(ToString::to_string)
                    .collect();
                Err(PortError::new(
                    "take the node's network down",
                    causes.join("; "),
                ))
            }
        }
    }
}

async fn load(ruleset: &str, what: &str) -> Result<(), PortError> {
    Program::new(what, "nft")
        .args(["-f", "-"])
        .stdin(ruleset)
        .run()
        .await
        .map(drop)
}

async fn ruleset_stands(spec: &NodeNetworkSpec) -> Result<bool, PortError> {
    let listed = Program::new("read the node's rules", "nft")
        .args(["list", "table", "inet", &ruleset::table(spec)])
        .output()
        .await?;
    // The version of the rules stands in a comment of the table, so that older rules are replaced.
    let text = String::from_utf8_lossy(&listed.stdout);
    Ok(listed.status.success() && text.contains(&ruleset::version(spec)))
}
