//! Requests that are refused: with a code and a hint, and with nothing changed.

use serde_json::json;

use super::controller::Controller;
use super::facts::Facts;

#[test]
fn a_refused_deploy_changes_nothing() {
    let controller = Controller::up();
    controller.deploy("web");
    let before = Facts::of_zone(&controller);

    let check = |words: &[&str], code: &str, detail: &str, hint: &str| {
        let error = controller.refused(words.iter().copied(), code);
        assert!(
            error["detail"].as_str().unwrap().contains(detail),
            "{words:?}: {error}"
        );
        assert!(
            error["hint"].as_str().unwrap().contains(hint),
            "{words:?}: {error}"
        );
    };
    check(
        &["app", "deploy", "ngnix", "x"],
        "unknown_recipe",
        "ngnix",
        "did you mean `nginx`",
    );
    check(
        &["app", "deploy", "postgresql", "x"],
        "unknown_recipe",
        "postgresql",
        "app catalog",
    );
    check(
        &["app", "deploy", "nginx", "web"],
        "name_taken",
        "web is taken",
        "proximity app show web",
    );
    for reserved in ["prox-appliance", "gateway", "localhost", "wpad"] {
        check(
            &["app", "deploy", "nginx", reserved],
            "bad_request",
            reserved,
            "choose another",
        );
    }
    check(
        &["app", "deploy", "nginx", "x", "--set", "prot=81"],
        "bad_request",
        "index_html",
        "app catalog nginx",
    );
    check(
        &["app", "deploy", "static-site", "x"],
        "bad_request",
        "index_html",
        "app catalog static-site",
    );
    check(
        &["app", "deploy", "nginx", "x", "--zone", "lab"],
        "unknown_zone",
        "lab",
        "zone list",
    );
    check(
        &["app", "deploy", "nginx", "x", "--memory", "1M"],
        "bad_request",
        "memory_mb",
        "32",
    );
    check(
        &["app", "deploy", "nginx", "web", "--resume"],
        "wrong_state",
        "web is running",
        "failed deploy",
    );
    check(
        &["app", "deploy", "nginx", "x", "--resume"],
        "unknown_instance",
        "x",
        "app list",
    );
    check(
        &["app", "delete", "x", "--yes"],
        "unknown_instance",
        "x",
        "app list",
    );
    check(&["app", "start", "x"], "unknown_instance", "x", "app list");

    // What can't be a name is wrong use; the controller does not rely on the command line for that.
    for name in ["Bad_Name", "-web", "web.prox", &"x".repeat(64), ""] {
        let ran = controller
            .run(["--json", "app", "deploy", "nginx", name])
            .expect(2);
        assert_eq!(ran.json()["error"]["code"], "usage", "{name:?}");
        let request = json!({ "app_id": "nginx", "instance_name": name });
        let (status, problem) = controller.api("POST", "/apps/deploy", Some(&request));
        assert_eq!(
            (status, &problem["code"]),
            (422, &json!("invalid_name")),
            "{problem}"
        );
    }
    let (status, problem) =
        controller.api("POST", "/apps/deploy", Some(&json!({ "app_id": "ngnix" })));
    assert_eq!(
        (status, &problem["status"], &problem["code"]),
        (404, &json!(404), &json!("unknown_recipe"))
    );
    let (status, _) = controller.api(
        "POST",
        "/apps/deploy",
        Some(&json!({ "app_id": "nginx", "nmae": "x" })),
    );
    assert_eq!(status, 422);

    before.assert_same(&Facts::of_zone(&controller), "refused deploys");
}

#[test]
fn without_a_zone_there_is_no_deploy() {
    let controller = Controller::start();
    let before = Facts::of_node(&controller);
    let error = controller.refused(["app", "deploy", "nginx", "web"], "zone_down");
    assert!(
        error["hint"].as_str().unwrap().contains("proximity up"),
        "{error}"
    );
    before.assert_same(&Facts::of_node(&controller), "a refused deploy");
}

#[test]
fn without_a_controller_nothing_can_be_asked() {
    let controller = Controller::on_a_host();
    let ran = controller.run(["status"]).expect(3);
    assert!(ran.err.contains("proximity serve"), "{}", ran.err);
    controller.run(["exec", "web", "--", "id"]).expect(125);
}
