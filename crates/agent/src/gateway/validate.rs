//! Is a desired state one that an appliance can have? Pure: reads nothing, changes nothing.
//!
//! Single values were checked when they were parsed; here stands what must hold between them.

mod edge;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};

use api::egress::MAX_DESTINATIONS;
use api::{Domain, HostName, MacAddr};
use wire::gateway::policy::RouteAuth;
use wire::gateway::{GatewayState, ReservedHost, Route, ZoneNetwork};

use crate::relay::front::guard;

/// Ports of the agents, which no route may lead to: an agent is reached through the relay only.
pub const AGENT_PORTS: std::ops::RangeInclusive<u16> = 39383..=39385;

/// The shortest lease that dnsmasq gives.
const SHORTEST_LEASE_S: u32 = 120;

/// Why a state was refused: everything that is wrong with it, not only the first thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", faults.join("; "))]
pub struct InvalidState {
    /// One sentence a fault.
    pub faults: Vec<String>,
}

/// Checks a whole state. `longest_route_host` comes from the path of the route sockets.
pub fn validate(state: &GatewayState, longest_route_host: usize) -> Result<(), InvalidState> {
    let mut faults = Vec::new();
    network(&state.network, &mut faults);
    hosts(state, &mut faults);
    routes(state, longest_route_host, &mut faults);
    published(state, &mut faults);
    egress(state, &mut faults);
    edge::check(state, &mut faults);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(InvalidState { faults })
    }
}

fn network(network: &ZoneNetwork, faults: &mut Vec<String>) {
    let subnet = network.subnet;
    if subnet != subnet.trunc() {
        faults.push(format!(
            "the subnet {subnet} is not a network address (that would be {})",
            subnet.trunc()
        ));
    }
    if !(8..=29).contains(&subnet.prefix_len()) {
        faults.push(format!(
            "the subnet {subnet} must have a prefix length from 8 to 29"
        ));
    }
    for (what, address) in [
        ("the gateway", network.gateway),
        ("the first DHCP address", network.dhcp_first),
        ("the last DHCP address", network.dhcp_last),
    ] {
        if let Some(fault) = not_a_place_for_a_host(network, address) {
            faults.push(format!("{what} {fault}"));
        }
    }
    if network.dhcp_first > network.dhcp_last {
        faults.push(format!(
            "the DHCP range {}-{} is empty",
            network.dhcp_first, network.dhcp_last
        ));
    }
    if (network.dhcp_first..=network.dhcp_last).contains(&network.gateway) {
        faults.push(format!(
            "the DHCP range contains the gateway {}",
            network.gateway
        ));
    }
    if network.lease_s < SHORTEST_LEASE_S {
        faults.push(format!(
            "a lease of {} s is shorter than {SHORTEST_LEASE_S} s",
            network.lease_s
        ));
    }
    if network.wan == network.lan {
        faults.push(format!("{} cannot be both WAN and LAN", network.wan));
    }
    for upstream in &network.upstream_dns {
        if upstream.is_unspecified()
            || upstream.is_multicast()
            || *upstream == IpAddr::V4(network.gateway)
        {
            faults.push(format!("{upstream} cannot be an upstream resolver"));
        }
    }
}

fn not_a_place_for_a_host(network: &ZoneNetwork, address: Ipv4Addr) -> Option<String> {
    let subnet = network.subnet;
    if !subnet.contains(&address) {
        Some(format!("{address} is not in {subnet}"))
    } else if address == subnet.network() || address == subnet.broadcast() {
        Some(format!(
            "{address} is the network or broadcast address of {subnet}"
        ))
    } else {
        None
    }
}

fn hosts(state: &GatewayState, faults: &mut Vec<String>) {
    for host in &state.hosts {
        if let Some(fault) = not_a_place_for_a_host(&state.network, host.address) {
            faults.push(format!("host {}: {fault}", host.name));
        }
        if host.address == state.network.gateway {
            faults.push(format!(
                "host {}: {} is the gateway's",
                host.name, host.address
            ));
        }
        if !is_one_machines(host.mac) {
            faults.push(format!(
                "host {}: {} is not one machine's address",
                host.name, host.mac
            ));
        }
    }
    unique(&state.hosts, "name", |h| &h.name, faults);
    unique(&state.hosts, "address", |h| &h.address, faults);
    unique(&state.hosts, "MAC address", |h| &h.mac, faults);
    unique(&state.hosts, "instance", |h| &h.instance, faults);
}

