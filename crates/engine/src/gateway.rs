//! The gateway state a zone's appliance should have, composed from the records. Pure.

pub mod entry;
pub mod names;
pub mod secret;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use api::{HostName, InstanceId};
use wire::gateway::edge::{Edge, KeptAddress, PublishedPort};
use wire::gateway::{EgressRule, GatewayState, Lease, NameRecord, Route, ZonePort};

use crate::instance::InstanceRecord;
use crate::zone::ZoneSpec;
use entry::{Entry, RecordTarget, RouteEntry};

/// The whole state for a zone: the hosts of all published instances, the routes of all routed ones, whose ports
/// the zone's other apps may reach too, the policies of all that may not reach the whole internet, and what
/// people added that leads to them or to nobody. A routed instance that is not published gets no route: the
/// gateway would refuse the state.
pub fn desired(
    zone: &ZoneSpec,
    instances: &[InstanceRecord],
    leases: &[Lease],
    entries: &[Entry],
) -> Result<GatewayState, api::InvalidName> {
    let mut members: Vec<&InstanceRecord> = instances
        .iter()
        .filter(|i| i.zone == zone.name && i.published)
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(GatewayState {
        network: zone.served_network()?,
        hosts: members.iter().map(|i| i.reserved_host(zone)).collect(),
        routes: routes(zone, &members, entries),
        edge: edge(zone, &members, entries),
        leases: leases.to_vec(),
        published: published(&members),
        egress: egress(zone, instances),
    })
}

/// The leases to remember, sorted by address: for each published instance the one that was reported, or the one
/// known before as long as it lasts. A lease of anybody else, or for another address, is not ours to give again.
pub fn leases(
    zone: &ZoneSpec,
    instances: &[InstanceRecord],
    reported: &[Lease],
    known: &[Lease],
    now_s: i64,
) -> Vec<Lease> {
    let lasts =
        |l: &&Lease| l.expires_s == 0 || i64::try_from(l.expires_s).is_ok_and(|s| s > now_s);
    let mut kept: Vec<Lease> = instances
        .iter()
        .filter(|i| i.zone == zone.name && i.published)
        .filter_map(|i| {
            let theirs = |l: &&Lease| l.address == i.address && l.mac == i.mac(zone);
            let now = reported.iter().find(theirs);
            now.or_else(|| known.iter().filter(lasts).find(theirs))
                .cloned()
        })
        .collect();
    kept.sort_by_key(|l| l.address);
    kept
}

/// A sandbox publishes nothing.
fn published(members: &[&InstanceRecord]) -> Vec<ZonePort> {
    let apps = members.iter().filter(|i| i.routed);
    let ports = apps.filter_map(|i| {
        Some(ZonePort {
            instance: i.id.clone(),
            port: i.as_app()?.port,
        })
    });
    let mut ports: Vec<_> = ports.collect();
    ports.sort_by(|a, b| a.instance.cmp(&b.instance));
    ports
}

/// Of every record, published or not: a policy holds before its guest starts.
fn egress(zone: &ZoneSpec, instances: &[InstanceRecord]) -> Vec<EgressRule> {
    let restricted = instances
        .iter()
        .filter(|i| i.zone == zone.name && i.egress.is_restricted());
    let mut rules: Vec<_> = restricted
        .map(|i| EgressRule {
            source: i.address,
            destinations: i.egress.destinations().to_vec(),
        })
        .collect();
    rules.sort_by_key(|r| r.source);
    rules
}

/// By host: an app's own, unless somebody gave that name other settings, and the added ones.
fn routes(zone: &ZoneSpec, members: &[&InstanceRecord], entries: &[Entry]) -> Vec<Route> {
    let routed = members.iter().filter(|i| i.routed);
    let open: BTreeSet<&InstanceId> = routed.clone().map(|i| &i.id).collect();
    let own = routed.filter_map(|i| i.route(zone));
    let added = entries.iter().filter_map(|entry| match entry {
        Entry::Route(route) if open.contains(&route.instance) => Some(added(route)),
        _ => None,
    });
    let all = own.chain(added);
    let by_host: BTreeMap<HostName, Route> = all.map(|r| (r.host.clone(), r)).collect();
    by_host.into_values().collect()
}

