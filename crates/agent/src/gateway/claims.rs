//! Names of machines on the LAN that are no instances: `LABEL.dyn.DOMAIN`, as long as their lease lives.
//!
//! ```text
//!  dnsmasq ─ add, del ─▶ proximity-agent add … ─▶ claims/ADDRESS ─ every second ─▶ plan ─▶ dyn/ADDRESS ─▶ dnsmasq
//! ```
//! dnsmasq itself drops the name that a client sends, so no lease is ever a name of its own accord. It tells of each
//! lease by a program, which keeps the claim in a file; the relay decides which claims become names. One is refused
//! when it is no plain label, is a reserved word, or is held by a lease that had it first; so is every claim of an
//! instance's address. All names are below `dyn`, which no instance, no route and no other name can be: a machine can
//! take nobody's name but another such machine's, and that only after it left. What is decided stands in the
//! files, so a relay that restarts keeps every holder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::{Domain, HostName, InstanceName, MacAddr};
use tokio::time::sleep;
use wire::gateway::{GatewayState, NameRecord};

use super::paths::Paths;
use super::system::System;
use super::{Gateway, hosts};
use crate::durable::{self, FileError, Keep};

/// The label below which all of these names are.
pub const BELOW: &str = "dyn";
/// Names at a time. A zone has fewer addresses to lease, so this is for what nobody thought of.
const NAMES_MAX: usize = 256;
/// How often claims are looked at. A look at nothing new is one system call.
const LOOK: Duration = Duration::from_secs(1);

/// What a machine says it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The machine.
    pub mac: MacAddr,
    /// The name, one label.
    pub label: InstanceName,
}

/// What dnsmasq tells of a lease: `action` is `add`, `old` or `del`. A name that nobody could have is none, and what is
/// not about Ethernet and IPv4 is nothing of ours. `supplied` is data from a client.
pub fn note(
    paths: &Paths,
    action: &str,
    mac: &str,
    address: &str,
    supplied: Option<&str>,
) -> Result<(), FileError> {
    let (Ok(mac), Ok(address)) = (mac.parse::<MacAddr>(), address.parse::<Ipv4Addr>()) else {
        return Ok(());
    };
    let file = paths.claims().join(address.to_string());
    let label = supplied.and_then(label);
    match (action, label) {
        ("add", Some(label)) => {
            let line = format!("{mac} {label}\n");
            durable::replace(&file, line.as_bytes(), 0o644, Keep::Derived)
        }
        ("add" | "del", _) => durable::remove_if_there(&file).map(drop),
        // A lease that dnsmasq knew before it was restarted; it does not know any more what was claimed.
        _ => Ok(()),
    }
}

/// A label that may be somebody's name. Machines like capitals; DNS does not tell them apart.
fn label(supplied: &str) -> Option<InstanceName> {
    if supplied.len() > 63 {
        return None;
    }
    let label: InstanceName = supplied.to_ascii_lowercase().parse().ok()?;
    (!label.is_reserved()).then_some(label)
}

/// All claims, by address, with the time of each. Half-written files begin with a dot and are no addresses.
fn read(directory: &Path) -> Result<BTreeMap<Ipv4Addr, (SystemTime, Claim)>, FileError> {
    let mut claims = BTreeMap::new();
    for (address, path) in files(directory)? {
        // One that goes this moment is gone.
        let Some(text) = durable::read_if_there(&path)? else {
            continue;
        };
        let since = fs::metadata(&path).and_then(|m| m.modified());
        let since = since.unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some(claim) = parse(&String::from_utf8_lossy(&text)) {
            claims.insert(address, (since, claim));
        }
    }
    Ok(claims)
}

fn files(directory: &Path) -> Result<BTreeMap<Ipv4Addr, std::path::PathBuf>, FileError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(FileError::new("list", directory)(e)),
    };
    let address = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    let paths = entries.flatten().map(|e| e.path());
    Ok(paths.filter_map(|p| Some((address(&p)?, p))).collect())
}

fn parse(text: &str) -> Option<Claim> {
    let (mac, name) = text.trim_end().split_once(' ')?;
    Some(Claim {
        mac: mac.parse().ok()?,
        label: label(name)?,
    })
}

/// Which claims are names, given those that are already.
fn names(
    claims: &BTreeMap<Ipv4Addr, (SystemTime, Claim)>,
    held: &BTreeMap<Ipv4Addr, InstanceName>,
    state: &GatewayState,
) -> BTreeMap<Ipv4Addr, InstanceName> {
    let (first, last) = (state.network.dhcp_first, state.network.dhcp_last);
    let of_instance = |address: &Ipv4Addr, mac: MacAddr| {
        let mut hosts = state.hosts.iter();
        hosts.any(|h| h.address == *address || h.mac == mac)
    };
    let mut order: Vec<_> = claims
        .iter()
        .filter(|(address, (_, claim))| {
            (first <= **address && **address <= last) || is_reserved(state, claim.mac)
        })
        .filter(|(address, (_, claim))| !of_instance(address, claim.mac))
        .map(|(address, (since, claim))| {
            let holds = held.get(address) == Some(&claim.label);
            (!holds, *since, *address, &claim.label)
        })
        .collect();
    order.sort();
    let mut taken = BTreeSet::new();
    order
        .into_iter()
        .filter(|(_, _, _, label)| taken.insert(*label))
        .take(NAMES_MAX)
        .map(|(_, _, address, label)| (address, label.clone()))
        .collect()
}

