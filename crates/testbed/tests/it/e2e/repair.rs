//! What dies or is taken away is put right by the controller without anybody asking, or said.

use std::time::Instant;

use serde_json::Value;

use super::controller::{Controller, GUESTS};
use super::facts::Facts;
use super::guest::{Answer, ask};
use super::{agreement, eventually};

/// Names, leases and routes as the zone's appliance has them.
fn gateway(controller: &Controller) -> Vec<Value> {
    let lists = [
        "/appliance/dhcp/leases",
        "/appliance/dns/records",
        "/appliance/vhosts",
    ];
    let mut all = lists.map(|list| controller.api("GET", list, None).1);
    for list in &mut all {
        let mut nothing = Vec::new();
        let entries = list.as_array_mut().unwrap_or(&mut nothing);
        for entry in entries.iter_mut() {
            entry.as_object_mut().unwrap().remove("connections");
        }
        // dnsmasq keeps its leases in an order of its own.
        entries.sort_by_key(|e| ["ip", "name", "host"].map(|key| e[key].to_string()));
    }
    all.to_vec()
}

/// Waits until all is as it was, and says how long that took.
fn until_repaired(controller: &Controller, what: &str, before: &[Value]) {
    let began = Instant::now();
    eventually(&format!("{what} is repaired"), || {
        controller.infrastructure()["available"] == true
            && controller.page("web.prox.local").0 == 200
            && gateway(controller) == before
    });
    println!(
        "{what}: repaired within {:.1} s",
        began.elapsed().as_secs_f64()
    );
    eventually("nothing drifts", || {
        let status = controller.json(["status"]);
        status["drift"].as_array().unwrap().is_empty()
    });
}

#[test]
fn what_dies_in_an_appliance_and_the_appliance_itself_come_back() {
    let controller = Controller::up();
    let files = agreement::files(&controller);
    controller.deploy("web");
    controller.deploy("watcher");
    let before = gateway(&controller);
    let in_appliance = |script: &str| controller.exec("prox-appliance", ["sh", "-c", script]);

    in_appliance("systemctl stop caddy dnsmasq cockpit.socket; nft delete table inet proximity");
    let status = controller.ok(["status"]);
    assert!(status.contains("caddy is inactive"), "{status}");
    assert!(
        status.contains("next look in") || status.contains("now: "),
        "{status}"
    );
    until_repaired(&controller, "a dead service", &before);

    // Killed, systemd brings it back; stopped, only the controller does.
    in_appliance("systemctl kill --signal=KILL proximity-relay");
    until_repaired(&controller, "a killed relay", &before);
    in_appliance("systemctl stop proximity-relay");
    let drift = controller.json(["status"])["drift"].clone();
    assert_eq!(
        (&drift[0]["kind"], &drift[0]["name"]),
        (&"zone".into(), &"default".into())
    );
    assert!(
        drift[0]["differs"][0]
            .as_str()
            .unwrap()
            .contains("relay does not answer"),
        "{drift}"
    );
    until_repaired(&controller, "a stopped relay", &before);

    let appliance = controller.appliance_id();
    controller.script(&format!("lxc-stop -P {GUESTS} -n {appliance} -k"));
    until_repaired(&controller, "a killed appliance", &before);

    // All of it by hand, and the node's rules and one of its bridges with it.
    controller.script(&format!(
        "lxc-stop -P {GUESTS} -n {appliance} -k; umount {GUESTS}/{appliance}/disk; rm -r {GUESTS}/{appliance}
         nft flush ruleset; ip link del proximity-wan"
    ));
    until_repaired(&controller, "a deleted appliance", &before);
    assert_eq!(controller.appliance_id(), appliance);
    assert!(matches!(
        ask(&controller, "watcher", "web.prox.local"),
        Answer::Address(_)
    ));
    agreement::check(&controller, &files, "after all repairs");
}

