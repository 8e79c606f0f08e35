//! The gateway state a zone's appliance should have, composed from the records. Pure.

use wire::gateway::{GatewayState, Lease};

use crate::instance::InstanceRecord;
use crate::zone::ZoneSpec;

/// The whole state for a zone: the hosts of all published instances, the routes of all routed ones.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

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
