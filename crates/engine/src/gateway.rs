//! The gateway state a zone's appliance should have, composed from the records. Pure.

use wire::gateway::GatewayState;

use crate::instance::InstanceRecord;
use crate::zone::ZoneSpec;

/// The whole state for a zone: the hosts of all published instances, the routes of all routed ones.
/// A routed instance that is not published gets no route: the gateway would refuse the state.
pub fn desired(
    zone: &ZoneSpec,
    instances: &[InstanceRecord],
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
    })
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
        let state = desired(&zone, &instances).unwrap();
        let names: Vec<_> = state.hosts.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        let hosts: Vec<_> = state.routes.iter().map(|r| r.host.as_str()).collect();
        assert_eq!(hosts, ["c.prox.local"]);
    }
}
