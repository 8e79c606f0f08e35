//! Who may say what on the bridge port of a guest: one nftables table for all guests of the node.
//!
//! Each guest has one Ethernet address and one IPv4 address, and its port has a name that is known before it
//! starts. What comes in by such a port passes only as ARP, IPv4 or DHCP of that very guest; everything else,
//! IPv6 and tagged frames too, ends there. A guest that is not listed speaks with nobody, so a lost list
//! closes and never opens. What guests are listed follows from their marks on the disk: whoever writes the
//! table anew loses none.
//!
//! The table is one for all zones, because the kernel does not tell every bridge table which bridge a port
//! belongs to, and a zone's own table would drop the guests of the others.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex as StdMutex, MutexGuard as StdMutexGuard, PoisonError};

use api::MacAddr;
use engine::ports::{GuestSpec, PortError};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use crate::lxc::{self, host_interface};
use crate::program::Program;

/// The table, in family `bridge`.
const TABLE: &str = "proximity_guest_ports";

/// Changes when the rules change, so that older ones are replaced.
const VERSION: &str = "proximity guest ports 1";

/// The ports of all guests, appliances included.
const PORTS: &str = "px*";

/// Held from reading the marks until the table is written, and while one guest is added: else a guest
/// that is added in between would be lost.
static TABLE_LOCK: Mutex<()> = Mutex::const_new(());

/// A bridge port and who may use it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    /// The only addresses of a guest.
    Guest {
        interface: String,
        mac: MacAddr,
        address: Ipv4Addr,
    },
    /// An appliance speaks for the internet: its firewall decides.
    Appliance { interface: String },
}

impl Port {
    fn interface(&self) -> &str {
        match self {
            Self::Guest { interface, .. } | Self::Appliance { interface } => interface,
        }
    }

    /// The sets it stands in, each with its element.
    fn elements(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Appliance { interface } => vec![("appliances", format!("\"{interface}\""))],
            Self::Guest {
                interface,
                mac,
                address,
            } => {
                let bytes = mac.bytes();
                let number = bytes.map(|b| format!("{b:02x}")).concat();
                vec![
                    ("guests", format!("\"{interface}\" . {mac} . {address}")),
                    ("leases", format!("\"{interface}\" . {mac} . 0x{number}")),
                ]
            }
        }
    }
}

/// The ports of a guest. One whose address is not known gets none.
fn ports(spec: &GuestSpec) -> Vec<Port> {
    let numbered = spec.nics.iter().enumerate();
    let port = |(index, nic): (usize, &engine::ports::Nic)| {
        let interface = host_interface(&spec.id, index);
        if spec.kind == "appliance" {
            return Some(Port::Appliance { interface });
        }
        Some(Port::Guest {
            interface,
            mac: nic.mac,
            address: nic.own_address()?,
        })
    };
    numbered.filter_map(port).collect()
}

/// The ports of all complete guests.
fn all_ports(guests: &Path) -> Result<BTreeSet<Port>, PortError> {
    let specs = lxc::complete_guests(guests)?;
    Ok(specs.iter().flat_map(ports).collect())
}

fn elements_of<'a>(set: &str, all: impl IntoIterator<Item = &'a Port>) -> Vec<String> {
    let each = all.into_iter().flat_map(Port::elements);
    each.filter(|(of, _)| *of == set)
        .map(|(_, element)| element)
        .collect()
}