/// A machine for which people keep an address, which may be outside of the range for all.
fn is_reserved(state: &GatewayState, mac: MacAddr) -> bool {
    state.edge.reservations.iter().any(|kept| kept.mac == mac)
}

fn line(address: Ipv4Addr, label: &InstanceName, domain: &Domain) -> String {
    format!("{address} {label}.{BELOW}.{domain}\n")
}

/// The names that DNS has now.
pub fn records(paths: &Paths) -> Result<Vec<NameRecord>, FileError> {
    let mut records = Vec::new();
    for path in files(&paths.dyn_names())?.into_values() {
        let text = durable::read_if_there(&path)?.unwrap_or_default();
        records.extend(hosts::parse_names(&String::from_utf8_lossy(&text)));
    }
    Ok(records)
}

/// Makes the files of names those that `state` and the claims ask for; says how many changed.
pub fn follow(paths: &Paths, state: &GatewayState) -> Result<usize, FileError> {
    let (directory, domain) = (paths.dyn_names(), &state.network.domain);
    let mut held = BTreeMap::new();
    for NameRecord { name, address } in records(paths)? {
        if let Some(label) = label_of(&name, domain) {
            held.insert(address, label);
        }
    }
    let wanted = names(&read(&paths.claims())?, &held, state);
    let mut changed = 0;
    // What goes, goes first: a name is never at two addresses.
    for (address, path) in files(&directory)? {
        let stays = wanted
            .get(&address)
            .is_some_and(|l| held.get(&address) == Some(l));
        if !stays && durable::remove_if_there(&path)? {
            changed += 1;
        }
    }
    for (address, label) in &wanted {
        let text = line(*address, label, domain);
        let path = directory.join(address.to_string());
        changed += usize::from(durable::replace_if_changed(
            &path,
            text.as_bytes(),
            0o644,
            Keep::Derived,
        )?);
    }
    Ok(changed)
}

/// Drops the claims of instances of `before` that `now` has no more. Their leases end a moment later, and until then they would
/// be taken for machines that are nobody's.
pub fn withdraw(
    paths: &Paths,
    before: Option<&GatewayState>,
    now: &GatewayState,
) -> Result<(), FileError> {
    let stay: BTreeSet<Ipv4Addr> = now.hosts.iter().map(|h| h.address).collect();
    let hosts = before.into_iter().flat_map(|state| &state.hosts);
    let gone = hosts.filter(|h| !stay.contains(&h.address));
    for host in gone {
        durable::remove_if_there(&paths.claims().join(host.address.to_string()))?;
    }
    Ok(())
}

fn label_of(name: &HostName, domain: &Domain) -> Option<InstanceName> {
    let rest = name.as_str().strip_suffix(domain.as_str())?;
    label(
        rest.strip_suffix('.')?
            .strip_suffix(BELOW)?
            .strip_suffix('.')?,
    )
}

