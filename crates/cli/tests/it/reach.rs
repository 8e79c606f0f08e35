//! Reaching the controller: which one, with which token, and what is said when it does not answer.

use api::Problem;

use crate::controller::{Controller, answer, not_found, problem, zone};
use crate::{command, finish, proximity};

#[test]
fn no_controller_is_exit_code_3_with_the_next_step() {
    for url in ["unix:/nonexistent/proximity.sock", "http://127.0.0.1:1"] {
        let ran = proximity(url, &["app", "list"]);
        assert_eq!(ran.code, Some(3), "{}", ran.stderr);
        assert!(
            ran.stderr
                .starts_with("error: cannot reach the controller at "),
            "{}",
            ran.stderr
        );
        assert!(
            ran.stderr
                .contains("hint: start the controller with `proximity serve`")
        );
        assert_eq!(ran.out(), "");
        let ran = proximity(url, &["app", "list", "--json"]);
        assert_eq!(ran.json()["error"]["code"], "unreachable");
        assert_eq!(ran.json()["error"]["exit_code"], 3);
    }
}

#[test]
fn a_closed_socket_names_root() {
    // Root passes every permission; a directory in place of the socket is refused for anybody.
    let dir = tempfile::tempdir().unwrap();
    let ran = proximity(&format!("unix:{}", dir.path().display()), &["status"]);
    assert_eq!(ran.code, Some(3));
    assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
}

#[test]
fn the_socket_is_found_through_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("proximity.sock");
    let controller = Controller::start_unix(&socket, |_| answer(200, [zone("default")]));
    let config = dir.path().join("config.yml");
    let text = format!(
        "server: {{ data_dir: {} }}\nzones: {{}}\n",
        dir.path().display()
    );
    std::fs::write(&config, text).unwrap();
    let ran = proximity("", &["zone", "list", "--config", config.to_str().unwrap()]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.out().contains("proximity-lan"));
    assert_eq!(controller.lines(), ["GET /zones"]);

    let ran = proximity("", &["zone", "list", "--config", "/nonexistent.yml"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.contains("cannot read /nonexistent.yml"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_flag_comes_before_the_environment() {
    let controller = Controller::start(|_| answer(200, [zone("default")]));
    let ran = proximity(
        "http://127.0.0.1:1",
        &["--url", &controller.url, "zone", "list"],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn the_token_is_sent_and_never_shown() {
    let controller = Controller::start(|seen| {
        assert_eq!(seen.header("authorization"), Some("Bearer prox_hunter2"));
        problem(Problem::new(401, "unauthorized", "this token is not known").hint("log in again"))
    });
    let mut run = command(&controller.url, &["status", "--json"]);
    run.env("PROXIMITY_TOKEN", "prox_hunter2\n");
    let ran = finish(run, None);
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.json()["error"]["code"], "unauthorized");
    assert_eq!(ran.json()["error"]["status"], 401);
    assert!(!ran.stderr.contains("hunter2") && !ran.out().contains("hunter2"));
    assert_eq!(controller.lines(), ["GET /status"]);
}

#[test]
fn a_token_is_not_sent_over_plain_http_to_another_machine() {
    for (args, code) in [(&["status"][..], 2), (&["exec", "web", "--", "id"], 125)] {
        let mut run = command("http://192.0.2.1:8765", args);
        run.env("PROXIMITY_TOKEN", "prox_hunter2");
        let ran = finish(run, None);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        insta::allow_duplicates! {
            insta::assert_snapshot!(ran.stderr, @"
            error: refused to send the token to 192.0.2.1 over plain http: anybody on the way could read it
              hint: use an https:// URL, or a tunnel: `ssh -N -L 8765:127.0.0.1:8765 HOST` and --url http://127.0.0.1:8765
            ");
        }
    }
}

#[test]
fn a_problem_is_shown_with_its_hint() {
    let controller = Controller::start(|seen| match seen.line.as_str() {
        "GET /zones" => answer(200, [zone("default")]),
        "POST /zones/default/down" => {
            assert_eq!(seen.json()["with_instances"], false);
            let detail = "zone default has 2 instances:\nweb\ndb\x1b[2J";
            problem(
                Problem::new(409, "zone_in_use", detail)
                    .hint("delete them, or add --with-instances"),
            )
        }
        _ => not_found(seen),
    });
    let ran = proximity(&controller.url, &["down"]);
    assert_eq!((ran.code, ran.out()), (Some(1), ""));
    insta::assert_snapshot!(ran.stderr, @r"
    error: zone default has 2 instances:
      web
      db\x1b[2J
      hint: delete them, or add --with-instances
    ");

    let ran = proximity(&controller.url, &["down", "--json"]);
    insta::assert_snapshot!(ran.out(), @r#"
    {
      "error": {
        "code": "zone_in_use",
        "detail": "zone default has 2 instances:\nweb\ndb\u001b[2J",
        "exit_code": 1,
        "hint": "delete them, or add --with-instances",
        "status": 409
      }
    }
    "#);
}

#[test]
fn what_is_no_controller_is_told_apart() {
    let elsewhere = Controller::start(|_| answer(200, "hello"));
    let ran = proximity(&elsewhere.url, &["status"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .contains("unexpected answer from http://127.0.0.1"),
        "{}",
        ran.stderr
    );
}

#[test]
fn version_needs_no_controller_but_shows_its_version() {
    let ran = proximity("unix:/nonexistent", &["version", "--json"]);
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.json()["server"], serde_json::Value::Null);

    let health = serde_json::json!({ "status": "ok", "version": "9.9.9" });
    let controller = Controller::start(move |_| answer(200, &health));
    let ran = proximity(&controller.url, &["version"]);
    assert_eq!(
        ran.out(),
        format!(
            "proximity   {}\ncontroller  9.9.9\n",
            env!("CARGO_PKG_VERSION")
        )
    );
}
