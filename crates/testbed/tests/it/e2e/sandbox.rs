//! Sandboxes from their creation to their end, which comes by a person or by their time.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::apps::limits;
use super::controller::{Controller, GUESTS};
use super::eventually;
use super::facts::Facts;
use super::guest::{self, Answer, ask};

/// The shortest life there is.
const SHORTEST: Duration = Duration::from_secs(10);

#[test]
fn a_sandbox_is_made_used_and_killed() {
    let controller = Controller::up();
    let web = controller.deploy("web");
    let before = Facts::of_zone(&controller).without("/operations");

    let sandbox = controller.sandbox("lab");
    for (key, value) in [
        ("name", json!("lab")),
        ("image", json!("debian")),
        ("zone", json!("default")),
        ("status", json!("running")),
        (
            "limits",
            json!({ "cpu_millis": 1000, "memory_mb": 512, "pids": 256, "disk_gb": 8 }),
        ),
    ] {
        assert_eq!(sandbox[key], value, "{sandbox}");
    }
    assert!((3500..=3600).contains(&left(&sandbox)), "{sandbox}");
    let listed = controller.json(["sandbox", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["id"], sandbox["id"]);
    assert_eq!(
        controller.json(["app", "list"]).as_array().unwrap().len(),
        1
    );

    the_world_of(&controller, &sandbox, &web);

    controller.refused(["sandbox", "create", "--name", "lab"], "name_taken");
    controller.refused(["sandbox", "create", "--name", "web"], "name_taken");
    let error = controller.refused(["sandbox", "create", "--image", "debain"], "bad_request");
    assert!(
        error["hint"].as_str().unwrap().contains("debian"),
        "{error}"
    );
    // An app is no sandbox, and nobody kills it as one.
    for name in ["web", "nobody", web["id"].as_str().unwrap()] {
        controller.refused(["sandbox", "kill", name], "unknown_instance");
    }

    let extended = controller.json(["sandbox", "extend", "lab", "--ttl", "3h"]);
    assert!((10_700..=10_800).contains(&left(&extended)), "{extended}");
    controller.kill_sandboxes(["lab"]);
    controller.refused(["sandbox", "kill", "lab"], "unknown_instance");
    controller.run(["exec", "lab", "--", "true"]).expect(125);
    let now = Facts::of_zone(&controller).without("/operations");
    before.assert_same(&now, "a sandbox that was killed");
}

/// What a sandbox finds inside, and what the zone knows of it.
fn the_world_of(controller: &Controller, sandbox: &Value, web: &Value) {
    let address = sandbox["ip"].as_str().unwrap();
    let host: u8 = address.rsplit_once('.').unwrap().1.parse().unwrap();
    assert!((2..100).contains(&host), "not an app's: {address}");
    assert_eq!(
        controller.exec("lab", ["cat", "/proc/1/comm", "/etc/hostname"]),
        "proximity-agent\nlab\n"
    );
    // Its own memory and CPUs, not the node's.
    let memory = controller.exec("lab", ["grep", "-w", "MemTotal", "/proc/meminfo"]);
    assert_eq!(memory.split_whitespace().nth(1), Some("524288"), "{memory}");
    let own = controller.exec(
        "lab",
        ["ip", "-json", "-4", "address", "show", "dev", "eth0"],
    );
    let own: Value = serde_json::from_str(&own).unwrap();
    let own = &own[0]["addr_info"][0];
    assert_eq!(own["local"], address);
    assert_eq!(own.get("dynamic"), None, "{own}");
    let leases = controller.json(["lease", "list"]);
    assert_eq!(leases.as_array().unwrap().len(), 1, "the app's: {leases}");
    // Names, by the guest's own resolver, and the way out.
    for (name, answer) in [
        ("web.prox.local", web["ip"].as_str().unwrap()),
        ("internet.test", "8.8.8.8"),
    ] {
        let found = controller.exec("lab", ["getent", "ahostsv4", name]);
        let found = found.split_whitespace().next();
        assert_eq!(found, Some(answer), "{name}");
    }
    assert_eq!(
        guest::page(controller, "lab", "8.8.8.8", "/"),
        "internet machine 8.8.8.8"
    );

    // Its own name is nobody else's business: it is not published.
    assert_eq!(ask(controller, "web", "lab.prox.local"), Answer::NoSuchName);

    let id = sandbox["id"].as_str().unwrap();
    assert_eq!(limits(controller, id), [512 << 20, 100_000, 256]);
    let size = controller.exec("lab", ["df", "--output=size", "-BG", "/"]);
    assert_eq!(size.split_whitespace().last(), Some("8G"), "{size}");
    // Its ids on the node are no app's.
    for (guest, first) in [("lab", "165536"), ("web", "100000")] {
        let map = controller.exec(guest, ["cat", "/proc/1/uid_map"]);
        let map: Vec<_> = map.split_whitespace().collect();
        assert_eq!(map, ["0", first, "65536"], "{guest}");
    }
    // Process 1 hears no signal of the guest's own, so the sandbox goes on.
    controller.exec("lab", ["sh", "-c", "kill -KILL 1; kill -STOP 1"]);
    // What loses its parent is waited for by process 1.
    controller.exec("lab", ["sh", "-c", "(sleep 0.01 &) ; (true &)"]);
    eventually("orphans are reaped", || {
        !controller
            .exec("lab", ["ps", "-e", "-o", "stat="])
            .contains('Z')
    });
}

#[test]
fn the_api_makes_extends_and_deletes_and_time_ends() {
    let controller = Controller::up();
    let before = Facts::of_zone(&controller).without("/operations");
    let began = Instant::now();
    let brief = json!({ "name": "brief", "ttl_s": SHORTEST.as_secs() });
    let (status, brief) = controller.api("POST", "/sandboxes?wait=60s", Some(&brief));
    assert_eq!(status, 201, "{brief}");
    let disk = format!("{GUESTS}/{}/disk", brief["id"].as_str().unwrap());
    assert_ne!(
        controller.script(&format!("grep -c {disk} /proc/mounts")),
        "0\n"
    );

    // Whoever works in one is told before its time is over, and what it runs ends with it.
    let words = ["sandbox", "run", "--ttl", "10s", "--", "sleep", "600"];
    let mut run = controller.proximity(words);
    run.stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = run.spawn().unwrap();

    let request = json!({
        "name": "roomy", "image": "debian", "zone": "default", "ttl_s": 600,
        "limits": { "cpu_millis": 500, "memory_mb": 300, "pids": 99, "disk_gb": 1 },
    });
    let (status, roomy) = controller.api("POST", "/sandboxes?wait=60s", Some(&request));
    assert_eq!(
        (status, &roomy["limits"]),
        (201, &request["limits"]),
        "{roomy}"
    );
    let id = roomy["id"].as_str().unwrap();
    assert_eq!(limits(&controller, id), [300 << 20, 50_000, 99]);

    // By name and by id it is the same.
    for key in [id, "roomy"] {
        let (status, shown) = controller.api("GET", &format!("/sandboxes/{key}"), None);
        assert_eq!(
            (status, &shown["id"]),
            (200, &roomy["id"]),
            "{key}: {shown}"
        );
        assert!(left(&shown) <= 600, "{shown}");
    }
    let longer = json!({ "ttl_s": 7200 });
    let path = format!("/sandboxes/{id}/extend");
    let (status, shown) = controller.api("POST", &path, Some(&longer));
    assert_eq!(status, 200, "{shown}");
    assert!((7100..=7200).contains(&left(&shown)), "{shown}");

    for (request, code) in [
        (json!({ "ttl_s": 9 }), "bad_request"),
        (json!({ "ttl_s": 30 * 24 * 3600 + 1 }), "bad_request"),
        (json!({ "image": "../debian" }), "bad_request"),
        (json!({ "name": "Bad_Name" }), "invalid_name"),
        (json!({ "zone": "lab" }), "unknown_zone"),
        (json!({ "limits": { "memory_mb": 1 } }), "bad_request"),
        (json!({ "name": "gateway" }), "bad_request"),
    ] {
        let (status, problem) = controller.api("POST", "/sandboxes", Some(&request));
        assert!((400..500).contains(&status), "{request}: {problem}");
        assert_eq!(problem["code"], code, "{request}: {problem}");
    }

    // Without a wait and without a name.
    let (status, accepted) = controller.api("POST", "/sandboxes", Some(&json!({})));
    assert_eq!(status, 202, "{accepted}");
    let name = accepted["name"].as_str().unwrap();
    assert!(name.starts_with("sandbox-"), "{accepted}");
    let path = format!("/sandboxes/{name}");
    eventually("it runs", || {
        controller.api("GET", &path, None).1["status"] == "running"
    });
    assert_eq!(controller.exec(name, ["hostname"]).trim(), name);
    for path in [path, format!("/sandboxes/{id}")] {
        assert_eq!(controller.api("DELETE", &path, None).0, 202);
        eventually("it is gone", || controller.api("GET", &path, None).0 == 404);
    }

    // The other one's time is over without anybody's help.
    eventually("its time is over", || {
        controller.api("GET", "/sandboxes/brief", None).0 == 404
    });
    let lived = began.elapsed();
    let late = lived.saturating_sub(SHORTEST);
    assert!(
        lived >= SHORTEST && late < Duration::from_secs(5),
        "{lived:?}"
    );
    let ran = run.wait_with_output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    let warnings = said.lines().filter(|line| line.contains(" ends in "));
    assert_eq!(warnings.count(), 1, "{said}");
    assert_ne!(ran.status.code(), Some(0), "{said}");
    let operations = controller.json(["operation", "list"]);
    let warned = operations.as_array().unwrap().iter();
    let of_brief = warned.filter(|o| o["kind"] == "warn" && o["target"] == "brief");
    assert_eq!(of_brief.count(), 1, "{operations}");
    eventually("all are gone", || {
        controller.api("GET", "/sandboxes", None).1 == json!([])
    });
    let now = Facts::of_zone(&controller).without("/operations");
    before.assert_same(&now, "sandboxes that ended");
}

/// How long a sandbox lives, in seconds.
fn left(sandbox: &Value) -> u64 {
    sandbox["expires_in_s"].as_u64().unwrap()
}
