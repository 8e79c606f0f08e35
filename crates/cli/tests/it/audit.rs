//! `audit tail` and `audit verify`.

use std::path::Path;

use serde_json::json;

use crate::controller::{Controller, answer, not_found};
use crate::{Ran, proximity};

fn record(seq: u64, outcome: &str, detail: serde_json::Value) -> serde_json::Value {
    json!({
        "seq": seq, "time": "2026-01-02T03:04:05.000006Z", "id": "au-0123456789abcdef",
        "actor": "token:admin", "action": "instance.exec", "target": "web", "channel": null,
        "detail": detail, "outcome": outcome, "exit_code": null, "duration_ms": null,
        "prev": "0".repeat(64), "hash": "1".repeat(64),
    })
}

#[test]
fn the_tail_is_a_table_or_whole_records() {
    let tail = json!({
        "records": [
            record(1, "intent", json!({"argv": ["printf", "\u{1b}[2J"]})),
            record(2, "refused", json!({"refusal": "x".repeat(500)})),
        ],
        "unreadable": 0,
    });
    let controller = Controller::start({
        let tail = tail.clone();
        move |seen| match seen.line.as_str() {
            "GET /audit?target=web&limit=2" => answer(200, &tail),
            "GET /audit?limit=20" => answer(200, json!({"records": [], "unreadable": 3})),
            _ => not_found(seen),
        }
    });
    let args = ["audit", "tail", "-n", "2", "--target", "web"];
    let ran = proximity(&controller.url, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines: Vec<&str> = ran.out().lines().collect();
    assert!(lines[0].starts_with("SEQ"), "{lines:?}");
    assert!(
        lines[1].contains(r#"{"argv":["printf","\u001b[2J"]}"#),
        "{lines:?}"
    );
    assert!(lines[2].ends_with('…') && lines[2].len() < 300, "{lines:?}");
    let ran = proximity(&controller.url, &[&args[..], &["--json"]].concat());
    assert_eq!(ran.json(), tail);

    let ran = proximity(&controller.url, &["audit", "tail"]);
    assert_eq!((ran.code, ran.out()), (Some(0), ""));
    assert!(
        ran.stderr.contains("3 lines are no records"),
        "{}",
        ran.stderr
    );
}

/// A data directory with a log of two records, and its head.
fn a_log(dir: &Path) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let log = audit::Log::open(dir.join("audit.log"), audit::Options::default())
            .await
            .unwrap();
        let entry = audit::Entry::new("root", "app.stop", "web");
        let intent = log.intent(entry).await.unwrap();
        let head = intent.finish(audit::Outcome::ok()).await.unwrap();
        log.close().await;
        head.to_string()
    })
}

#[test]
fn a_log_is_verified_without_a_controller() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yml");
    std::fs::write(
        &config,
        format!("server: {{ data_dir: {} }}\n", dir.path().display()),
    )
    .unwrap();
    let head = a_log(dir.path());
    let verify = |more: &[&str]| -> Ran {
        let config = config.to_str().unwrap();
        proximity(
            "",
            &[&["audit", "verify", "--config", config], more].concat(),
        )
    };
    let ran = verify(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.out().contains("2 records") && ran.out().contains("not provable"),
        "{}",
        ran.out()
    );
    assert!(ran.stderr.contains(&head), "{}", ran.stderr);
    let ran = verify(&["--head", &head]);
    assert!(ran.out().contains("proven up to its end"), "{}", ran.out());
    let document = verify(&["--head", &head, "--json"]).json();
    assert_eq!(document["sound"], true);
    assert_eq!(document["proven_up_to"], 2);

    // An edit and a cut are found, the latter by its head.
    let file = dir.path().join("audit.log");
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, whole.replacen("root", "toor", 1)).unwrap();
    let ran = verify(&["--json"]);
    assert_eq!(
        (ran.code, ran.json()["sound"].as_bool()),
        (Some(1), Some(false))
    );
    assert_eq!(ran.json()["findings"][0]["seq"], 1);
    std::fs::write(&file, whole.lines().next().unwrap().to_owned() + "\n").unwrap();
    assert_eq!(verify(&[]).code, Some(0));
    let ran = verify(&["--head", &head]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out().contains("truncated"), "{}", ran.out());

    std::fs::remove_file(&file).unwrap();
    let ran = verify(&[]);
    assert_eq!((ran.code, ran.out()), (Some(1), ""));
    assert!(
        ran.stderr.contains("sudo proximity audit verify"),
        "{}",
        ran.stderr
    );
    assert_eq!(verify(&["--head", "1:x"]).code, Some(2));
}
