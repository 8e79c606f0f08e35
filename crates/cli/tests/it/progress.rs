//! Operations: steps shown as they come, a cut that is not noticed, and failures told in full.

use std::sync::atomic::{AtomicU32, Ordering};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde_json::json;

use crate::controller::{
    Controller, OPERATION, accepted, answer, app, end, events, not_found, operation, step, zone,
};
use crate::proximity;

fn events_line() -> String {
    format!("GET /operations/{OPERATION}/events")
}

#[test]
fn up_resumes_its_watch_after_a_cut() {
    let attempts = AtomicU32::new(0);
    let controller = Controller::start(move |seen| match seen.line.as_str() {
        "GET /zones" => answer(200, [zone("default")]),
        "POST /zones/default/up" => accepted(),
        line if line == events_line() => match attempts.fetch_add(1, Ordering::SeqCst) {
            0 => {
                assert_eq!(seen.header("last-event-id"), None);
                let text = step(1, "bridge", "started", "proximity-lan", None)
                    + &step(2, "bridge", "done", "proximity-lan 10.20.0.0/24", Some(40))
                    + "id: 3\nevent: step\ndata: {\"seq\":3,";
                events(text, true)
            }
            1 => StatusCode::BAD_GATEWAY.into_response(),
            // An end without an `end` is a cut, too.
            2 => {
                assert_eq!(seen.header("last-event-id"), Some("2"));
                events(step(3, "appliance", "started", "starting", None), false)
            }
            _ => {
                assert_eq!(seen.header("last-event-id"), Some("3"));
                // What was seen already comes again, and is not shown again.
                let text = step(2, "bridge", "done", "proximity-lan 10.20.0.0/24", Some(40))
                    + ": still here\n\n"
                    + &step(4, "appliance", "done", "running", Some(12_340))
                    + &end(&operation("zone_up", "default", "succeeded"));
                events(text, false)
            }
        },
        _ => not_found(seen),
    });
    let ran = proximity(&controller.url, &["up"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.out(), "zone default is up\n");
    let told: Vec<_> = ran
        .stderr
        .lines()
        .filter(|l| !l.contains("trying again"))
        .collect();
    insta::assert_snapshot!(told.join("\n"), @"
    ok   bridge     proximity-lan 10.20.0.0/24            0.04 s
    ok   appliance  running                               12.3 s
    ");
    assert!(ran.stderr.contains("trying again"), "{}", ran.stderr);
    assert_eq!(controller.lines().len(), 6);
}

#[test]
fn up_prints_one_document_for_machines() {
    let controller = Controller::start(|seen| match seen.line.as_str() {
        "POST /zones/a/up" | "POST /zones/b/up" => accepted(),
        line if line == events_line() => {
            let text = step(1, "bridge", "done", "x", Some(40))
                + &end(&operation("zone_up", "default", "succeeded"));
            events(text, false)
        }
        _ => not_found(seen),
    });
    let ran = proximity(&controller.url, &["up", "a", "b", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(ran.json().as_array().map(Vec::len), Some(2));
    assert_eq!(ran.json()[0]["status"], "succeeded");
    assert_eq!(ran.json()[0]["events"][0]["step"], "bridge");
}

fn failed_deploy() -> Controller {
    Controller::start(|seen| match seen.line.as_str() {
        "POST /apps/deploy" => answer(202, json!({ "operation_id": OPERATION, "name": "web" })),
        line if line == events_line() => {
            let mut operation = operation("deploy", "web", "failed");
            operation["failure"] = json!({
                "step": "ready",
                "cause": "no answer on port 80 within 30 s",
                "next": "proximity app deploy nginx web --resume",
                "console_tail": ["nginx: \u{1b}[31m[emerg]\u{1b}[0m bind() failed"],
            });
            let text = step(1, "create", "done", "web", Some(400))
                + &step(
                    2,
                    "ready",
                    "failed",
                    "no answer on port 80 within 30 s",
                    Some(30_000),
                )
                + &end(&operation);
            events(text, false)
        }
        _ => not_found(seen),
    })
}

#[test]
fn a_failed_deploy_says_step_cause_console_and_next_command() {
    let controller = failed_deploy();
    let ran = proximity(&controller.url, &["app", "deploy", "nginx", "web"]);
    assert_eq!((ran.code, ran.out()), (Some(1), ""));
    insta::assert_snapshot!(ran.stderr, @r"
    ok   create     web                                   0.40 s
    FAIL ready      no answer on port 80 within 30 s      30.0 s
    error: deploy of web failed
      step:  ready
      cause: no answer on port 80 within 30 s
      the guest's console said last:
        | nginx: \x1b[31m[emerg]\x1b[0m bind() failed
      next:  proximity app deploy nginx web --resume
    ");
}

#[test]
fn a_failed_deploy_is_a_document_too() {
    let controller = failed_deploy();
    let ran = proximity(
        &controller.url,
        &["app", "deploy", "nginx", "web", "--json"],
    );
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.json()["failure"]["step"], "ready");
}

#[test]
fn a_deploy_sends_what_was_asked_for_once() {
    let controller = Controller::start(|seen| match seen.line.as_str() {
        "POST /apps/deploy" => answer(202, json!({ "operation_id": OPERATION, "name": "web" })),
        "GET /apps/web" => answer(200, app("web")),
        line if line == events_line() => {
            events(end(&operation("deploy", "web", "succeeded")), false)
        }
        _ => not_found(seen),
    });
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("index.html");
    std::fs::write(&page, "<h1>hi</h1>\n").unwrap();
    let set_file = format!("index={}", page.display());
    let args = [
        "app",
        "deploy",
        "nginx",
        "web",
        "--set",
        "a=b=c",
        "--set-file",
        &set_file,
        "--cpu",
        "0.5",
        "--memory",
        "1G",
        "--pids",
        "100",
        "--disk",
        "8G",
        "--zone",
        "default",
    ];
    let ran = proximity(&controller.url, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    insta::assert_snapshot!(ran.out(), @"
    web is running
      url      https://web.prox.local
      address  10.20.0.100 port 80
      try      proximity exec web -- id
    ");
    let seen = controller.seen();
    assert_eq!(
        seen.iter().filter(|s| s.line.starts_with("POST")).count(),
        1
    );
    assert_eq!(seen[0].header("idempotency-key").map(str::len), Some(32));
    assert_eq!(
        seen[0].json(),
        json!({
            "app_id": "nginx", "instance_name": "web", "zone": "default",
            "config": { "a": "b=c", "index": "<h1>hi</h1>\n" },
            "limits": { "cpu_millis": 500, "memory_mb": 1024, "pids": 100, "disk_gb": 8 },
        })
    );
}

#[test]
fn a_deploy_that_is_not_waited_for_prints_its_operation() {
    let controller = failed_deploy();
    let ran = proximity(&controller.url, &["app", "deploy", "nginx", "--no-wait"]);
    assert_eq!(
        (ran.code, ran.out()),
        (Some(0), format!("web {OPERATION}\n").as_str())
    );
}

#[test]
fn a_watch_of_an_unknown_operation_does_not_try_for_ever() {
    let controller = Controller::start(not_found);
    let ran = proximity(&controller.url, &["operation", "watch", OPERATION]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(controller.lines().len(), 1);
}

#[test]
fn deletes_need_a_yes_and_go_on_past_a_failure() {
    let controller = Controller::start(|seen| match seen.line.as_str() {
        "DELETE /apps/web" | "DELETE /apps/db" => accepted(),
        line if line == events_line() => events(end(&operation("delete", "x", "succeeded")), false),
        _ => not_found(seen),
    });
    let ran = proximity(&controller.url, &["app", "delete", "web"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("add --yes"), "{}", ran.stderr);
    assert!(controller.lines().is_empty());

    let ran = proximity(
        &controller.url,
        &["app", "delete", "web", "gone", "db", "--yes"],
    );
    assert_eq!(
        (ran.code, ran.out()),
        (Some(1), "web is deleted\ndb is deleted\n")
    );
    assert!(
        ran.stderr.contains("no DELETE /apps/gone"),
        "{}",
        ran.stderr
    );
}