/// The whole table. Interface names, Ethernet and IPv4 addresses can't hold anything that ends a line.
fn render(all: &BTreeSet<Port>) -> String {
    let elements = |set: &str| match elements_of(set, all) {
        none if none.is_empty() => String::new(),
        some => format!("\n\t\telements = {{ {} }}", some.join(", ")),
    };
    let (appliances, guests, leases) = (
        elements("appliances"),
        elements("guests"),
        elements("leases"),
    );
    format!(
        r#"{removed}table bridge {TABLE} {{
	set appliances {{
		type ifname{appliances}
	}}
	set guests {{
		type ifname . ether_addr . ipv4_addr{guests}
	}}
	set leases {{
		typeof iifname . ether saddr . @th,288,48{leases}
	}}
	chain prerouting {{
		type filter hook prerouting priority dstnat; policy accept;
		iifname @appliances accept comment "{VERSION}"
		iifname "{PORTS}" jump guest
	}}
	chain guest {{
		ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @guests iifname . arp saddr ether . arp saddr ip @guests accept
		ether type ip udp dport 67 goto dhcp
		ether type ip udp sport 67 counter drop
		ether type ip ip hdrlength 5 ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 iifname . ether saddr . ip saddr @guests accept
		counter drop
	}}
	chain dhcp {{
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 iifname . ether saddr . @th,288,48 @leases accept
		udp sport 68 iifname . ether saddr . ip saddr @guests iifname . ether saddr . @th,288,48 @leases accept
		counter drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname @appliances accept
		iifname "{PORTS}" counter drop
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname @appliances accept
		oifname @appliances accept
		iifname "{PORTS}" counter drop
		oifname "{PORTS}" counter drop
	}}
}}
"#,
        removed = removed()
    )
}

fn removed() -> String {
    format!("table bridge {TABLE} {{}}\ndelete table bridge {TABLE}\n")
}

/// Writes the table anew for all guests there are.
pub(super) async fn ensure(guests: &Path) -> Result<(), PortError> {
    let locked = TABLE_LOCK.lock().await;
    load(guests, &locked).await
}

async fn load(guests: &Path, _locked: &MutexGuard<'_, ()>) -> Result<(), PortError> {
    let table = render(&all_ports(guests)?);
    nft("load the rules of guest ports", table).await
}

/// Takes the table away, unless guests of another zone are left.
pub(super) async fn remove(guests: &Path) -> Result<(), PortError> {
    let locked = TABLE_LOCK.lock().await;
    match all_ports(guests)?.is_empty() {
        true => nft("remove the rules of guest ports", removed()).await,
        false => load(guests, &locked).await,
    }
}

/// Guests that are about to start and are not in the table yet. Whoever has the table next adds them all, so
/// that many starts at once cost a few programs.
static WAITING: StdMutex<Waiting> = StdMutex::new(Waiting {
    number: 0,
    added: 0,
    statements: Vec::new(),
});

#[derive(Debug)]
struct Waiting {
    /// The last number given out.
    number: u64,
    /// The highest number of one that is in the table, with all before it.
    added: u64,
    /// By number.
    statements: Vec<(u64, String)>,
}

impl Waiting {
    fn push(&mut self, statements: String) -> u64 {
        self.number += 1;
        self.statements.push((self.number, statements));
        self.number
    }
}

fn waiting() -> StdMutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets a guest speak that is about to start.
pub(crate) async fn admit(guests: &Path, spec: &GuestSpec) -> Result<(), PortError> {
    let number = waiting().push(change("add", &ports(spec)));
    let locked = TABLE_LOCK.lock().await;
    let (add, last) = {
        let waiting = waiting();
        if waiting.added >= number {
            return Ok(());
        }
        let all = waiting.statements.iter();
        let all: String = all.map(|(_, add)| add.as_str()).collect();
        (all, waiting.number)
    };
    let added = match nft("let guests speak on their ports", add).await {
        Ok(()) => Ok(()),
        // Somebody flushed the rules: they come back with these guests in them.
        Err(_) => load(guests, &locked).await,
    };
    let mut waiting = waiting();
    if added.is_ok() {
        waiting.added = last;
        waiting.statements.retain(|(whose, _)| *whose > last);
    } else {
        // The others try for themselves.
        waiting.statements.retain(|(whose, _)| *whose != number);
    }
    added
}

/// Takes the right to speak from a guest that is gone.
pub(crate) async fn dismiss(spec: &GuestSpec) {
    let _locked = TABLE_LOCK.lock().await;
    let remove = change("delete", &ports(spec));
    if let Err(error) = nft("close a guest's port", remove).await {
        // It was never listed, or the table is gone: either way it is closed.
        tracing::debug!(guest = %spec.id, %error, "its port was not open");
    }
}

fn change(verb: &str, ports: &[Port]) -> String {
    let each = ports.iter().flat_map(Port::elements);
    each.map(|(set, element)| format!("{verb} element bridge {TABLE} {set} {{ {element} }}\n"))
        .collect()
}