/// The group bit: an address that has it can never be one machine's.
fn is_one_machines(mac: MacAddr) -> bool {
    let [first, ..] = mac.bytes();
    first & 1 == 0 && mac.bytes() != [0; 6]
}

fn unique<K: Ord + Display>(
    hosts: &[ReservedHost],
    what: &str,
    key: impl Fn(&ReservedHost) -> &K,
    faults: &mut Vec<String>,
) {
    let mut seen = BTreeMap::new();
    for host in hosts {
        if let Some(other) = seen.insert(key(host), &host.name) {
            faults.push(format!(
                "hosts {other} and {} have the same {what} {}",
                host.name,
                key(host)
            ));
        }
    }
}

fn routes(state: &GatewayState, longest_host: usize, faults: &mut Vec<String>) {
    let instances: BTreeSet<_> = state.hosts.iter().map(|h| &h.instance).collect();
    let mut seen = BTreeSet::new();
    for route in &state.routes {
        let host = &route.host;
        if !seen.insert(host) {
            faults.push(format!("there are two routes for {host}"));
        }
        if !has_a_site(host, &state.network.domain) {
            faults.push(format!(
                "route {host} is neither NAME.{} nor a name of another domain",
                state.network.domain
            ));
        }
        policy(route, faults);
        if host.as_str().len() > longest_host {
            faults.push(format!(
                "route {host} is longer than {longest_host} characters"
            ));
        }
        if !instances.contains(&route.instance) {
            faults.push(format!(
                "route {host}: instance {} is not among the hosts",
                route.instance
            ));
        }
        if route.port == 0 {
            faults.push(format!("route {host}: port 0 cannot be connected to"));
        }
        if AGENT_PORTS.contains(&route.port) {
            faults.push(format!(
                "route {host}: port {} belongs to the agent",
                route.port
            ));
        }
    }
}

fn published(state: &GatewayState, faults: &mut Vec<String>) {
    let instances: BTreeSet<_> = state.hosts.iter().map(|h| &h.instance).collect();
    for published in &state.published {
        let (instance, port) = (&published.instance, published.port);
        if !instances.contains(instance) {
            faults.push(format!(
                "port {port}: instance {instance} is not among the hosts"
            ));
        }
        if port == 0 || AGENT_PORTS.contains(&port) {
            faults.push(format!("port {port} of {instance} cannot be published"));
        }
    }
}

fn egress(state: &GatewayState, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for rule in &state.egress {
        let source = rule.source;
        if let Some(fault) = not_a_place_for_a_host(&state.network, source) {
            faults.push(format!("the egress rule of {source}: {fault}"));
        }
        if source == state.network.gateway {
            faults.push(format!("the gateway {source} has no egress rule"));
        }
        if !seen.insert(source) {
            faults.push(format!("there are two egress rules for {source}"));
        }
        if rule.destinations.len() > MAX_DESTINATIONS {
            faults.push(format!(
                "the egress rule of {source} has more than {MAX_DESTINATIONS} destinations"
            ));
        }
    }
}

fn policy(route: &Route, faults: &mut Vec<String>) {
    let host = &route.host;
    if let Some(RouteAuth::Basic { rounds, .. }) = &route.policy.auth
        && !guard::ROUNDS.contains(rounds)
    {
        faults.push(format!("route {host}: {rounds} rounds of PBKDF2"));
    }
    let zero = [route.policy.max_body_bytes, route.policy.answer_within_ms];
    if zero.contains(&Some(0)) {
        faults.push(format!("route {host}: a limit of 0 lets nothing through"));
    }
}

