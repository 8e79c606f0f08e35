//! The controller is killed as by a power cut, at any moment, and comes back: everything that was asked
//! for is brought to its end, nothing is left over and nothing is lost. These kills hit anywhere in a step; those
//! of [`super::walk`] hit between each two records.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::controller::Controller;
use super::facts::Facts;
use super::{eventually, some_moment};

/// Longer than a step of a deploy takes on an idle machine.
const STEP: Duration = Duration::from_millis(120);

/// Waits until no operation is under way and returns them all.
fn all_done(controller: &Controller) -> Vec<Value> {
    let operations = || {
        controller
            .api("GET", "/operations", None)
            .1
            .as_array()
            .unwrap()
            .clone()
    };
    eventually("every operation ends", || {
        operations()
            .iter()
            .all(|operation| operation["status"] != "running")
    });
    operations()
}

#[test]
fn up_and_down_survive_a_crash_at_any_moment() {
    let mut controller = Controller::start();
    let before = Facts::of_node(&controller);
    for round in 0..3 {
        assert_eq!(controller.api("POST", "/zones/default/up", None).0, 202);
        let moment = some_moment(Duration::from_millis(1200));
        thread::sleep(moment);
        controller.crash();
        eventually("the zone is up", || {
            controller.infrastructure()["available"] == true
        });
        all_done(&controller);

        let down = json!({ "with_instances": true });
        assert_eq!(
            controller.api("POST", "/zones/default/down", Some(&down)).0,
            202
        );
        thread::sleep(some_moment(Duration::from_millis(1500)));
        controller.crash();
        all_done(&controller);
        let what = format!("round {round}, up cut after {moment:?}");
        before.assert_same(&Facts::of_node(&controller), &what);
    }
}

#[test]
fn a_deploy_survives_a_crash_in_every_step() {
    let mut controller = Controller::up();
    let mut addresses = Vec::new();
    for step in ["publish", "create", "start", "agent", "ready", "route"] {
        let name = format!("at-{step}");
        let from = controller.log().len();
        controller.ok(["app", "deploy", "nginx", &name, "--no-wait"]);
        controller.until_step(from, &format!("instance {name}"), step);
        thread::sleep(some_moment(STEP / 2));
        controller.crash();
        let app = controller.until_running(&name);
        assert_eq!(
            controller.page(&format!("{name}.prox.local")).0,
            200,
            "{app}"
        );
        addresses.push(app["ip"].as_str().unwrap().to_owned());
    }
    let operations = all_done(&controller);
    assert!(
        operations
            .iter()
            .all(|operation| operation["status"] == "succeeded"),
        "{operations:?}"
    );
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 6);
    let leases = controller.api("GET", "/appliance/dhcp/leases", None).1;
    assert_eq!(leases.as_array().unwrap().len(), 6, "{leases}");
}

#[test]
fn sandboxes_survive_crashes_at_any_moment() {
    let mut controller = Controller::up();
    let before = Facts::of_zone(&controller).without("/operations");
    for round in 0..4 {
        let names = ["one", "two"];
        for name in names {
            let request = json!({ "name": name, "ttl_s": 3600 });
            assert_eq!(controller.api("POST", "/sandboxes", Some(&request)).0, 202);
        }
        let made = some_moment(Duration::from_millis(600));
        thread::sleep(made);
        controller.crash();
        for name in names {
            eventually(&format!("{name} runs"), || {
                let path = format!("/sandboxes/{name}");
                controller.api("GET", &path, None).1["status"] == "running"
            });
            assert_eq!(controller.exec(name, ["hostname"]).trim(), name);
        }
        for name in names {
            let path = format!("/sandboxes/{name}");
            assert_eq!(controller.api("DELETE", &path, None).0, 202);
        }
        thread::sleep(some_moment(Duration::from_millis(300)));
        controller.crash();
        eventually("both are gone", || {
            let left = controller.api("GET", "/sandboxes", None).1;
            left.as_array().unwrap().is_empty()
        });
        let operations = all_done(&controller);
        let failed = |operation: &&Value| operation["status"] != "succeeded";
        assert_eq!(operations.iter().find(failed), None);
        let now = Facts::of_zone(&controller).without("/operations");
        before.assert_same(&now, &format!("round {round}, made until {made:?}"));
    }
}
