//! `up` from what an earlier attempt, a crash, or somebody else left.

use super::controller::{Controller, GUESTS};
use super::facts::Facts;

#[test]
fn up_goes_on_from_every_half_done_state() {
    let mut controller = Controller::start();
    // A bridge that carries our mark, and nothing else.
    controller.script(
        "ip link add proximity-lan type bridge; ip link set proximity-lan alias 'proximity zone default'",
    );
    controller.ok(["up"]);
    assert_eq!(controller.infrastructure()["available"], true);
    let appliance = controller.appliance_id();

    // The appliance was ended behind our back.
    let stop = format!("lxc-stop -P {GUESTS} -n {appliance} -k");
    controller.script(&stop);
    let facts = controller.infrastructure();
    assert_eq!(facts["available"], false);
    assert_eq!(facts["appliance_state"], "stopped");
    controller.ok(["up"]);
    assert_eq!(controller.infrastructure()["available"], true);

    // A crash while the appliance was made: it is there and not complete.
    controller.end(rustix::process::Signal::TERM);
    controller.script(&format!(
        "{stop}; cd {GUESTS}/{appliance}; umount disk; rm -rf config disk disk.img
         sed -i 's/\"complete\": true/\"complete\": false/' guest.json"
    ));
    controller.serve();
    controller.until_available();
    assert_eq!(controller.appliance_id(), appliance);

    // A crash before the new guest stood at its place, and one in the middle of removing the old.
    controller.end(rustix::process::Signal::TERM);
    controller.script(&format!(
        "{stop}; cd {GUESTS}/{appliance}; umount disk; cd ..; rm -rf {appliance}
         mkdir -p {appliance}.new {appliance}.gone; touch {appliance}.new/guest.new {appliance}.gone/guest.json"
    ));
    controller.serve();
    controller.until_available();
    assert_eq!(
        controller.script(&format!("ls {GUESTS}")),
        format!("{appliance}\n")
    );

    // A bridge without an appliance, links and rules gone.
    controller.script(&format!(
        "{stop}; nft flush ruleset; ip link del proximity-lan; ip link del proximity-wan"
    ));
    controller.ok(["up"]);
    assert_eq!(controller.infrastructure()["available"], true);
    // A bridge whose making was cut off before it got its alias.
    controller.end(rustix::process::Signal::KILL);
    let alias = "ip -oneline link show dev proximity-lan | grep -o 'alias .*'";
    let marked = controller.script(alias);
    controller.script("ip link set dev proximity-lan alias '' down");
    controller.serve();
    controller.ok(["up"]);
    assert_eq!(controller.script(alias), marked);

    controller.deploy("web");
    assert_eq!(controller.page("web.prox.local").0, 200);
}

#[test]
fn an_interface_of_somebody_else_is_left_alone() {
    let controller = Controller::start();
    controller.script(
        "ip link add proximity-lan type bridge; ip address add 10.9.9.9/24 dev proximity-lan",
    );
    let before = Facts::of_node(&controller);
    let error = controller.refused(["up"], "conflict");
    let detail = error["detail"].as_str().unwrap();
    assert!(
        detail.contains("proximity-lan") && detail.contains("mark"),
        "{error}"
    );
    before.assert_same(&Facts::of_node(&controller), "a refused up");
    // There is nothing of ours to take down, and nothing else is taken down.
    assert_eq!(controller.json(["down", "--yes"]), serde_json::json!([]));
    before.assert_same(&Facts::of_node(&controller), "a down of nothing");
}

#[test]
fn a_subnet_that_the_node_uses_is_refused() {
    let controller = Controller::configured("zones: { default: { subnet: 192.168.50.0/24 } }\n");
    let before = Facts::of_node(&controller);
    let error = controller.refused(["up"], "conflict");
    let detail = error["detail"].as_str().unwrap();
    assert!(
        detail.contains("192.168.50.0/24 overlaps 192.168.50.10/24 on interface vmbr0"),
        "{error}"
    );
    before.assert_same(&Facts::of_node(&controller), "a refused up");
}

#[test]
fn a_bad_configuration_is_refused_with_its_key() {
    let controller = Controller::on_a_host();
    for (config, key, hint) in [
        (
            "zones: { default: { subnte: 10.20.0.0/24 } }",
            "subnte",
            "subnet",
        ),
        (
            "zones: { default: { subnet: 10.20.0.0/16 } }",
            "zones.default.subnet",
            "/24",
        ),
        (
            "zones: { default: { subnet: 8.8.8.0/24 } }",
            "zones.default.subnet",
            "private",
        ),
        (
            "zones: { default: { wan: { managed: false } } }",
            "zones.default.wan",
            "bridge",
        ),
        (
            "zones: { default: { node: pve1 } }",
            "zones.default.node",
            "local",
        ),
        ("zones: { a: {}, b: {} }", "overlaps", "network of its own"),
        (
            "nodes: { pve1: { backend: proxmox } }",
            "nodes.pve1.backend",
            "lxc",
        ),
        (
            "server: { listen: 0.0.0.0:8765 }",
            "server.listen",
            "127.0.0.1",
        ),
        ("zones: [", "config.yml", "config check"),
    ] {
        controller.write_etc("config.yml", config);
        let before = Facts::of_node(&controller);
        for words in [vec!["config", "check"], vec!["serve"]] {
            let ran = controller.run(words).expect(1);
            let (said, next) = ran
                .err
                .split_once("hint:")
                .unwrap_or_else(|| panic!("{config}: {}", ran.err));
            assert!(said.contains(key), "{config}: {said}");
            assert!(next.contains(hint), "{config}: {next}");
        }
        before.assert_same(&Facts::of_node(&controller), config);
    }
}
