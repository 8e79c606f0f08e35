//! `up` from nothing, and what `infrastructure` says when a part of it breaks.

use serde_json::{Value, json};

use super::controller::{Controller, finish};

/// The states of a zone that is well.
fn all_well() -> Value {
    json!({
        "dnsmasq": "active", "iptables": "configured", "caddy": "active", "cockpit": "active",
        "relay": "active",
    })
}

#[test]
fn a_zone_comes_up_from_nothing_in_four_steps() {
    let controller = Controller::start();
    let down = controller.infrastructure();
    assert_eq!(down["available"], false);

    let operations = controller.json(["up"]);
    let events = operations[0]["events"].as_array().unwrap();
    let steps: Vec<_> = events
        .iter()
        .filter(|event| event["state"] == "done")
        .map(|event| event["step"].as_str().unwrap())
        .collect();
    assert_eq!(
        steps,
        ["bridge", "appliance", "services", "health"],
        "{operations}"
    );
    let log = controller.log();
    let places = steps.map_done(&log);
    assert!(places.is_sorted(), "{places:?}");

    let facts = controller.json(["infrastructure"]);
    assert_eq!(facts["available"], true, "{facts}");
    assert_eq!(facts["services"], all_well());
    assert_eq!(facts["bridge_name"], "proximity-lan");
    assert_eq!(facts["gateway_ip"], "10.20.0.1");
    assert_eq!(facts["dns_domain"], "prox.local");
    assert_eq!(facts["appliance_wan_ip"], "10.19.255.2");
    assert_eq!(facts["connected_apps"], 0);
    assert_eq!(
        controller.api("GET", "/system/infrastructure", None),
        (200, facts.clone())
    );
    over_tcp(&controller, &facts);
}

trait Places {
    /// Where the log says of each step that it is done.
    fn map_done(&self, log: &str) -> Vec<usize>;
}

impl Places for Vec<&str> {
    fn map_done(&self, log: &str) -> Vec<usize> {
        let line = |step: &&str| format!("object=zone default step=\"{step}\" state=Done");
        self.iter()
            .map(|step| log.find(&line(step)).unwrap())
            .collect()
    }
}

/// Whoever comes over TCP needs the token, from loopback too.
fn over_tcp(controller: &Controller, facts: &Value) {
    let url = "http://127.0.0.1:8765/api/v1/system/infrastructure";
    let (status, refused) = controller.page_at(url, &[]);
    assert_eq!(status, 401);
    let refused: Value = serde_json::from_str(&refused).unwrap();
    assert_eq!(refused["code"], "not_authenticated");
    assert!(
        refused["hint"]
            .as_str()
            .unwrap()
            .contains("curl --unix-socket"),
        "{refused}"
    );
    let (status, _) = controller.page_at(url, &["--header", "Authorization: Bearer prox_guess"]);
    assert_eq!(status, 401);

    let token_file = controller.host.state().join("node/admin.token");
    let token = std::fs::read_to_string(token_file)
        .unwrap()
        .trim()
        .to_owned();
    let (status, told) = controller.page_at(
        url,
        &["--header", &format!("Authorization: Bearer {token}")],
    );
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), *facts);
    let mode = controller
        .script("stat -c %a /var/lib/proximity/admin.token /var/lib/proximity/proximity.sock");
    assert_eq!(mode, "600\n600\n");

    // The command line over TCP, with the token in its environment.
    let mut command = controller.proximity(["--json", "infrastructure"]);
    command
        .env("PROXIMITY_URL", "http://127.0.0.1:8765")
        .env("PROXIMITY_TOKEN", token);
    assert_eq!(finish(command).expect(0).json(), *facts);
}

#[test]
fn what_breaks_is_told_at_once_and_up_mends_it() {
    let controller = Controller::up();
    let appliance = "prox-appliance";

    controller.exec(appliance, ["systemctl", "stop", "dnsmasq"]);
    let facts = controller.json(["infrastructure"]);
    assert_eq!(facts["available"], false);
    assert_eq!(facts["services"]["dnsmasq"], "inactive");
    assert_eq!(facts["problems"], json!(["dnsmasq is inactive"]));
    controller.ok(["up"]);
    assert_eq!(controller.infrastructure()["services"], all_well());

    controller.exec(appliance, ["nft", "flush", "ruleset"]);
    let facts = controller.infrastructure();
    assert_eq!(facts["available"], false);
    assert_eq!(facts["services"]["iptables"], "missing");
    controller.ok(["up"]);
    let facts = controller.infrastructure();
    assert_eq!(
        (&facts["available"], &facts["services"]),
        (&json!(true), &all_well())
    );

    controller.exec(
        appliance,
        ["systemctl", "kill", "--signal=KILL", "proximity-relay"],
    );
    // Nobody asks for it: systemd brings it back, and it comes back with its state.
    let facts = controller.until_available();
    assert_eq!(facts["services"], all_well());

    controller.script("ip link set proximity-lan down; nft delete table inet proximity_default");
    let facts = controller.infrastructure();
    assert_eq!(facts["available"], false);
    assert_eq!(facts["problems"].as_array().unwrap().len(), 2, "{facts}");
    controller.ok(["up"]);
    assert_eq!(controller.infrastructure()["available"], true);

    // Without its note, another zone that goes would switch forwarding off under this one.
    controller.script("rm /var/lib/proximity/node-network.json");
    assert_eq!(controller.infrastructure()["available"], false);
    controller.ok(["up"]);
    assert_eq!(controller.infrastructure()["available"], true);
}