/// An added route as the appliance gets it.
pub(crate) fn added(route: &RouteEntry) -> Route {
    Route {
        host: route.host.clone(),
        instance: route.instance.clone(),
        port: route.port,
        policy: route.policy.clone(),
    }
}

fn edge(zone: &ZoneSpec, members: &[&InstanceRecord], entries: &[Entry]) -> Edge {
    let addresses: BTreeMap<&InstanceId, Ipv4Addr> =
        members.iter().map(|i| (&i.id, i.address)).collect();
    let address_of = |id: &InstanceId| addresses.get(id).copied();
    let own_names: BTreeSet<HostName> = members.iter().map(|i| i.host(zone)).collect();
    let mut edge = Edge {
        acme: zone.acme.clone(),
        outside: zone.outside.clone(),
        ..Edge::default()
    };
    for entry in entries {
        match entry {
            // The proxy answers for it, as long as there is an app.
            Entry::Route(route)
                if names::label_in(&route.host, &zone.domain).is_some()
                    && address_of(&route.instance).is_some()
                    && !own_names.contains(&route.host) =>
            {
                edge.names.push(name(&route.host, zone.gateway()));
            }
            Entry::Route(_) => {}
            Entry::Port(port) => {
                edge.ports
                    .extend(address_of(&port.instance).map(|address| PublishedPort {
                        protocol: port.protocol,
                        listen: port.listen,
                        address,
                        port: port.port,
                    }))
            }
            Entry::Record(record) => {
                let address = match &record.target {
                    RecordTarget::Address(address) => Some(*address),
                    RecordTarget::Instance(id) => address_of(id),
                };
                edge.names.extend(address.map(|a| name(&record.name, a)));
            }
            Entry::Reservation(kept) => {
                edge.names.push(name(&kept.host, kept.address));
                edge.reservations.push(KeptAddress {
                    mac: kept.mac,
                    address: kept.address,
                });
            }
        }
    }
    edge.ports.sort();
    edge.names.sort();
    edge.reservations.sort_by_key(|kept| kept.mac);
    edge
}

