//! What lands on standard output: tables for people, one document for machines, raw logs, and no
//! complaint when the reader goes away.

use std::io::Read as _;
use std::process::Stdio;

use api::Problem;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use crate::controller::{
    Controller, OPERATION, Seen, answer, app, not_found, operation, problem, zone,
};
use crate::{command, proximity};

fn everything(seen: &Seen) -> Response {
    match seen.line.as_str() {
        "GET /apps" => answer(200, [app("web"), app("db")]),
        "GET /apps/web" => answer(200, app("web")),
        "GET /apps/broken" => {
            let mut app = app("broken");
            app["status"] = "failed".into();
            app["failure"] = json!({
                "step": "ready", "cause": "no answer", "next": "proximity app logs broken",
                "console_tail": ["\u{7}beep"],
            });
            answer(200, app)
        }
        "GET /apps/web/logs?lines=200" => "one\n\u{1b}[31mtwo\n".into_response(),
        "GET /zones" => answer(200, [zone("default")]),
        "GET /status" => answer(
            200,
            json!({
                "version": "0.1.0", "zones": [zone("default")], "instances": { "running": 2 },
                "drift": [
                    {"kind": "app", "name": "web", "differs": ["no route leads to it"], "next": null,
                     "repair": {"doing": null, "failed_attempts": 2, "last_cause": "no luck", "next_try_in_ms": 3500}},
                    {"kind": "app", "name": "db", "differs": ["its guest is absent, wanted running"],
                     "next": "proximity app delete db", "repair": null},
                ],
                "orphans": [{"id": "i-0123456789abcdef", "name": "old", "zone": "default", "kind": "app", "state": "running"}],
                "operations": ["deploy db"],
            }),
        ),
        "GET /system/infrastructure?zone=default" => answer(
            200,
            json!({
                "available": true, "zone": "default", "node": "local",
                "bridge_name": "proximity-lan", "subnet": "10.20.0.0/24",
                "gateway_ip": "10.20.0.1", "appliance_name": "prox-appliance",
                "appliance_vmid": null, "appliance_state": "running",
                "appliance_wan_ip": "10.19.0.2", "dns_domain": "prox.local", "connected_apps": 2,
                "dns_outside": true, "open_to": ["192.168.1.0/24"],
                "services": { "caddy": "active", "dnsmasq": "active" }, "problems": [],
            }),
        ),
        "GET /appliance/dhcp/leases" => answer(
            200,
            json!([
                { "ip": "10.20.0.100", "mac": "52:78:00:01:00:64", "instance": "web",
                  "client_name": "we\u{1b}[2Jb\n", "expires_at": "2026-01-01T12:00:00Z" },
                { "ip": "10.20.0.101", "mac": "02:00:00:00:00:01", "instance": null,
                  "client_name": null, "expires_at": null },
            ]),
        ),
        "GET /appliance/dns/records" => answer(
            200,
            json!([{ "name": "web.prox.local", "kind": "A", "ip": "10.20.0.1" }]),
        ),
        "GET /appliance/vhosts" => answer(
            200,
            json!([{ "host": "web.prox.local", "instance": "web",
                     "instance_id": "i-0123456789abcdef", "port": 80, "health": "healthy",
                     "connections": 3 },
                   { "host": "api.prox.local", "instance": "web",
                     "instance_id": "i-0123456789abcdef", "port": 8080, "health": "closed",
                     "connections": 0, "builtin": false, "redirect_https": true, "auth": "basic",
                     "max_body_bytes": 1048576, "timeout_ms": 30000 }]),
        ),
        "GET /appliance/ports" => answer(
            200,
            json!([{ "protocol": "tcp", "listen": 15432, "instance": "db", "port": 5432 }]),
        ),
        "GET /appliance/dhcp/reservations" => answer(
            200,
            json!([{ "mac": "02:00:00:00:00:07", "address": "10.20.0.251",
                     "name": "printer.prox.local" }]),
        ),
        "GET /appliance/sites" => answer(
            200,
            json!([{ "name": "own.caddy", "state": "refused",
                     "refused": "no_such\u{1b}[2J_directive" }]),
        ),
        "GET /operations" => answer(200, [operation("deploy", "web", "succeeded")]),
        "GET /catalog" => answer(200, [recipe()]),
        "GET /catalog/nginx" => answer(200, recipe()),
        _ => not_found(seen),
    }
}

fn recipe() -> serde_json::Value {
    json!({
        "id": "nginx", "title": "nginx", "description": "A web server", "port": 80,
        "limits": { "cpu_millis": 1000, "memory_mb": 256, "pids": 512 },
        "parameters": [{ "name": "index", "description": "The page", "required": false }],
        "image": app("x")["image"], "image_cached": true,
    })
}

