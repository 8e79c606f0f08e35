//! Which channel carries a command, and what is said when it can't: never the way with more power
//! unless the operator allowed it, never the command a second time.

use std::thread;

use rustix::process::Signal;
use serde_json::json;

use super::controller::Controller;
use super::eventually;

/// An operator who lets the node reach into apps past their agent.
const BOTH: &str = "nodes: { local: { backend: lxc, channels: [agent, lxc-attach] } }\n";
const STOP: &str = "systemctl stop proximity-agent";
const START: &str = "systemctl start proximity-agent";

#[test]
fn a_guest_whose_agent_is_gone_is_not_reached_by_another_way_unless_allowed() {
    let mut controller = Controller::up();
    let web = controller.deploy("web");
    controller.sandbox("lab");
    let exec = |controller: &Controller, guest: &str, words: &[&str]| {
        let words = words.iter().copied();
        controller.run(["exec", guest].into_iter().chain(words))
    };
    let touch = &["--", "touch", "/root/ran"][..];
    let request = json!({ "argv": ["touch", "/root/ran"] });

    // Asked for by name it is refused, while the agent is well too.
    let by_node = &["--channel", "lxc-attach", "--", "touch", "/root/ran"][..];
    for guest in ["web", "lab"] {
        let told = exec(&controller, guest, by_node).expect(125).err;
        assert!(told.contains("lxc-attach"), "{told}");
        assert!(
            told.contains(&format!("channels of {guest}: agent;")),
            "{told}"
        );
    }
    controller.inside(&web, STOP);
    let told = exec(&controller, "web", touch).expect(125).err;
    assert!(told.contains("reached"), "{told}");
    let (status, problem) = controller.api("POST", "/instances/web/exec", Some(&request));
    assert_eq!(
        (status, &problem["code"]),
        (502, &json!("nothing_ran")),
        "{problem}"
    );
    let events = controller.events("web", &request);
    assert_eq!(events.last().unwrap()["code"], "nothing_ran", "{events:?}");
    exec(&controller, "web", by_node).expect(125);
    // What else goes by the agent says so as well.
    let ran = controller
        .run(["cp", "web:/etc/hostname", "/dev/shm/hostname"])
        .expect(1);
    assert!(ran.err.contains("reached"), "{}", ran.err);
    controller.inside(&web, "test ! -e /root/ran");
    // The app itself is well, and the other guest too.
    assert_eq!(controller.page("web.prox.local").0, 200);
    controller.exec("lab", ["true"]);
    controller.inside(&web, START);
    eventually("the agent is back", || {
        exec(&controller, "web", &["--", "true"]).code == 0
    });

    controller.end(Signal::TERM);
    controller.write_etc("config.yml", BOTH);
    controller.serve();
    controller.until_available();
    let channel = |words: &[&str]| {
        let head = ["--json", "exec", "web"].into_iter();
        let result = controller
            .run(head.chain(words.iter().copied()))
            .expect(0)
            .json();
        result["channel"].as_str().unwrap().to_owned()
    };
    assert_eq!(channel(&["--", "true"]), "agent");
    assert_eq!(
        channel(&["--channel", "lxc-attach", "--", "true"]),
        "lxc-attach"
    );
    controller.inside(&web, STOP);
    assert_eq!(channel(&["--", "true"]), "lxc-attach");
    // A session too, with all that it carries.
    let ran = controller.run_with(["exec", "web", "--", "sh", "-c", "cat; exit 4"], b"in\0");
    assert_eq!(ran.expect(4).out, b"in\0");
    exec(
        &controller,
        "web",
        &["--channel", "agent", "--", "touch", "/root/ran"],
    )
    .expect(125);
    controller.inside(&web, "test ! -e /root/ran");
    controller.inside(&web, START);
    eventually("the agent is back", || channel(&["--", "true"]) == "agent");
    // Sandboxes are reached by their agent whatever the configuration says of apps.
    exec(&controller, "lab", by_node).expect(125);
    controller.exec("lab", ["test", "!", "-e", "/root/ran"]);
}

#[test]
fn a_command_whose_agent_is_killed_has_an_unknown_outcome_and_ran_once() {
    // With a second channel that could run it again.
    let controller = Controller::configured(BOTH);
    controller.ok(["up"]);
    let web = controller.deploy("web");
    let script =
        |name: &str| format!("echo began >> /root/{name}; sleep 30; echo ended >> /root/{name}");
    let began =
        |name: &str| controller.inside(&web, &format!("cat /root/{name} 2> /dev/null || true"));
    let kill = "systemctl kill --signal=KILL proximity-agent";

    thread::scope(|scope| {
        let session = script("session");
        let call = script("call");
        let by_session = scope.spawn({
            let controller = &controller;
            move || controller.run(["exec", "web", "--", "sh", "-c", &session])
        });
        let by_call = scope.spawn({
            let controller = &controller;
            move || {
                controller.api(
                    "POST",
                    "/instances/web/exec",
                    Some(&json!({ "command": call })),
                )
            }
        });
        eventually("both began", || {
            began("session") == "began\n" && began("call") == "began\n"
        });
        controller.inside(&web, kill);
        let ran = by_session.join().unwrap().expect(123);
        assert!(
            ran.err.contains("unknown") || ran.err.contains("nobody"),
            "{}",
            ran.err
        );
        let (status, problem) = by_call.join().unwrap();
        assert_eq!(
            (status, &problem["code"]),
            (502, &json!("outcome_unknown")),
            "{problem}"
        );
    });
    // The node's way was open all the time, and nobody took it.
    assert_eq!(
        (began("session"), began("call")),
        ("began\n".into(), "began\n".into())
    );

    // systemd brings the agent back, and it is the first choice again.
    eventually("the agent is back", || {
        let result = controller.run(["--json", "exec", "web", "--", "true"]);
        result.code == 0 && result.json()["channel"] == "agent"
    });
    let words = ["exec", "web", "--channel", "agent", "--", "echo", "well"];
    assert_eq!(controller.ok(words), "well\n");
}