fn name(name: &HostName, address: Ipv4Addr) -> NameRecord {
    NameRecord {
        name: name.clone(),
        address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use api::egress::Egress;
    use api::entry::Protocol;
    use entry::{PortEntry, RecordEntry, ReservationEntry};
    use wire::gateway::policy::RoutePolicy;

    #[test]
    fn only_what_is_published_and_routed_shows() {
        let zone = fake::zone_spec();
        let mut instances: Vec<_> = ["c", "a", "b"]
            .iter()
            .map(|n| fake::instance_record(n))
            .collect();
        for (i, r) in instances.iter_mut().enumerate() {
            r.address = crate::config::host_address(&zone.subnet, 100 + i as u8);
        }
        instances[0].published = true;
        instances[0].routed = true;
        instances[1].published = true;
        instances[2].routed = true;
        let state = desired(&zone, &instances, &[], &[]).unwrap();
        let names: Vec<_> = state.hosts.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        let hosts: Vec<_> = state.routes.iter().map(|r| r.host.as_str()).collect();
        assert_eq!(hosts, ["c.prox.local"]);
        let ports: Vec<_> = state
            .published
            .iter()
            .map(|p| (&p.instance, p.port))
            .collect();
        assert_eq!(ports, [(&instances[0].id, 80)]);
        assert_eq!(state.egress, []);
        assert!(state.edge.is_empty());
        instances[1].egress = "example.com".parse().unwrap();
        instances[2].egress = Egress::Off;
        let state = desired(&zone, &instances, &[], &[]).unwrap();
        let rules: Vec<_> = state
            .egress
            .iter()
            .map(|r| (r.source, r.destinations.len()))
            .collect();
        assert_eq!(
            rules,
            [(instances[1].address, 1), (instances[2].address, 0)]
        );
    }

    #[test]
    fn leases_are_remembered_while_they_last() {
        let zone = fake::zone_spec();
        let mut web = fake::instance_record("web");
        web.published = true;
        let (mac, address) = (web.mac(&zone), web.address);
        let lease = |expires_s| Lease {
            expires_s,
            mac,
            address,
            client_name: None,
        };
        let mut other = lease(900);
        other.address = crate::config::host_address(&zone.subnet, 150);
        let instances = [web.clone()];
        let check = |reported: &[Lease], known: &[Lease], expect: &[Lease]| {
            assert_eq!(leases(&zone, &instances, reported, known, 500), expect);
        };
        check(&[lease(900), other.clone()], &[lease(800)], &[lease(900)]);
        // An appliance that lost its leases has not ended them.
        check(&[], &[lease(800), other.clone()], &[lease(800)]);
        check(&[], &[lease(0)], &[lease(0)]);
        check(&[], &[lease(400)], &[]);
        web.published = false;
        assert_eq!(leases(&zone, &[web], &[lease(900)], &[], 500), []);
    }

    fn route(host: &str, instance: &InstanceId, port: u16) -> Entry {
        Entry::Route(RouteEntry {
            host: host.parse().unwrap(),
            instance: instance.clone(),
            port,
            policy: RoutePolicy::default(),
        })
    }

    #[test]
    fn entries_lead_to_what_is_there() {
        let zone = fake::zone_spec();
        let mut web = fake::instance_record("web");
        (web.published, web.routed) = (true, true);
        let gone = InstanceId::from_bytes([0xff; 8]);
        let record = |name: &str, target| {
            let name = name.parse().unwrap();
            Entry::Record(RecordEntry { name, target })
        };
        let port = |listen, instance: &InstanceId| {
            Entry::Port(PortEntry {
                protocol: Protocol::Tcp,
                listen,
                instance: instance.clone(),
                port: 5432,
            })
        };
        let entries = [
            route("api.prox.local", &web.id, 8080),
            route("web.prox.local", &web.id, 8081),
            route("shop.example.com", &web.id, 8082),
            route("lost.prox.local", &gone, 80),
            record("db.prox.local", RecordTarget::Instance(web.id.clone())),
            record(
                "nas.prox.local",
                RecordTarget::Address([192, 0, 2, 9].into()),
            ),
            record("none.prox.local", RecordTarget::Instance(gone.clone())),
            port(15432, &web.id),
            port(15433, &gone),
            Entry::Reservation(ReservationEntry {
                mac: "02:00:00:00:00:07".parse().unwrap(),
                address: [10, 20, 0, 251].into(),
                name: "printer".parse().unwrap(),
                host: "printer.prox.local".parse().unwrap(),
            }),
        ];
        let state = desired(&zone, &[web.clone()], &[], &entries).unwrap();
        let routes: Vec<_> = state
            .routes
            .iter()
            .map(|r| (r.host.as_str(), r.port))
            .collect();
        assert_eq!(
            routes,
            [
                ("api.prox.local", 8080),
                ("shop.example.com", 8082),
                ("web.prox.local", 8081)
            ]
        );
        let names: Vec<_> = state
            .edge
            .names
            .iter()
            .map(|n| format!("{} {}", n.name, n.address))
            .collect();
        assert_eq!(
            names,
            [
                "api.prox.local 10.20.0.1",
                "db.prox.local 10.20.0.100",
                "nas.prox.local 192.0.2.9",
                "printer.prox.local 10.20.0.251"
            ]
        );
        let ports: Vec<_> = state.edge.ports.iter().map(|p| p.listen).collect();
        assert_eq!(ports, [15432]);
        assert_eq!(state.edge.reservations.len(), 1);
        // An app that is stopped keeps its entries and has no routes.
        web.routed = false;
        assert!(
            desired(&zone, &[web], &[], &entries)
                .unwrap()
                .routes
                .is_empty()
        );
    }
}
