//! Ports of the WAN side that lead to guests, as maps of the firewall. The one writer of them.
//!
//! Numbers and addresses only, so there is nothing to quote. The rules that look into the maps stand
//! in [`super::nftables`]; replies find their way back by connection tracking.

use api::entry::Protocol;
use wire::gateway::edge::PublishedPort;

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

#[cfg(test)]
mod tests {
    use super::*;

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
