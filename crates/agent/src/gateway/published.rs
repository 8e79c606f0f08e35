//! What of a zone is open to the outside, as parts of the firewall: maps of the ports that lead to guests,
//! rules for who may ask for names and reach addresses. The one writer of them.
//!
//! Numbers, addresses and the interfaces' names only. The rules that look into the maps stand
//! in [`super::nftables`]; replies find their way back by connection tracking.

use api::entry::Protocol;
use wire::gateway::ZoneNetwork;
use wire::gateway::edge::{Outside, PublishedPort};

use super::validate::AGENT_PORTS;
use super::word::{UnsafeWord, word};

/// The maps `published_tcp` and `published_udp`: port outside to address and port of a guest.
pub fn maps(ports: &[PublishedPort]) -> String {
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .map(|protocol| {
            let elements: Vec<String> = ports
                .iter()
                .filter(|p| p.protocol == protocol)
                .map(|p| format!("{} : {} . {}", p.listen, p.address, p.port))
                .collect();
            // An empty list of elements is no legal one.
            let elements = match elements.is_empty() {
                true => String::new(),
                false => format!("\t\telements = {{ {} }}\n", elements.join(", ")),
            };
            format!(
                "\tmap published_{protocol} {{\n\t\ttype inet_service : ipv4_addr . inet_service\n{elements}\t}}\n"
            )
        })
        .collect()
}

/// Rules that open the zone to networks outside; empty when it is closed to them.
pub struct Openings {
    /// For the chain of what the appliance itself answers.
    pub input: String,
    /// For the chain of what it passes on.
    pub forward: String,
}

/// The rules of what is open. Names are answered to private networks only: an open resolver on the
/// internet would be everybody's.
pub fn openings(network: &ZoneNetwork, outside: &Outside) -> Result<Openings, UnsafeWord> {
    let (wan, lan) = (word(&network.wan)?, word(&network.lan)?);
    let (first, last) = (AGENT_PORTS.start(), AGENT_PORTS.end());
    let input = match outside.dns {
        true => format!(
            "\t\tiifname \"{wan}\" ip saddr @special_purpose udp dport 53 accept\n\
             \t\tiifname \"{wan}\" ip saddr @special_purpose tcp dport 53 accept\n"
        ),
        false => String::new(),
    };
    let networks: Vec<String> = outside.open_to.iter().map(ToString::to_string).collect();
    let forward = match networks.is_empty() {
        true => String::new(),
        false => {
            let from = format!(
                "iifname \"{wan}\" oifname \"{lan}\" ip saddr {{ {} }}",
                networks.join(", ")
            );
            format!("\t\t{from} tcp dport {first}-{last} drop\n\t\t{from} accept\n")
        }
    };
    Ok(Openings { input, forward })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_is_open() {
        let network = crate::gateway::fake::state().network;
        let closed = openings(&network, &Outside::default()).unwrap();
        assert!(closed.input.is_empty() && closed.forward.is_empty());
        let outside = Outside {
            dns: true,
            open_to: vec![
                "192.168.1.0/24".parse().unwrap(),
                "10.9.0.0/16".parse().unwrap(),
            ],
        };
        let open = openings(&network, &outside).unwrap();
        insta::assert_snapshot!(open.input + &open.forward);
    }

    #[test]
    fn the_maps() {
        let port = |protocol, listen, port| PublishedPort {
            protocol,
            listen,
            address: [10, 20, 0, 100].into(),
            port,
        };
        insta::assert_snapshot!(maps(&[
            port(Protocol::Tcp, 8080, 80),
            port(Protocol::Tcp, 15432, 5432),
        ]));
    }
}
