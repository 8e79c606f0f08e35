//! What a guest may reach outside, by its policy: nothing, what is listed, the internet; changed while it runs.

use std::thread;

use serde_json::{Value, json};

use super::controller::Controller;
use super::eventually;
use super::guest::{Answer, ask, reachable};

const FIRST: &str = "8.8.8.8/80";
const SECOND: &str = "1.1.1.1/80";
/// A machine behind the appliance that is nobody's business.
const LAN: &str = "192.168.50.20/80";

/// Holds a connection until it is told to go on, then asks for a page by it. Prints what came within three seconds.
const HOLD: &str = r#"
rm -f /tmp/go; exec 3<>/dev/tcp/8.8.8.8/80; touch /tmp/held
until [ -e /tmp/go ]; do sleep 0.05; done
printf 'GET / HTTP/1.0\r\n\r\n' >&3; timeout 3 cat <&3 || true
"#;

fn reaches(controller: &Controller, guest: &str, expected: &[&str]) {
    let all = [FIRST, SECOND, LAN].map(str::to_owned);
    // What is closed is refused at once; what is open may take its time on a busy machine.
    eventually(&format!("{guest} reaches {expected:?}"), || {
        let reached = reachable(controller, guest, &all);
        let known = reached.iter().all(|r| expected.contains(&r.as_str()));
        assert!(known, "{guest} reaches {reached:?}");
        reached.len() == expected.len()
    });
}

fn refused(controller: &Controller, guest: &str) -> Vec<String> {
    let shown = controller.json(["egress", "show", guest]);
    let refused = shown["refused"].as_array().unwrap().iter();
    refused
        .map(|r| r["what"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_policy_says_what_a_guest_reaches_and_a_new_one_holds_at_once() {
    let controller = Controller::up();
    controller.deploy("web");
    controller.json(["sandbox", "create", "--name", "off", "--egress", "off"]);
    let names = "internet.test,private.internet.test";
    let lab = controller.json(["sandbox", "create", "--name", "lab", "--egress", names]);
    assert_eq!(
        lab["egress"],
        json!({ "allow": names.split(',').collect::<Vec<_>>() })
    );

    // Off: the zone's names, and nothing else; what was refused is seen.
    reaches(&controller, "off", &[]);
    assert!(matches!(
        ask(&controller, "off", "web.prox.local"),
        Answer::Address(_)
    ));
    assert_eq!(ask(&controller, "off", "internet.test"), Answer::Other(5));
    let seen = refused(&controller, "off");
    for what in ["dns internet.test", "tcp 8.8.8.8:80", "tcp 1.1.1.1:80"] {
        assert!(seen.iter().any(|s| s == what), "{what}: {seen:?}");
    }

    // A list: an address opens when our DNS has answered it for a listed name.
    reaches(&controller, "lab", &[]);
    let first = Answer::Address([8, 8, 8, 8].into());
    assert_eq!(ask(&controller, "lab", "internet.test"), first);
    assert_eq!(
        ask(&controller, "lab", "second.internet.test"),
        Answer::Other(5)
    );
    // A private answer is none, and opens nothing.
    let resolve = [
        "exec",
        "lab",
        "--",
        "getent",
        "ahostsv4",
        "private.internet.test",
    ];
    assert_ne!(controller.run(resolve).code, 0);
    reaches(&controller, "lab", &[FIRST]);
    reaches(&controller, "off", &[]);
    // Who has no policy has the internet, as before.
    reaches(&controller, "web", &[FIRST, SECOND]);

    // Live, also for connections that stand.
    assert_eq!(
        held(&controller, "8.8.8.0/24").trim(),
        "internet machine 8.8.8.8"
    );
    assert_eq!(held(&controller, "off"), "");
    reaches(&controller, "lab", &[]);
    controller.ok(["egress", "set", "lab", "1.1.1.1,internet.test"]);
    reaches(&controller, "lab", &[SECOND]);
    // By TCP it is the same server.
    let by_tcp = "import socket,struct
s = socket.create_connection(('10.20.0.1', 53), 5)
name = lambda n: b''.join(bytes([len(l)]) + l.encode() for l in n.split('.')) + b'\\0\\0\\1\\0\\1'
for n in ('internet.test', 'second.internet.test'):
    q = b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + name(n)
    s.sendall(struct.pack('!H', len(q)) + q)
    a = s.recv(struct.unpack('!H', s.recv(2))[0])
    print(a[3] & 15)";
    assert_eq!(controller.exec("lab", ["python3", "-c", by_tcp]), "0\n5\n");
    reaches(&controller, "lab", &[FIRST, SECOND]);

    // It outlives the appliance, whose relay starts with what it was told last.
    controller.ok([
        "exec",
        "prox-appliance",
        "--",
        "systemctl",
        "restart",
        "nftables",
        "proximity-relay",
    ]);
    controller.until_available();
    reaches(&controller, "off", &[]);
    eventually("names are answered again", || {
        ask(&controller, "lab", "internet.test") == first
    });
    reaches(&controller, "lab", &[FIRST, SECOND]);

    controller.ok(["egress", "set", "off", "internet"]);
    reaches(&controller, "off", &[FIRST, SECOND]);
    wrong_policies_are_refused(&controller);
}

/// What a connection of `lab` brings after this policy was set while it stood.
fn held(controller: &Controller, policy: &str) -> String {
    controller.exec("lab", ["rm", "-f", "/tmp/held"]);
    let body = thread::scope(|scope| {
        let holds = scope.spawn(|| controller.exec("lab", ["bash", "-c", HOLD]));
        eventually("it is connected", || {
            let look = ["exec", "lab", "--", "test", "-e", "/tmp/held"];
            controller.run(look).code == 0
        });
        controller.ok(["egress", "set", "lab", policy]);
        controller.exec("lab", ["touch", "/tmp/go"]);
        holds.join().unwrap()
    });
    body.rsplit("\r\n\r\n").next().unwrap().to_owned()
}

fn wrong_policies_are_refused(controller: &Controller) {
    for policy in ["10.0.0.0/8", "192.168.50.20", "a,b", ""] {
        controller.run(["egress", "set", "lab", policy]).expect(2);
        let request = json!({ "egress": { "allow": [policy] } });
        let (status, problem) = controller.api("PUT", "/instances/lab/egress", Some(&request));
        assert_eq!(status, 422, "{problem}");
    }
    let (status, _) = controller.api(
        "PUT",
        "/instances/nobody/egress",
        Some(&json!({ "egress": "off" })),
    );
    assert_eq!(status, 404);
    let shown: Value = controller.api("GET", "/instances/lab/egress", None).1;
    assert_eq!(
        shown["egress"],
        json!({ "allow": ["1.1.1.1/32", "internet.test"] })
    );
}