#[test]
fn tables() {
    let controller = Controller::start(everything);
    let mut all = String::new();
    for line in [
        "app list",
        "app show web",
        "app show broken",
        "app catalog",
        "app catalog nginx",
        "zone list",
        "lease list",
        "dns list",
        "dns setup --zone default",
        "lease reserved",
        "route list",
        "port list",
        "appliance sites",
        "operation list",
        "infrastructure --zone default",
        "status",
        "open web",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let ran = proximity(&controller.url, &words);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{line}");
        all.push_str(&format!("$ proximity {line}\n{}\n", ran.out()));
    }
    insta::assert_snapshot!(all.replace(&controller.url, "URL"));
}

#[test]
fn every_list_and_fact_is_a_document_for_machines() {
    let controller = Controller::start(everything);
    for (line, path) in [
        ("app list", "/apps"),
        ("app show web", "/apps/web"),
        ("app catalog", "/catalog"),
        ("zone list", "/zones"),
        ("lease list", "/appliance/dhcp/leases"),
        ("dns list", "/appliance/dns/records"),
        ("route list", "/appliance/vhosts"),
        ("port list", "/appliance/ports"),
        ("lease reserved", "/appliance/dhcp/reservations"),
        ("appliance sites", "/appliance/sites"),
        ("operation list", "/operations"),
        ("status", "/status"),
    ] {
        let mut words: Vec<&str> = line.split(' ').collect();
        words.push("--json");
        let ran = proximity(&controller.url, &words);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{line}");
        assert!(ran.json().is_array() || ran.json().is_object(), "{line}");
        assert_eq!(controller.lines().last(), Some(&format!("GET {path}")));
    }
    let ran = proximity(&controller.url, &["app", "list", "--json"]);
    assert_eq!(ran.json(), json!([app("web"), app("db")]));
}

#[test]
fn an_empty_list_is_empty_for_scripts_and_a_remark_for_people() {
    let controller = Controller::start(|_| answer(200, json!([])));
    let ran = proximity(&controller.url, &["app", "list"]);
    assert_eq!((ran.code, ran.out()), (Some(0), ""));
    assert!(
        ran.stderr.contains("proximity app deploy"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        proximity(&controller.url, &["app", "list", "-q"]).stderr,
        ""
    );
    assert_eq!(
        proximity(&controller.url, &["app", "list", "--json"]).json(),
        json!([])
    );
}

#[test]
fn logs_reach_a_pipe_as_the_guest_wrote_them() {
    let controller = Controller::start(everything);
    let ran = proximity(&controller.url, &["app", "logs", "web"]);
    assert_eq!((ran.code, ran.out()), (Some(0), "one\n\u{1b}[31mtwo\n"));
    let ran = proximity(&controller.url, &["app", "logs", "web", "-f"]);
    assert_eq!(ran.code, Some(2));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    // More than a pipe holds, so that the writer notices.
    let many = vec![app("web"); 2000];
    let controller = Controller::start(move |_| answer(200, &many));
    for flags in [&["app", "list"][..], &["app", "list", "--json"]] {
        let mut run = command(&controller.url, flags);
        run.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = run.spawn().unwrap();
        let mut first = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
    }
    for flags in [&["--help"][..], &["completions", "bash"], &["doctor"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut run = command("", flags);
        run.stdout(writer).stderr(Stdio::piped());
        let output = run.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{flags:?}");
        assert_eq!(output.status.code(), Some(0), "{flags:?}");
    }
}

#[test]
fn a_watch_is_one_line_in_quiet_and_none_in_pipes() {
    let controller = Controller::start(|seen| {
        if seen.line.ends_with("/events") {
            let operation = operation("deploy", "web", "succeeded");
            return crate::controller::events(crate::controller::end(&operation), false);
        }
        not_found(seen)
    });
    let ran = proximity(&controller.url, &["-q", "operation", "watch", OPERATION]);
    assert_eq!(
        (ran.out(), ran.stderr.as_str()),
        ("deploy of web succeeded\n", "")
    );
}

#[test]
fn doctor_is_a_document_for_machines() {
    let ran = proximity("", &["doctor", "--json"]);
    let document = ran.json();
    let well = document["ok"].as_bool().unwrap();
    assert_eq!(ran.code, Some(i32::from(!well)));
    let findings = document["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .all(|f| f["ok"] == true || f["mend"].is_string())
    );
    let plain = proximity("", &["doctor"]);
    assert!(!plain.out().contains('\u{1b}') && !plain.out().contains('✔'));
}

#[test]
fn what_is_down_already_is_no_failure() {
    let controller = Controller::start(|seen| match seen.line.as_str() {
        "GET /zones" => answer(200, [zone("default")]),
        "POST /zones/default/down" => problem(Problem::new(409, "zone_down", "it is not up")),
        _ => not_found(seen),
    });
    let ran = proximity(&controller.url, &["down", "--yes"]);
    assert_eq!((ran.code, ran.out()), (Some(0), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("down already"), "{}", ran.stderr);
    let ran = proximity(&controller.url, &["down", "--json"]);
    assert_eq!((ran.code, ran.json()), (Some(0), json!([])));
}