#[test]
fn a_guest_without_a_record_is_told_of_and_left_alone() {
    let mut controller = Controller::up();
    let app = controller.deploy("web");
    let id = app["id"].as_str().unwrap();
    // The record is lost, the guest goes on: as after a restore of an older database.
    controller.end(rustix::process::Signal::TERM);
    controller.script(
        "mkdir /etc/proximity/aside; mv /var/lib/proximity/proximity.db* /etc/proximity/aside",
    );
    controller.serve();
    let stranger = format!("{GUESTS}/i-00000000000000aa");
    controller.script(&format!(
        "mkdir {stranger}; echo '{{}}' > {stranger}/guest.json"
    ));
    let orphans = controller.json(["orphan", "list"]);
    let of = |id: &str| {
        let mut orphans = orphans.as_array().unwrap().iter();
        orphans.find(|orphan| orphan["id"] == id).cloned()
    };
    let orphan = of(id).unwrap();
    assert_eq!(
        (&orphan["name"], &orphan["state"]),
        (&"web".into(), &"running".into())
    );
    assert_eq!(orphans.as_array().unwrap().len(), 2, "{orphans}");
    let status = controller.ok(["status"]);
    assert!(
        status.contains("proximity orphan remove") && status.contains(id),
        "{status}"
    );

    // No second appliance is put beside the one that runs.
    let refused = controller.refused(["up"], "conflict");
    assert!(
        refused["hint"].as_str().unwrap().contains("orphan remove"),
        "{refused}"
    );

    // Neither is removed without a word, and what does not carry our mark not even with one.
    let ran = controller.run(["orphan", "remove", id]).expect(2);
    assert!(ran.err.contains("--yes"), "{}", ran.err);
    controller.refused(
        ["orphan", "remove", "i-00000000000000aa", "--yes"],
        "unknown_orphan",
    );
    let still =
        |controller: &Controller| controller.script(&format!("lxc-info -P {GUESTS} -n {id} -s -H"));
    assert_eq!(still(&controller), "RUNNING\n");
    for orphan in orphans.as_array().unwrap() {
        controller.ok(["orphan", "remove", orphan["id"].as_str().unwrap(), "--yes"]);
    }
    assert_eq!(controller.json(["orphan", "list"]), serde_json::json!([]));
    assert_eq!(
        controller.script(&format!(
            "ls {GUESTS}; grep -c {GUESTS} /proc/mounts || true"
        )),
        "i-00000000000000aa\n0\n"
    );
    let trail = controller.ok(["audit", "tail"]);
    assert!(trail.contains("orphan.remove"), "{trail}");
}

#[test]
fn everything_that_ran_runs_again_after_the_node_restarted() {
    let mut controller = Controller::up();
    let files = agreement::files(&controller);
    let web = controller.deploy("web");
    controller.exec("web", ["sh", "-c", "echo kept > /var/www/html/index.html"]);
    controller.deploy("idle");
    controller.ok(["app", "stop", "idle"]);
    let sandbox = controller.sandbox("box");
    let before = gateway(&controller);

    controller.end(rustix::process::Signal::KILL);
    controller.host.reboot().unwrap();
    controller.serve();
    let began = Instant::now();
    eventually("the app answers", || {
        controller.infrastructure()["available"] == true
            && controller.page("web.prox.local") == (200, "kept\n".to_owned())
    });
    eventually("the sandbox runs", || {
        controller
            .run(["exec", "box", "--timeout", "5s", "--", "true"])
            .code
            == 0
    });
    println!("after a restart: {:.1} s", began.elapsed().as_secs_f64());
    for (name, was) in [("web", &web), ("idle", &Value::Null)] {
        let app = controller.app(name);
        if name == "idle" {
            assert_eq!(app["status"], "stopped", "{app}");
        } else {
            assert_eq!((&app["ip"], &app["id"]), (&was["ip"], &was["id"]));
        }
    }
    let (_, now) = controller.api("GET", "/sandboxes/box", None);
    assert_eq!(now["expires_at"], sandbox["expires_at"]);
    // Whoever asked for an address after the restart has a lease from then.
    let without_ends = |mut lists: Vec<Value>| {
        for lease in lists[0].as_array_mut().into_iter().flatten() {
            lease.as_object_mut().unwrap().remove("expires_at");
        }
        lists
    };
    let before = without_ends(before);
    let back = || without_ends(gateway(&controller));
    let deadline = Instant::now() + super::PATIENCE;
    while back() != before && Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(back(), before, "names, leases and routes are back");
    // A disk is mounted when its guest starts; then it is all as it would have been.
    controller.ok(["app", "start", "idle"]);
    agreement::check(&controller, &files, "after a restart of the node");
    let ended = Facts::of_node(&controller);
    // And the next start changes nothing.
    controller.crash();
    controller.until_available();
    ended.assert_same(&Facts::of_node(&controller), "a restart of the controller");
}
