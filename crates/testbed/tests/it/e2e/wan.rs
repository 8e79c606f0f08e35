//! Both ways out: a bridge that is there already, by DHCP, and the managed one.

use std::net::Ipv4Addr;

use testbed::network::{LEASE_FIRST, LEASE_LAST};

use super::controller::Controller;
use super::{closed, guest};

#[test]
fn the_wan_by_dhcp_on_a_given_bridge() {
    let controller =
        Controller::configured("zones: { default: { wan: { bridge: vmbr0, address: dhcp } } }\n");
    let bridge_before = bridge(&controller);
    controller.ok(["up"]);
    let wan = controller.wan_address();
    assert!((LEASE_FIRST..=LEASE_LAST).contains(&wan), "{wan}");
    assert_eq!(controller.infrastructure()["available"], true);
    controller.deploy("web");
    assert_eq!(goes_out_as(&controller), wan);
    assert_eq!(controller.page("web.prox.local").0, 200);
    closed::assert_closed(&controller, "web");

    // The bridge that is not ours is as it was, and stays when ours go.
    assert_eq!(bridge(&controller), bridge_before);
    controller.ok(["down", "--with-instances", "--yes"]);
    assert_eq!(bridge(&controller), bridge_before);
    assert_eq!(
        controller.script("ls /sys/class/net"),
        "lan0\nlo\nrouter0\nvmbr0\n"
    );
}

#[test]
fn the_managed_wan() {
    let controller = Controller::up();
    controller.deploy("web");
    // Twice translated: by the appliance, and by the node.
    assert_eq!(goes_out_as(&controller), testbed::network::NODE);
}

/// The given bridge and the node's way out, but for the check of a fresh address.
fn bridge(controller: &Controller) -> String {
    controller.script("ip -oneline address show dev vmbr0 | sed 's/ tentative//'; ip route")
}

/// The address from which the internet sees the guest `web`.
fn goes_out_as(controller: &Controller) -> Ipv4Addr {
    assert_eq!(
        guest::page(controller, "web", "8.8.8.8", "/"),
        "internet machine 8.8.8.8"
    );
    let seen = guest::page(controller, "web", "8.8.8.8", "/cgi-bin/client");
    seen.parse().unwrap()
}
