//! A guest that lies about who it is, is heard by nobody. Tried from inside a sandbox as its root: frames of
//! its own making, and the addresses of an app taken over.

use serde_json::Value;

use super::controller::Controller;
use super::eventually;

/// The node's table over the ports of guests.
pub const PORT_RULES: &str = "proximity_guest_ports";

/// Sends one frame of each forbidden kind and prints how many.
const FORGE: &str = include_str!("forge.py");

/// Takes over the addresses of another guest in the way that a root of a guest has, then asks the gateway's
/// proxy for that guest's page, then its DNS. Prints what answered.
const IMPERSONATE: &str = r#"
ip link set eth0 down; ip link set eth0 address "$2"; ip link set eth0 up
ip address flush dev eth0; ip address add "$1/24" dev eth0; ip route add default via 10.20.0.1
for port in 53 80; do
  timeout 2 bash -c 'exec 3<>"/dev/tcp/10.20.0.1/$0"' "$port" 2>/dev/null && echo "$port answers"
done
true
"#;

/// A table of the test's own behind the product's rules: what a guest sent that is not its own, or to anybody
/// but the gateway, and yet passed.
fn witness(port: &str, own: &str, mac: &str, gateway_mac: &str) -> String {
    format!(
        r#"nft -f - <<END
table bridge witness {{
  chain judge {{
    ether daddr {gateway_mac} ether saddr {mac} ether type ip ip saddr {own} ip hdrlength 5 return
    ether saddr {mac} ether type arp arp saddr ip {own} arp saddr ether {mac} return
    counter comment "leaked"
  }}
  chain forward {{ type filter hook forward priority 300; iifname "{port}" jump judge; }}
  chain input {{ type filter hook input priority 300; iifname "{port}" counter comment "leaked"; }}
}}
END"#
    )
}

#[test]
fn a_guest_speaks_for_itself_alone() {
    let controller = Controller::up();
    let web = controller.deploy("web");
    let lab = controller.sandbox("lab");
    let den = controller.sandbox("den");
    let text = |guest: &Value, key: &str| guest[key].as_str().unwrap().to_owned();
    let (own, victim) = (text(&lab, "ip"), text(&web, "ip"));
    let address_of = |guest: &str, interface: &str| {
        let file = format!("/sys/class/net/{interface}/address");
        controller.exec(guest, ["cat", &file]).trim().to_owned()
    };
    let (mac, victim_mac) = (address_of("lab", "eth0"), address_of("web", "eth0"));
    let gateway_mac = address_of("prox-appliance", "eth1");
    let port = port_of(&lab);
    controller.script(&witness(&port, &own, &mac, &gateway_mac));

    let before = counted(&controller, PORT_RULES);
    let forge = [
        "python3",
        "-c",
        FORGE,
        &own,
        "10.20.0.1",
        &gateway_mac,
        &victim,
        &victim_mac,
    ];
    let sent: u64 = controller.exec("lab", forge).trim().parse().unwrap();
    // The kernel may still be at the last of them.
    eventually("every frame met a rule", || {
        counted(&controller, PORT_RULES) - before >= sent
    });
    assert_eq!(
        counted(&controller, "witness"),
        0,
        "{}",
        rules(&controller, "witness")
    );
    assert!(sent > 30, "{sent}");

    // Nobody was deceived: the gateway knows the app by its own address, serves its page, and keeps its lease.
    let neighbours = controller.exec("prox-appliance", ["ip", "neighbour", "show", "dev", "eth1"]);
    for line in neighbours.lines().filter(|line| line.contains("lladdr")) {
        let expected = match line.split(' ').next() {
            Some(address) if address == victim => &victim_mac,
            Some(address) if address == own => &mac,
            _ => continue,
        };
        assert!(line.contains(expected.as_str()), "{neighbours}");
    }
    assert_eq!(controller.page("web.prox.local").0, 200);
    let leases = controller.json(["lease", "list"]);
    assert_eq!(leases[0]["mac"], victim_mac, "{leases}");
    // And the guest's own words still count.
    controller.exec("lab", ["getent", "ahostsv4", "web.prox.local"]);

    // The whole disguise: not even the appliance listens.
    let disguise = format!("set -- {victim} {victim_mac}\n{IMPERSONATE}");
    assert_eq!(controller.inside(&den, &disguise), "");
    assert_eq!(controller.page("web.prox.local").0, 200);

    // Somebody takes the rules away. Without them such frames do pass: the witness is no blind one.
    controller.script("nft delete table bridge proximity_guest_ports");
    controller.exec("lab", forge.iter().copied().chain(["IPv6", "MPLS"]));
    assert!(counted(&controller, "witness") > 3);
    // That is said, and they come back with every guest in them.
    rules_come_back(&controller, &port);
}

fn rules_come_back(controller: &Controller, port: &str) {
    let status = controller.json(["status"]);
    assert!(
        status
            .to_string()
            .contains("rules of guest ports are missing"),
        "{status}"
    );
    controller.ok(["up"]);
    assert!(rules(controller, PORT_RULES).contains(port));
    eventually("the guest is heard again", || {
        let ask = ["getent", "ahostsv4", "web.prox.local"];
        let words = ["exec", "lab", "--timeout", "5s", "--"]
            .into_iter()
            .chain(ask);
        controller.run(words).code == 0
    });
}

/// The bridge port of a guest: its name follows from the id.
pub fn port_of(guest: &Value) -> String {
    let id = guest["id"].as_str().unwrap();
    format!("px0{}", id.chars().skip(2).take(12).collect::<String>())
}

fn rules(controller: &Controller, table: &str) -> String {
    controller.script(&format!("nft list table bridge {table}"))
}

/// Packets that met a counter of a table.
pub fn counted(controller: &Controller, table: &str) -> u64 {
    let words = rules(controller, table);
    let mut words = words.split_ascii_whitespace();
    let mut sum = 0;
    while words.any(|word| word == "packets") {
        sum += words.next().unwrap().parse::<u64>().unwrap();
    }
    sum
}