/// What is missing of the table, given the names of all interfaces of the node.
pub(super) async fn drift(guests: &Path, interfaces: &[&str]) -> Result<Option<String>, PortError> {
    let _locked = TABLE_LOCK.lock().await;
    let listed = Program::new("read the rules of guest ports", "nft")
        .args(["--json", "list", "table", "bridge", TABLE])
        .output()
        .await?;
    let text = String::from_utf8_lossy(&listed.stdout);
    if !listed.status.success() || !text.contains(VERSION) {
        return Ok(Some("the rules of guest ports are missing".into()));
    }
    let listed = listed_interfaces(&text);
    let here = all_ports(guests)?;
    let closed = here
        .iter()
        .map(Port::interface)
        .find(|name| interfaces.contains(name) && !listed.contains(*name));
    if let Some(name) = closed {
        return Ok(Some(format!(
            "guest port {name} is closed: its rule is missing"
        )));
    }
    let known: BTreeSet<&str> = here.iter().map(Port::interface).collect();
    let stale = listed.iter().find(|name| !known.contains(name.as_str()));
    Ok(stale.map(|name| format!("port {name} has rules, and its guest is gone")))
}

/// The ports that the table, as `nft --json` lists it, lets speak.
fn listed_interfaces(table: &str) -> BTreeSet<String> {
    let document: Value = serde_json::from_str(table).unwrap_or_default();
    let entries = document.get("nftables").and_then(Value::as_array);
    let sets = entries.into_iter().flatten().filter_map(|e| e.get("set"));
    let spoken = sets.filter(|set| {
        let name = set.get("name").and_then(Value::as_str);
        matches!(name, Some("guests" | "appliances"))
    });
    let elements = spoken.filter_map(|set| set.get("elem")?.as_array());
    let interface = |element: &Value| {
        let parts = element.get("concat").and_then(Value::as_array);
        let name = parts.and_then(|p| p.first()).unwrap_or(element);
        name.as_str().map(str::to_owned)
    };
    elements.flatten().filter_map(interface).collect()
}

async fn nft(what: &str, rules: String) -> Result<(), PortError> {
    if rules.is_empty() {
        return Ok(());
    }
    Program::new(what, "nft")
        .args(["-f", "-"])
        .stdin(rules)
        .run()
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> BTreeSet<Port> {
        let config = engine::Config::built_in().unwrap();
        let zone = config.zones.values().next().unwrap();
        let appliance = zone.appliance_guest(&api::InstanceId::from_bytes([0xaa; 8]));
        let mut guest = zone.appliance_guest(&api::InstanceId::from_bytes([0xbb; 8]));
        guest.kind = "app".into();
        guest.nics.truncate(1);
        guest.nics[0].mac = zone.mac_of([10, 20, 0, 100].into());
        guest.nics[0].address = None;
        guest.nics[0].lease = Some([10, 20, 0, 100].into());
        [ports(&appliance), ports(&guest)]
            .concat()
            .into_iter()
            .collect()
    }

    #[test]
    fn an_appliance_and_a_guest() {
        insta::assert_snapshot!(render(&two()));
    }

    #[test]
    fn a_guest_without_an_address_speaks_with_nobody() {
        let config = engine::Config::built_in().unwrap();
        let zone = config.zones.values().next().unwrap();
        let mut guest = zone.appliance_guest(&api::InstanceId::from_bytes([1; 8]));
        guest.kind = "app".into();
        guest.nics.iter_mut().for_each(|nic| nic.address = None);
        assert_eq!(ports(&guest), []);
    }

    #[test]
    fn what_is_listed_is_read_back() {
        let table = r#"{"nftables": [{"metainfo": {}}, {"table": {"name": "t"}},
            {"set": {"name": "appliances", "elem": ["px0a", "px1a"]}},
            {"set": {"name": "guests", "elem": [{"concat": ["px0b", "52:78:0a:14:00:64", "10.20.0.100"]}]}},
            {"set": {"name": "leases", "elem": [{"concat": ["px0c", "52:78:0a:14:00:64", 5]}]}},
            {"set": {"name": "guests"}}]}"#;
        let listed: Vec<_> = listed_interfaces(table).into_iter().collect();
        assert_eq!(listed, ["px0a", "px0b", "px1a"]);
        assert!(listed_interfaces("nonsense").is_empty());
    }
}
