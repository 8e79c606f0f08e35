//! Ports of the node that lead to an appliance behind a managed WAN: a table of their own, which comes
//! with the first one and goes with the last.
//!
//! Only what arrives from elsewhere for an address of the node is led on: neither guests nor the
//! node's own programs come this way. Never takes a port that something of the node listens on.

use std::net::Ipv4Addr;

use api::entry::Protocol;
use engine::ports::{NodeNetworkSpec, PortError};
use engine::zone::Wan;

use crate::program::Program;

/// The table's name.
pub(super) fn table(spec: &NodeNetworkSpec) -> String {
    format!("{}_ports", super::ruleset::table(spec))
}

/// The table for these ports, or nothing when there is none to lead on.
fn render(spec: &NodeNetworkSpec, ports: &[(Protocol, u16)]) -> Option<String> {
    let Wan::Managed { bridge, subnet } = &spec.wan else {
        return None;
    };
    let appliance: Ipv4Addr = subnet.hosts().nth(1)?;
    let lan = &spec.bridge;
    let rules: String = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .filter_map(|protocol| {
            let numbers = ports.iter().filter(|(p, _)| *p == protocol);
            let numbers: Vec<String> = numbers.map(|(_, n)| n.to_string()).collect();
            (!numbers.is_empty()).then(|| {
                format!(
                    "\t\tiifname != {{ \"{lan}\", \"{bridge}\" }} fib daddr type local {protocol} dport {{ {} }} dnat ip to {appliance}\n",
                    numbers.join(", ")
                )
            })
        })
        .collect();
    (!rules.is_empty()).then(|| {
        format!(
            "\tcomment \"{}\"\n\tchain prerouting {{\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
             \t\tmeta nfproto != ipv4 accept\n{rules}\t}}\n",
            mark(ports)
        )
    })
}

/// Tells one set of ports from another.
fn mark(ports: &[(Protocol, u16)]) -> String {
    let words: Vec<String> = ports.iter().map(|(p, n)| format!("{p}/{n}")).collect();
    let text = words.join(" ");
    // A comment of a table has at most 128 bytes.
    if text.len() <= 100 {
        return text;
    }
    let digest = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{} ports, {digest:016x}", ports.len())
}

/// Makes exactly these ports lead on.
pub(super) async fn ensure(
    spec: &NodeNetworkSpec,
    ports: &[(Protocol, u16)],
) -> Result<(), PortError> {
    let table = table(spec);
    let Some(rules) = render(spec, ports) else {
        return super::load(&removed(&table), "close the node's published ports").await;
    };
    let listed = Program::new("read the node's published ports", "nft")
        .args(["list", "table", "inet", &table])
        .output()
        .await?;
    let text = String::from_utf8_lossy(&listed.stdout);
    if listed.status.success() && text.contains(&format!("\"{}\"", mark(ports))) {
        return Ok(());
    }
    let text = format!("{}table inet {table} {{\n{rules}}}\n", removed(&table));
    super::load(&text, "open the node's published ports").await
}

/// What removes the table, whether it is there or not.
pub(super) fn removed(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// Whether something on this machine listens on a port, by the kernel's own lists.
pub(super) async fn listens(protocol: Protocol, port: u16) -> Result<bool, PortError> {
    for version in ["", "6"] {
        let file = format!("/proc/net/{protocol}{version}");
        match tokio::fs::read_to_string(&file).await {
            Ok(text) if is_listed(&text, protocol, port) => return Ok(true),
            Ok(_) => {}
            // A kernel without IPv6 has no such list.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(PortError::new(format!("read {file}"), e)),
        }
    }
    Ok(false)
}

fn is_listed(text: &str, protocol: Protocol, port: u16) -> bool {
    // States of include/net/tcp_states.h; an unconnected UDP socket is "closed".
    let waiting = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    let wanted = format!(":{port:04X}");
    text.lines().skip(1).any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = words.next().unwrap_or_default();
        local.ends_with(&wanted) && words.nth(1) == Some(waiting)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> NodeNetworkSpec {
        let config = engine::Config::built_in().unwrap();
        config.zones.values().next().unwrap().node_network()
    }

    #[test]
    fn the_table() {
        let ports = [
            (Protocol::Tcp, 8080),
            (Protocol::Tcp, 15432),
            (Protocol::Udp, 5353),
        ];
        insta::assert_snapshot!(render(&spec(), &ports).unwrap());
        assert_eq!(render(&spec(), &[]), None);
        let mut bridged = spec();
        bridged.wan = Wan::Bridged {
            bridge: "vmbr0".parse().unwrap(),
        };
        assert_eq!(render(&bridged, &ports), None);
    }

    #[test]
    fn many_ports_have_a_short_mark_of_their_own() {
        let many: Vec<_> = (1000..1100).map(|n| (Protocol::Tcp, n)).collect();
        assert!(mark(&many).len() <= 100);
        assert_ne!(mark(&many), mark(&many[1..]));
    }

    #[test]
    fn who_listens_is_read_from_the_kernels_list() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
            0: 00000000:0016 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:1F90 0100007F:A000 01 00000000:00000000\n\
            2: 00000000:14E9 00000000:0000 07 00000000:00000000\n";
        for (protocol, port, listed) in [
            (Protocol::Tcp, 22, true),
            (Protocol::Tcp, 8080, false),
            (Protocol::Udp, 5353, true),
            (Protocol::Tcp, 5353, false),
        ] {
            assert_eq!(is_listed(text, protocol, port), listed, "{port}");
        }
    }
}
