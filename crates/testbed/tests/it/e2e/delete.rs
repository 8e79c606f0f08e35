//! What is deleted leaves nothing: not on the node, not in the gateway, not in the records.

use super::controller::{Controller, GUESTS};
use super::eventually;
use super::facts::Facts;
use super::forgery::port_of;
use super::guest::{Answer, ask};

#[test]
fn a_deleted_app_leaves_nothing_and_gives_its_name_back() {
    let controller = Controller::up();
    controller.deploy("watcher");
    let before = Facts::of_zone(&controller).without("/operations");

    let app = controller.json(["app", "deploy", "nginx", "web", "--disk", "1G"]);
    let id = app["id"].as_str().unwrap();
    assert_eq!(controller.page("web.prox.local").0, 200);
    assert_ne!(
        controller.script(&format!("grep -c {GUESTS}/{id}/disk /proc/mounts")),
        "0\n"
    );
    controller.ok(["app", "delete", "web", "--yes"]);

    before.assert_same(
        &Facts::of_zone(&controller).without("/operations"),
        "an app that was deleted",
    );
    assert_eq!(controller.page("web.prox.local").0, 404);
    assert_eq!(
        ask(&controller, "watcher", "web.prox.local"),
        Answer::NoSuchName
    );
    controller.refused(["app", "show", "web"], "unknown_instance");
    controller.refused(["app", "delete", "web", "--yes"], "unknown_instance");

    // The name is free at once; the address rests.
    let again = controller.deploy("web");
    assert_ne!(again["ip"], app["ip"]);
    assert_eq!(controller.page("web.prox.local").0, 200);
}

#[test]
fn an_app_can_be_deleted_in_the_middle_of_its_deploy() {
    let controller = Controller::up();
    let before = Facts::of_zone(&controller).without("/operations");
    for step in ["publish", "create", "start", "agent", "ready", "route"] {
        let from = controller.log().len();
        controller.ok(["app", "deploy", "nginx", "web", "--no-wait"]);
        controller.until_step(from, "instance web", step);
        controller.ok(["app", "delete", "web", "--yes"]);
        let now = Facts::of_zone(&controller).without("/operations");
        before.assert_same(&now, &format!("an app that was deleted at step {step}"));
    }
}

#[test]
fn a_guest_that_somebody_removed_is_said_to_be_lost() {
    let controller = Controller::up();
    let before = Facts::of_zone(&controller).without("/operations");
    let app = controller.deploy("web");
    let id = app["id"].as_str().unwrap();
    controller.script(&format!(
        "lxc-stop -P {GUESTS} -n {id} -k; umount {GUESTS}/{id}/disk; rm -r {GUESTS}/{id}"
    ));
    let told = controller.run(["app", "restart", "web"]).expect(1).err;
    assert!(told.contains("is gone from the node"), "{told}");
    let app = controller.app("web");
    assert_eq!(app["status"], "lost", "{app}");
    assert!(
        app["failure"]["next"]
            .as_str()
            .unwrap()
            .contains("proximity app delete web"),
        "{app}"
    );
    controller.ok(["app", "delete", "web", "--yes"]);
    // What its port was allowed goes with the next look at the zone, which follows at once.
    eventually("its port is closed", || {
        let rules = controller.script("nft list table bridge proximity_guest_ports");
        !rules.contains(&port_of(&app))
    });
    before.assert_same(
        &Facts::of_zone(&controller).without("/operations"),
        "a lost app that was deleted",
    );
}

#[test]
fn a_delete_that_is_stuck_says_why_and_goes_on_later() {
    let controller = Controller::up();
    let before = Facts::of_zone(&controller).without("/operations");
    let app = controller.deploy("web");
    let work = format!("{GUESTS}/{}/in-the-way", app["id"].as_str().unwrap());
    controller.script(&format!("mkdir {work}; mount -t tmpfs in-the-way {work}"));
    let told = controller
        .run(["app", "delete", "web", "--yes"])
        .expect(1)
        .err;
    assert!(
        told.contains("step:  destroy") && told.contains(&work),
        "{told}"
    );
    assert_eq!(controller.app("web")["status"], "deleting");
    // Neither its name nor its address is given to somebody else meanwhile.
    controller.refused(["app", "deploy", "nginx", "web"], "name_taken");
    assert_eq!(controller.page("web.prox.local").0, 404);

    controller.script(&format!("umount {work}"));
    // Nobody has to ask again.
    eventually("the app is gone", || {
        controller.api("GET", "/apps/web", None).0 == 404
    });
    let now = Facts::of_zone(&controller).without("/operations");
    before.assert_same(&now, "an app that was deleted at the second attempt");
}
