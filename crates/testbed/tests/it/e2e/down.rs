//! `down`: refused while there is something to lose, and then without a trace.

use std::collections::BTreeSet;

use super::controller::{Controller, finish};
use super::facts::Facts;

/// Names of all programs that run on the node, guests' too, once each.
fn programs(controller: &Controller) -> BTreeSet<String> {
    let running = controller.script("ps -e -o comm=");
    running.lines().map(str::to_owned).collect()
}

#[test]
fn down_leaves_no_trace_on_the_node() {
    let controller = Controller::start();
    // Forwarding was off before us, so it must be off again.
    controller.script("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let before = (Facts::of_node(&controller), programs(&controller));
    controller.ok(["up"]);
    assert_eq!(
        controller.script("cat /proc/sys/net/ipv4/ip_forward"),
        "1\n"
    );
    controller.deploy("web");
    controller.deploy("db");

    let with_apps = Facts::of_zone(&controller);
    let error = controller.refused(["down", "--yes"], "zone_has_instances");
    let detail = error["detail"].as_str().unwrap();
    assert!(detail.contains("web") && detail.contains("db"), "{error}");
    assert!(
        error["hint"].as_str().unwrap().contains("--with-instances"),
        "{error}"
    );
    // What deletes data asks, and without a terminal there is nobody to ask.
    let asked = controller.run(["down", "--with-instances"]);
    assert_ne!(asked.code, 0);
    assert!(asked.err.contains("--yes"), "{}", asked.err);
    with_apps.assert_same(&Facts::of_zone(&controller), "a refused down");
    assert_eq!(controller.page("web.prox.local").0, 200);

    controller.ok(["down", "--with-instances", "--yes"]);
    before.0.assert_same(&Facts::of_node(&controller), "down");
    assert_eq!(programs(&controller), before.1);
    assert_eq!(controller.json(["app", "list"]), serde_json::json!([]));
    assert_eq!(controller.script("ls -A /var/lib/proximity/guests"), "");
    // What is down already is no failure.
    assert_eq!(controller.json(["down", "--yes"]), serde_json::json!([]));

    // And up again, as if nothing had been.
    controller.ok(["up"]);
    controller.deploy("web");
    controller.ok(["app", "delete", "web", "--yes"]);
    controller.ok(["down"]);
    before
        .0
        .assert_same(&Facts::of_node(&controller), "the second down");
}

#[test]
fn down_leaves_what_is_not_ours() {
    let controller = Controller::up();
    controller.script(
        "nft add table inet mine; nft add chain inet mine c '{ type filter hook input priority 0; }'
         nft add rule inet mine c tcp dport 1 drop
         ip link add mine0 type bridge; ip link set mine0 alias 'proximity zone other'; ip link set mine0 up
         mkdir /var/lib/proximity/guests/notes; echo mine > /var/lib/proximity/guests/notes/file",
    );
    controller.ok(["up"]);
    controller.ok(["down"]);
    let left = controller.script(
        "nft list table inet mine | grep -c 'dport 1 drop'; cat /sys/class/net/mine0/ifalias /var/lib/proximity/guests/notes/file",
    );
    assert_eq!(left, "1\nproximity zone other\nmine\n");
    let status = finish(controller.proximity(["status"])).expect(0).text();
    assert!(!status.contains("notes"), "{status}");
}