/// Follows claims and states, for ever.
pub async fn watch<S: System>(gateway: Arc<Gateway<S>>) {
    let mut accepted = gateway.accepted();
    let mut seen = None;
    loop {
        let state = accepted.borrow_and_update().clone();
        if let Some(state) = state {
            let now = changed_at(&gateway.paths);
            // In the clock's own grain two changes look like one, so a fresh one is looked at again.
            let fresh = now.is_none_or(|at| at.elapsed().unwrap_or_default() < 2 * LOOK);
            if seen != Some((now, state.clone())) || fresh {
                match follow(&gateway.paths, &state) {
                    Ok(0) => {}
                    Ok(changed) => {
                        tracing::info!(changed, "names of leases were brought up to date")
                    }
                    Err(error) => {
                        tracing::warn!(%error, "names of leases are not as they should be");
                    }
                }
                seen = Some((now, state));
            }
        }
        tokio::select! {
            changed = accepted.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
    }
}

fn changed_at(paths: &Paths) -> Option<SystemTime> {
    fs::metadata(paths.claims()).and_then(|m| m.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;

    struct Lab {
        paths: Paths,
        state: GatewayState,
        _root: tempfile::TempDir,
    }

    fn lab() -> Lab {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        for directory in [paths.claims(), paths.dyn_names()] {
            durable::directory(&directory, 0o755).unwrap();
        }
        Lab {
            paths,
            state: fake::state(),
            _root: root,
        }
    }

    #[test]
    fn an_instance_that_goes_is_not_taken_for_a_stranger() {
        let mut lab = lab();
        let before = lab.state.clone();
        let host = lab.state.hosts.remove(0);
        let claim = lab.paths.claims().join(host.address.to_string());
        fs::write(&claim, format!("{} web\n", host.mac)).unwrap();
        withdraw(&lab.paths, Some(&before), &before).unwrap();
        assert!(claim.exists(), "it is there still");
        withdraw(&lab.paths, Some(&before), &lab.state).unwrap();
        assert!(!claim.exists());
        assert_eq!(lab.names(), [""; 0]);
    }

    impl Lab {
        fn told(&self, action: &str, last: u8, name: Option<&str>) {
            let (mac, address) = (
                format!("02:00:00:00:00:{last:02x}"),
                format!("10.20.0.{last}"),
            );
            note(&self.paths, action, &mac, &address, name).unwrap();
        }

        fn names(&self) -> Vec<String> {
            follow(&self.paths, &self.state).unwrap();
            assert_eq!(follow(&self.paths, &self.state).unwrap(), 0);
            let records = records(&self.paths).unwrap();
            records
                .iter()
                .map(|r| format!("{} {}", r.address, r.name))
                .collect()
        }
    }

    #[test]
    fn a_lease_has_its_name_as_long_as_it_lives() {
        let lab = lab();
        lab.told("add", 140, Some("Laptop"));
        lab.told("add", 141, None);
        assert_eq!(lab.names(), ["10.20.0.140 laptop.dyn.prox.local"]);
        // dnsmasq was restarted and does not know any more.
        lab.told("old", 140, None);
        assert_eq!(lab.names(), ["10.20.0.140 laptop.dyn.prox.local"]);
        lab.told("del", 140, None);
        assert!(lab.names().is_empty());
    }

    #[test]
    fn what_is_no_plain_label_or_reserved_is_no_name() {
        let lab = lab();
        for (last, name) in (140..).zip([
            "wpad",
            "dyn",
            "gateway",
            "a.b",
            "a b",
            "",
            "-x",
            "xn--bcher-kva",
            "a\nb",
            "a/b",
            "ä",
            &"x".repeat(64),
        ]) {
            lab.told("add", last, Some(name));
        }
        assert!(lab.names().is_empty());
        // Nor is what is not IPv4 on Ethernet.
        note(
            &lab.paths,
            "add",
            "06-02:00:00:00:00:01",
            "10.20.0.1",
            Some("x"),
        )
        .unwrap();
        note(&lab.paths, "add", "02:00:00:00:00:01", "../x", Some("x")).unwrap();
        assert!(fs::read_dir(lab.paths.claims()).unwrap().next().is_none());
    }

    #[test]
    fn the_first_holder_keeps_a_name_until_it_leaves() {
        let lab = lab();
        lab.told("add", 150, Some("laptop"));
        assert_eq!(lab.names(), ["10.20.0.150 laptop.dyn.prox.local"]);
        lab.told("add", 140, Some("LAPTOP"));
        // Even when the holder's claim is the younger file.
        lab.told("add", 150, Some("laptop"));
        assert_eq!(lab.names(), ["10.20.0.150 laptop.dyn.prox.local"]);
        lab.told("del", 150, None);
        assert_eq!(lab.names(), ["10.20.0.140 laptop.dyn.prox.local"]);
    }

    #[test]
    fn addresses_of_instances_and_others_have_no_such_name() {
        let mut lab = lab();
        let host = lab.state.hosts[0].clone();
        let mac = host.mac.to_string();
        note(&lab.paths, "add", &mac, "10.20.0.100", Some("web2")).unwrap();
        lab.told("add", 7, Some("static"));
        lab.told("add", 140, Some("web"));
        // A name like an instance's is another name, below `dyn`.
        assert_eq!(lab.names(), ["10.20.0.140 web.dyn.prox.local"]);
        lab.state.hosts.push(fake::host(9, "late", 140));
        assert!(lab.names().is_empty());
        lab.state.hosts.pop();
        lab.state.network.domain = "else.local".parse().unwrap();
        assert_eq!(lab.names(), ["10.20.0.140 web.dyn.else.local"]);
    }

    #[test]
    fn there_is_a_bound() {
        let state = GatewayState {
            network: wire::gateway::ZoneNetwork {
                dhcp_last: [10, 20, 9, 250].into(),
                ..fake::state().network
            },
            ..fake::state()
        };
        let claims: BTreeMap<_, _> = (0..1000u32)
            .map(|n| {
                let claim = Claim {
                    mac: MacAddr::from_bytes([2, 0, 0, 0, (n >> 8) as u8, n as u8]),
                    label: format!("m{n}").parse().unwrap(),
                };
                let address = Ipv4Addr::from_bits(0x0a14_0096 + n);
                (address, (SystemTime::UNIX_EPOCH, claim))
            })
            .collect();
        assert_eq!(names(&claims, &BTreeMap::new(), &state).len(), NAMES_MAX);
    }
}
