//! Can an appliance have these published ports, names and reservations? Pure.

use std::collections::BTreeSet;

use wire::gateway::GatewayState;
use wire::gateway::edge::OWN_PORTS;

use super::{AGENT_PORTS, is_one_machines, not_a_place_for_a_host};

/// Adds what is wrong with the edge of a state.
pub(super) fn check(state: &GatewayState, faults: &mut Vec<String>) {
    ports(state, faults);
    names(state, faults);
    reservations(state, faults);
}

fn ports(state: &GatewayState, faults: &mut Vec<String>) {
    let guests: BTreeSet<_> = state.hosts.iter().map(|h| h.address).collect();
    let mut seen = BTreeSet::new();
    for port in &state.edge.ports {
        let outside = (port.protocol, port.listen);
        let what = format!("published port {}/{}", port.protocol, port.listen);
        if !seen.insert(outside) {
            faults.push(format!("{what}: there are two"));
        }
        if port.listen == 0 || OWN_PORTS.contains(&outside) {
            faults.push(format!("{what}: the appliance needs it for itself"));
        }
        if !guests.contains(&port.address) {
            faults.push(format!("{what}: {} is no host's address", port.address));
        }
        if port.port == 0 || AGENT_PORTS.contains(&port.port) {
            faults.push(format!("{what}: port {} can't be led to", port.port));
        }
    }
}

fn names(state: &GatewayState, faults: &mut Vec<String>) {
    let domain = &state.network.domain;
    let of_host = |h: &wire::gateway::ReservedHost| format!("{}.{domain}", h.name);
    let mut seen: BTreeSet<String> = state.hosts.iter().map(of_host).collect();
    seen.extend(["gateway", "prox-appliance"].map(|own| format!("{own}.{domain}")));
    for record in &state.edge.names {
        let inside = record.name.as_str().strip_suffix(domain.as_str());
        if !inside.is_some_and(|rest| rest.ends_with('.')) {
            faults.push(format!("name {} is not in {domain}", record.name));
        }
        if !seen.insert(record.name.to_string()) {
            faults.push(format!("there are two addresses for {}", record.name));
        }
    }
}

fn reservations(state: &GatewayState, faults: &mut Vec<String>) {
    let mut addresses: BTreeSet<_> = state.hosts.iter().map(|h| h.address).collect();
    addresses.insert(state.network.gateway);
    let mut macs: BTreeSet<_> = state.hosts.iter().map(|h| h.mac).collect();
    for kept in &state.edge.reservations {
        if let Some(fault) = not_a_place_for_a_host(&state.network, kept.address) {
            faults.push(format!("reservation for {}: {fault}", kept.mac));
        }
        if !addresses.insert(kept.address) || !macs.insert(kept.mac) {
            faults.push(format!(
                "reservation of {} for {}: one of both has another already",
                kept.address, kept.mac
            ));
        }
        if !is_one_machines(kept.mac) {
            faults.push(format!("{} is not one machine's address", kept.mac));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::validate;
    use super::*;
    use crate::gateway::fake::state;
    use api::entry::Protocol;
    use wire::gateway::NameRecord;
    use wire::gateway::edge::{KeptAddress, PublishedPort};

    fn full() -> GatewayState {
        let mut state = state();
        state.edge.ports = vec![PublishedPort {
            protocol: Protocol::Tcp,
            listen: 8080,
            address: [10, 20, 0, 100].into(),
            port: 80,
        }];
        state.edge.names = vec![NameRecord {
            name: "nas.prox.local".parse().unwrap(),
            address: [192, 0, 2, 9].into(),
        }];
        state.edge.reservations = vec![KeptAddress {
            mac: "02:00:00:00:00:07".parse().unwrap(),
            address: [10, 20, 0, 251].into(),
        }];
        state
    }

    fn check(change: impl FnOnce(&mut GatewayState), expect: &str) {
        let mut state = full();
        change(&mut state);
        let fault = validate(&state, 80).expect_err(expect).to_string();
        assert!(fault.contains(expect), "{fault:?} should tell {expect:?}");
    }

    #[test]
    fn what_an_edge_may_and_may_not_have() {
        assert_eq!(validate(&full(), 80), Ok(()));
        check(|s| s.edge.ports[0].listen = 443, "needs it for itself");
        check(|s| s.edge.ports[0].listen = 39384, "needs it for itself");
        check(|s| s.edge.ports[0].port = 39383, "can't be led to");
        check(
            |s| s.edge.ports[0].address = [10, 20, 0, 1].into(),
            "no host's address",
        );
        check(
            |s| s.edge.ports.push(s.edge.ports[0].clone()),
            "there are two",
        );
        check(
            |s| s.edge.names[0].name = "bank.example".parse().unwrap(),
            "not in prox.local",
        );
        for taken in ["web.prox.local", "gateway.prox.local"] {
            check(
                |s| s.edge.names[0].name = taken.parse().unwrap(),
                "two addresses",
            );
        }
        check(
            |s| s.edge.reservations[0].address = [10, 20, 0, 100].into(),
            "has another already",
        );
        check(
            |s| s.edge.reservations[0].address = [10, 21, 0, 9].into(),
            "is not in",
        );
        check(
            |s| s.edge.reservations[0].mac = "ff:ff:ff:ff:ff:ff".parse().unwrap(),
            "one machine",
        );
    }
}