/// Is `host` one label in front of `domain`, or of another domain? More labels in front of it match
/// no site of the reverse proxy, and `localhost` is everybody's own machine.
fn has_a_site(host: &HostName, domain: &Domain) -> bool {
    let below = |domain: &str| host.as_str().strip_suffix(domain)?.strip_suffix('.');
    match below(domain.as_str()) {
        Some(label) => !label.is_empty() && !label.contains('.'),
        None => host.as_str() != domain.as_str() && below("localhost").is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake::{host, route, state};
    use wire::gateway::{EgressRule, ZonePort};

    fn check(change: impl FnOnce(&mut GatewayState), expect: &str) {
        let mut s = state();
        change(&mut s);
        let fault = validate(&s, 80).expect_err(expect).to_string();
        assert!(fault.contains(expect), "{fault:?} should tell {expect:?}");
    }

    #[test]
    fn a_good_state_passes() {
        assert_eq!(validate(&state(), 80), Ok(()));
    }

    #[test]
    fn networks_that_cannot_be() {
        check(
            |s| s.network.subnet = "10.20.0.5/24".parse().unwrap(),
            "not a network address",
        );
        check(
            |s| s.network.subnet = "10.20.0.0/31".parse().unwrap(),
            "prefix length",
        );
        check(
            |s| s.network.gateway = [10, 21, 0, 1].into(),
            "the gateway 10.21.0.1 is not in",
        );
        check(|s| s.network.gateway = [10, 20, 0, 255].into(), "broadcast");
        check(
            |s| s.network.gateway = [10, 20, 0, 120].into(),
            "contains the gateway",
        );
        check(
            |s| s.network.dhcp_last = [10, 20, 1, 9].into(),
            "the last DHCP address 10.20.1.9",
        );
        check(|s| s.network.dhcp_last = [10, 20, 0, 9].into(), "is empty");
        check(|s| s.network.lease_s = 60, "shorter than 120 s");
        check(
            |s| s.network.lan = s.network.wan.clone(),
            "both WAN and LAN",
        );
        check(
            |s| s.network.upstream_dns.push([10, 20, 0, 1].into()),
            "upstream",
        );
    }

    #[test]
    fn hosts_that_cannot_be() {
        check(|s| s.hosts.push(host(1, "other", 9)), "same instance");
        check(|s| s.hosts.push(host(9, "web", 9)), "same name web");
        check(
            |s| s.hosts.push(host(9, "other", 100)),
            "same address 10.20.0.100",
        );
        check(|s| s.hosts.push(host(9, "other", 100)), "same MAC address");
        check(|s| s.hosts.push(host(9, "other", 1)), "is the gateway's");
        check(|s| s.hosts.push(host(9, "other", 255)), "broadcast");
        check(
            |s| s.hosts[0].address = [10, 21, 0, 3].into(),
            "not in 10.20.0.0/24",
        );
        check(
            |s| s.hosts[0].mac = "ff:ff:ff:ff:ff:ff".parse().unwrap(),
            "not one machine's",
        );
    }

    #[test]
    fn policies_that_cannot_be() {
        let rule = |last: u8, count: usize| EgressRule {
            source: [10, 20, 0, last].into(),
            destinations: vec!["8.8.8.8".parse().unwrap(); count],
        };
        let port = |instance: u64, port| ZonePort {
            instance: api::InstanceId::from_bytes(instance.to_be_bytes()),
            port,
        };
        check(|s| s.egress = vec![rule(1, 0)], "the gateway");
        check(|s| s.egress = vec![rule(255, 0)], "broadcast");
        check(
            |s| s.egress = vec![rule(5, 0), rule(5, 1)],
            "two egress rules",
        );
        check(|s| s.egress = vec![rule(5, 65)], "more than 64");
        check(|s| s.published = vec![port(9, 80)], "not among the hosts");
        check(
            |s| s.published = vec![port(1, 39383)],
            "cannot be published",
        );
        let mut s = state();
        s.egress = vec![rule(5, 0), rule(6, 64)];
        s.published = vec![port(1, 80)];
        assert_eq!(validate(&s, 80), Ok(()));
    }

    #[test]
    fn routes_that_cannot_be() {
        check(
            |s| s.routes.push(route("web.prox.local", 1, 81)),
            "two routes",
        );
        check(
            |s| s.routes.push(route("x.localhost", 1, 80)),
            "NAME.prox.local",
        );
        check(
            |s| s.routes[0].policy.max_body_bytes = Some(0),
            "a limit of 0",
        );
        check(
            |s| s.routes.push(route("a.b.prox.local", 1, 80)),
            "NAME.prox.local",
        );
        let mut other = state();
        other.routes.push(route("shop.example.com", 1, 80));
        other.routes.push(route("notprox.local", 1, 80));
        assert_eq!(validate(&other, 80), Ok(()));
        check(
            |s| s.routes.push(route("x.prox.local", 7, 80)),
            "not among the hosts",
        );
        check(|s| s.routes.push(route("x.prox.local", 1, 0)), "port 0");
        check(
            |s| s.routes.push(route("x.prox.local", 1, 39383)),
            "belongs to the agent",
        );
        let long = format!("{}.prox.local", "x".repeat(63));
        let mut s = state();
        s.routes.push(route(&long, 1, 80));
        assert!(validate(&s, 70).is_err() && validate(&s, 80).is_ok());
    }
}
