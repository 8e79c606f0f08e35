//! A deploy that fails keeps its guest, says why, and goes on when the cause is mended.

use super::controller::Controller;

/// The image of the built-in recipe, and a port on which nothing answers.
const SILENT: &str = "
id: silent
title: Silent
description: Never answers by itself.
port: 8081
readiness: { http: /, timeout_s: 2 }
limits: { cpu_millis: 1000, memory_mb: 128, pids: 128 }
image: { packages: [nginx-light], enable: [nginx.service] }
";

const ANSWER: &str = "echo 'server { listen 8081; return 200 ok; }' > /etc/nginx/conf.d/answer.conf
systemctl reload nginx; echo kept > /root/mark";

#[test]
fn a_failed_deploy_is_told_kept_and_resumed() {
    let controller = Controller::on_a_host();
    controller.write_etc("catalog/silent.yml", SILENT);
    let mut controller = controller;
    controller.serve();
    controller.ok(["up"]);

    let told = controller
        .run(["app", "deploy", "silent", "mute"])
        .expect(1)
        .err;
    for part in [
        "step:  ready",
        "cause: no answer from 10.20.0.100:8081 within 2 s",
        "console said last",
        "--resume",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let app = controller.app("mute");
    assert_eq!(app["status"], "failed");
    let failure = &app["failure"];
    assert_eq!(failure["step"], "ready");
    assert!(
        failure["cause"].as_str().unwrap().contains("refused"),
        "{failure}"
    );
    assert!(
        failure["next"]
            .as_str()
            .unwrap()
            .contains("proximity app deploy silent mute --resume"),
        "{failure}"
    );
    let console = failure["console_tail"].as_array().unwrap();
    assert!(
        console
            .iter()
            .any(|line| line.as_str().unwrap().contains("systemd")),
        "{failure}"
    );
    // No route leads to what has never answered.
    assert_eq!(controller.page("mute.prox.local").0, 404);
    controller.refused(["app", "restart", "mute"], "wrong_state");
    controller.refused(
        ["app", "deploy", "nginx", "mute", "--resume"],
        "bad_request",
    );

    // Not mended: it fails again, and is still there.
    controller
        .run(["app", "deploy", "silent", "mute", "--resume"])
        .expect(1);
    controller.exec("mute", ["sh", "-euc", ANSWER]);
    let resumed = controller.json(["app", "deploy", "silent", "mute", "--resume"]);
    assert_eq!(resumed["status"], "running");
    assert_eq!((&resumed["id"], &resumed["ip"]), (&app["id"], &app["ip"]));
    assert!(resumed.get("failure").is_none(), "{resumed}");
    assert_eq!(controller.exec("mute", ["cat", "/root/mark"]), "kept\n");
    assert_eq!(controller.page("mute.prox.local").0, 200);
}

#[test]
fn a_failed_deploy_can_be_deleted() {
    let mut controller = Controller::on_a_host();
    controller.write_etc("catalog/silent.yml", SILENT);
    controller.serve();
    controller.ok(["up"]);
    controller
        .run(["app", "deploy", "silent", "mute"])
        .expect(1);
    // It stays failed over a restart of the controller: only a person knows whether it is mended.
    controller.crash();
    assert_eq!(controller.app("mute")["status"], "failed");
    controller.ok(["app", "delete", "mute", "--yes"]);
    assert_eq!(controller.json(["app", "list"]), serde_json::json!([]));
    controller.ok(["down"]);
}
