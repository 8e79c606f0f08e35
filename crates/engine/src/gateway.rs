//! The gateway state a zone's appliance should have, composed from the records. Pure.

use wire::gateway::{EgressRule, GatewayState, Lease, PublishedPort};

use crate::instance::InstanceRecord;
use crate::zone::ZoneSpec;

/// The whole state for a zone: the hosts of all published instances, the routes of all routed ones, whose ports
/// the zone's other apps may reach too, and the policies of all that may not reach the whole internet.
/// A routed instance that is not published gets no route: the gateway would refuse the state.
pub fn desired(
    zone: &ZoneSpec,
    instances: &[InstanceRecord],
    leases: &[Lease],
) -> Result<GatewayState, api::InvalidName> {
    let mut members: Vec<&InstanceRecord> = instances
        .iter()
        .filter(|i| i.zone == zone.name && i.published)
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(GatewayState {
        network: zone.served_network()?,
        hosts: members.iter().map(|i| i.reserved_host(zone)).collect(),
        routes: members
            .iter()
            .filter(|i| i.routed)
            .filter_map(|i| i.route(zone))
            .collect(),
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
fn published(members: &[&InstanceRecord]) -> Vec<PublishedPort> {
    let apps = members.iter().filter(|i| i.routed);
    let ports = apps.filter_map(|i| {
        Some(PublishedPort {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use api::egress::Egress;

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
        let state = desired(&zone, &instances, &[]).unwrap();
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
        instances[1].egress = "example.com".parse().unwrap();
        instances[2].egress = Egress::Off;
        let state = desired(&zone, &instances, &[]).unwrap();
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
}
