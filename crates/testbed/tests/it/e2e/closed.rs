//! The node and its LAN are closed to guests; the internet and the zone's own names are open.

use serde_json::Value;

use super::controller::Controller;
use super::guest::{Answer, ask, reachable};

/// What the guest may reach, by which its way of trying is known to work.
const OPEN: &str = "8.8.8.8/80";

#[test]
fn a_guest_reaches_the_internet_and_nothing_of_the_node() {
    let controller = Controller::up();
    controller.deploy("web");
    assert_closed(&controller, "web");
    names_resolve(&controller);
}

/// Neither by any of the node's addresses, nor past the appliance, nor by a link-local address, nor over
/// a route that the guest makes for itself.
pub fn assert_closed(controller: &Controller, guest: &str) {
    let node = node_addresses(controller, "-4");
    assert!(node.contains(&"192.168.50.10".to_owned()), "{node:?}");
    let mut targets = vec![
        OPEN.to_owned(),
        "192.168.50.20/80".to_owned(),
        "192.168.50.1/80".to_owned(),
    ];
    targets.extend(
        node.iter()
            .flat_map(|address| [format!("{address}/8006"), format!("{address}/8765")]),
    );
    // What is open to the outside on the appliance is closed to guests: management and relay.
    targets.extend(["10.20.0.1/9090", "10.20.0.1/39384"].map(str::to_owned));
    assert_eq!(reachable(controller, guest, &targets), [OPEN]);

    // The bridge has no IPv6 address; those of other interfaces of the node, and the one that the bridge
    // would have, are tried all the same. The guest's own shows that they could be reached.
    assert_eq!(
        controller.script("ip -6 -oneline address show dev proximity-lan"),
        ""
    );
    let own_address = "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
        ip -6 address add fe80::e2e/64 dev eth0 nodad";
    controller.exec(guest, ["sh", "-euc", own_address]);
    let own = controller.exec(
        guest,
        ["ip", "-json", "-6", "address", "show", "dev", "eth0"],
    );
    let own = addresses(&own)
        .first()
        .map(|address| format!("{address}%eth0/80"))
        .unwrap();
    let mut targets = vec![own.clone()];
    let mut link_local = node_addresses(controller, "-6");
    link_local.extend(would_be_link_local(controller));
    targets.extend(
        link_local
            .iter()
            .map(|address| format!("{address}%eth0/8006")),
    );
    assert!(targets.len() > 3, "{targets:?}");
    assert_eq!(reachable(controller, guest, &targets), [own]);

    // A guest is root of its own network: it says that the node is on its link.
    for address in node.iter().filter(|address| !address.starts_with("127.")) {
        controller.exec(guest, ["ip", "route", "add", address, "dev", "eth0"]);
    }
    let targets: Vec<_> = node
        .iter()
        .map(|address| format!("{address}/8006"))
        .collect();
    assert_eq!(reachable(controller, guest, &targets), Vec::<String>::new());
    let neighbours = controller.exec(guest, ["ip", "-json", "neighbour", "show"]);
    let neighbours: Value = serde_json::from_str(&neighbours).unwrap();
    let answered: Vec<_> = neighbours
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry.get("lladdr").is_some())
        .map(|entry| entry["dst"].as_str().unwrap())
        .filter(|address| !address.starts_with("fe80"))
        .collect();
    assert_eq!(answered, ["10.20.0.1"], "who answered ARP: {neighbours}");
    for address in node.iter().filter(|address| !address.starts_with("127.")) {
        controller.exec(guest, ["ip", "route", "del", address, "dev", "eth0"]);
    }
}

/// Every address of the node of this family but those of its loopback.
fn node_addresses(controller: &Controller, family: &str) -> Vec<String> {
    let mut found = addresses(&controller.script(&format!("ip -json {family} address")));
    found.retain(|address| address != "127.0.0.1" && address != "::1");
    found
}

fn addresses(json: &str) -> Vec<String> {
    let links: Value = serde_json::from_str(json).unwrap();
    let of_link = |link: &Value| link["addr_info"].as_array().cloned().unwrap_or_default();
    let all = links.as_array().unwrap().iter().flat_map(of_link);
    all.map(|entry| entry["local"].as_str().unwrap_or_default().to_owned())
        .filter(|address| !address.is_empty())
        .collect()
}

/// The addresses that the kernel would make of the bridges' MACs (RFC 4291, appendix A).
fn would_be_link_local(controller: &Controller) -> Vec<String> {
    let macs = controller.script("cat /sys/class/net/proximity-*/address");
    macs.lines()
        .map(|mac| {
            let bytes: Vec<u8> = mac
                .split(':')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect();
            let [a, b, c, d, e, f] = bytes.try_into().unwrap();
            let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
            let halves = [
                0xfe80,
                0,
                0,
                0,
                word(a ^ 2, b),
                word(c, 0xff),
                word(0xfe, d),
                word(e, f),
            ];
            std::net::Ipv6Addr::from(halves).to_string()
        })
        .collect()
}

/// DNS questions that left the appliance so far, as the node forwards them.
fn forwarded_questions(controller: &Controller) -> u64 {
    let rules = controller.script("nft --json list chain inet e2e questions");
    let rules: Value = serde_json::from_str(&rules).unwrap();
    let entries = rules["nftables"].as_array().unwrap();
    let mut parts = entries
        .iter()
        .filter_map(|entry| entry["rule"]["expr"].as_array())
        .flatten();
    parts
        .find_map(|part| part["counter"]["packets"].as_u64())
        .unwrap()
}

fn names_resolve(controller: &Controller) {
    controller.script(
        "nft add table inet e2e
         nft add chain inet e2e questions '{ type filter hook forward priority -300; }'
         nft add rule inet e2e questions ip daddr '{ 8.8.8.8, 1.1.1.1 }' udp dport 53 counter",
    );
    let address = controller.app("web")["ip"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    for (name, answer) in [
        ("web.prox.local", Answer::Address(address)),
        ("gateway.prox.local", Answer::Address([10, 20, 0, 1].into())),
        ("unknown.prox.local", Answer::NoSuchName),
        ("web.unknown.prox.local", Answer::NoSuchName),
    ] {
        assert_eq!(ask(controller, "web", name), answer, "{name}");
    }
    assert_eq!(
        forwarded_questions(controller),
        0,
        "names of the zone are nobody else's business"
    );

    assert_eq!(
        ask(controller, "web", "internet.test"),
        Answer::Address([8, 8, 8, 8].into())
    );
    assert!(forwarded_questions(controller) > 0);
    assert_eq!(ask(controller, "web", "nowhere.test"), Answer::NoSuchName);
    // By the guest's own resolver too.
    let found = controller.exec("web", ["getent", "ahostsv4", "second.internet.test"]);
    assert!(found.starts_with("1.1.1.1 "), "{found}");
}
