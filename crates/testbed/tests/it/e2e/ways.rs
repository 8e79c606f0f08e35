//! Guests of the controller's own machine are reached inside their own network, and need no appliance for
//! it; where the node says so, and on every other node, the relay is the way.

use super::controller::Controller;

/// Stops everything in the appliance where it is, or lets it go on: nobody there answers meanwhile.
fn freeze(controller: &Controller, word: &str) {
    let appliance = controller.appliance_id();
    controller.script(&format!(
        "lxc-{word} -P /var/lib/proximity/guests -n {appliance}"
    ));
}

#[test]
fn a_guest_beside_the_controller_needs_no_appliance_to_be_reached() {
    let controller = Controller::up();
    controller.deploy("web");
    controller.sandbox("lab");
    freeze(&controller, "freeze");
    for guest in ["web", "lab"] {
        assert_eq!(controller.exec(guest, ["echo", "here"]), "here\n");
    }
    let script = "head -c 300000 /dev/urandom > /dev/shm/sent && $P cp /dev/shm/sent lab:/root/sent \
        && $P cp lab:/root/sent /dev/shm/back && cmp /dev/shm/sent /dev/shm/back";
    let program = super::programs::proximity().display().to_string();
    controller.script(&script.replace("$P", &program));
    freeze(&controller, "unfreeze");
}

#[test]
fn an_operator_can_have_every_guest_reached_through_the_relay() {
    let controller = Controller::up_through_relay();
    controller.sandbox("lab");
    controller.exec("lab", ["true"]);
    freeze(&controller, "freeze");
    let stuck = controller.run(["exec", "lab", "--timeout", "1s", "--", "touch", "/root/ran"]);
    freeze(&controller, "unfreeze");
    assert_ne!(stuck.code, 0, "{}", stuck.err);
    super::eventually("the relay leads to the guest again", || {
        controller.run(["exec", "lab", "--", "true"]).code == 0
    });
}
