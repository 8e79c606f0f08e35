//! What the audit log says of calls, and that nothing is done without it.

use std::time::{Duration, Instant};

use audit::{Record, Verdict};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::served::Served;

/// `actor action target outcome` of every record, and its detail.
fn told(records: &[Record]) -> Vec<(String, Value)> {
    records
        .iter()
        .map(|r| {
            let line = format!(
                "{} {} {} {}",
                r.actor,
                r.action,
                r.target,
                r.outcome.as_str()
            );
            (line, r.detail.clone())
        })
        .collect()
}

fn lines(records: &[Record]) -> Vec<String> {
    told(records).into_iter().map(|(line, _)| line).collect()
}

#[tokio::test]
async fn every_change_has_an_intent_and_an_outcome() {
    let served = Served::up().await;
    let accepted = served.ok(served.root(Method::POST, "/apps/deploy").json(&json!({
        "app_id": "static-site", "config": {"index_html": "a-value-that-nobody-logs"},
    })));
    let accepted = accepted.await;
    served.end(&accepted).await;
    for change in ["stop", "start", "restart"] {
        let call = served.post(&format!("/apps/static-site/{change}"));
        let accepted = served.ok(call).await;
        served.end(&accepted).await;
    }
    let accepted = served
        .ok(served.call(Method::DELETE, "/apps/static-site"))
        .await;
    served.end(&accepted).await;
    let down = served.post("/zones/default/down").json(&json!({}));
    let accepted = served.ok(down).await;
    served.end(&accepted).await;

    let records = served.records();
    let told = told(&records);
    assert_eq!(
        lines(&records),
        [
            "token:admin zone.up default intent",
            "token:admin zone.up default ok",
            "root app.deploy  intent",
            "root app.deploy static-site ok",
            "token:admin app.stop static-site intent",
            "token:admin app.stop static-site ok",
            "token:admin app.start static-site intent",
            "token:admin app.start static-site ok",
            "token:admin app.restart static-site intent",
            "token:admin app.restart static-site ok",
            "token:admin app.delete static-site intent",
            "token:admin app.delete static-site ok",
            "token:admin zone.down default intent",
            "token:admin zone.down default ok",
        ]
    );
    assert_eq!(told[2].1["recipe"], "static-site");
    assert_eq!(told[2].1["parameters"], json!(["index_html"]));
    assert!(told[3].1["operation"].as_str().unwrap().starts_with("op-"));
    assert_eq!(told[12].1, json!({"with_instances": false}));
    let text = std::fs::read_to_string(served.audit_file()).unwrap();
    assert!(!text.contains("nobody-logs"), "{text}");
}

#[tokio::test]
async fn a_command_is_recorded_with_its_end_and_without_secrets() {
    let served = Served::with_app("web").await;
    let before = served.records().len();
    let token = served.token.clone();
    let body = json!({
        "argv": ["deploy", "--password", "hunter22", &token, "plain"],
        "env": {"DB_PASSWORD": "env-secret", "MODE": "env-value"},
        "stdin": "stdin-secret", "user": "www-data", "cwd": "/srv",
    });
    served.ok(served.exec("web", &body)).await;
    let records = served.records();
    let [intent, outcome] = &records[before..] else {
        panic!("{records:?}");
    };
    assert_eq!(intent.outcome, Verdict::Intent);
    assert_eq!(
        (intent.action.as_str(), intent.target.as_str()),
        ("instance.exec", "web")
    );
    assert_eq!(
        intent.detail,
        json!({
            "argv": ["deploy", "--password", "***", "***", "plain"],
            "env": ["DB_PASSWORD", "MODE"], "user": "www-data", "cwd": "/srv",
        })
    );
    assert_eq!((outcome.outcome, outcome.exit_code), (Verdict::Ok, Some(0)));
    assert_eq!(
        (outcome.duration_ms, outcome.channel.as_deref()),
        (Some(1), Some("agent"))
    );
    assert_eq!(outcome.id, intent.id);
    let text = std::fs::read_to_string(served.audit_file()).unwrap();
    for secret in [
        "hunter22",
        &token,
        "env-secret",
        "env-value",
        "stdin-secret",
    ] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn a_password_stays_out_of_the_log_and_its_caller_stays_in() {
    let served = Served::up().await;
    let set = async |password: &str| {
        let call = served.call(Method::PUT, "/appliance/password");
        let answer = call.json(&json!({"password": password})).send().await;
        assert_eq!(answer.unwrap().status(), StatusCode::NO_CONTENT);
    };
    set("correct horse battery").await;
    let argv = json!({"argv": ["echo", "correct horse battery"]});
    served.ok(served.exec("prox-appliance", &argv)).await;
    // Whoever takes the name of an action for a password does not hide what he does next.
    set("instance.exec").await;
    served.ok(served.exec("prox-appliance", &argv)).await;
    let records = served.records();
    let changes: Vec<_> = lines(&records).into_iter().skip(2).step_by(2).collect();
    assert_eq!(
        changes,
        [
            "token:admin appliance.password default intent",
            "token:admin instance.exec prox-appliance intent",
            "token:admin appliance.password default intent",
            "token:admin instance.exec prox-appliance intent",
        ]
    );
    assert_eq!(records[4].detail, json!({"argv": ["echo", "***"]}));
}

#[tokio::test]
async fn refusals_are_recorded_with_their_code() {
    let served = Served::with_app("web").await;
    let before = served.records().len();
    let refused = |call: reqwest::RequestBuilder| async { served.problem(call).await.1 };
    let deploy = |body: &str| {
        let call = served.post("/apps/deploy").body(body.to_owned());
        call.header("content-type", "application/json")
    };
    refused(served.bare(Method::POST, "/api/v1/apps/web/stop")).await;
    refused(
        served
            .bare(Method::DELETE, "/api/v1/apps/web")
            .bearer_auth("wrong"),
    )
    .await;
    refused(served.post("/apps/web/stop").header("host", "evil.example")).await;
    refused(served.post("/apps/nobody/stop")).await;
    refused(deploy(r#"{"app_id":"nginx","instance_name":"web"}"#)).await;
    refused(deploy("{")).await;
    refused(served.post("/nowhere")).await;
    refused(served.call(Method::PUT, "/apps")).await;
    served.get("/apps/nobody").send().await.unwrap();
    served
        .bare(Method::GET, "/api/v1/apps")
        .send()
        .await
        .unwrap();

    let records = served.records();
    let told = told(&records[before..]);
    let seen: Vec<(&str, &Value)> = told
        .iter()
        .filter(|(line, _)| !line.ends_with("intent"))
        .map(|(line, detail)| (line.as_str(), &detail["refusal"]))
        .collect();
    assert_eq!(
        seen,
        [
            (
                "unidentified app.stop web refused",
                &json!("not_authenticated")
            ),
            (
                "unidentified app.delete web refused",
                &json!("not_authenticated")
            ),
            ("unidentified app.stop web refused", &json!("wrong_host")),
            (
                "token:admin app.stop nobody refused",
                &json!("unknown_instance")
            ),
            ("token:admin app.deploy web refused", &json!("name_taken")),
            ("token:admin app.deploy  refused", &json!("bad_body")),
            (
                "unidentified http.post /api/v1/nowhere refused",
                &json!("no_such_path")
            ),
            (
                "unidentified http.put /api/v1/apps refused",
                &json!("method_not_allowed")
            ),
        ]
    );
    assert_eq!(told[0].1["peer"], "tcp");
}

#[tokio::test]
async fn failures_and_unknown_ends_are_told_apart() {
    let served = Served::with_app("web").await;
    served.node.fail("exec", "the channel broke");
    let argv = json!({"argv": ["id"]});
    let broken = served.problem(served.exec("web", &argv)).await;
    assert_eq!((broken.0, broken.1.as_str()), (502, "outcome_unknown"));
    served.node.fail("probe", "it never answers");
    let failed = served.deploy("bad", "?wait=30s").await;
    assert_eq!(failed.status(), StatusCode::BAD_GATEWAY);
    let records = served.records();
    let last = lines(&records[records.len() - 4..]);
    assert_eq!(last[1], "token:admin instance.exec web unknown");
    assert_eq!(last[3], "token:admin app.deploy bad failed");
    assert_eq!(
        records.last().unwrap().detail,
        json!({"error": "deploy_failed"})
    );
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_an_unknown_outcome() {
    let served = Served::with_app("web").await;
    served.node.hold("exec");
    let call = served.exec("web", &json!({"argv": ["sleep", "60"]}));
    let call = tokio::spawn(call.send());
    served.node.until_called("exec").await;
    call.abort();
    let mut heads = served.log.heads();
    heads
        .wait_for(|_| {
            let records = served.records();
            records.last().unwrap().outcome == Verdict::Unknown
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_replayed_call_is_recorded_as_such() {
    let served = Served::up().await;
    for _ in 0..2 {
        let body = json!({"app_id": "nginx", "instance_name": "web"});
        let call = served.post("/apps/deploy").json(&body);
        served.ok(call.header("idempotency-key", "k1")).await;
    }
    let records = served.records();
    assert_eq!(records[records.len() - 3].target, "web");
    assert!(records[records.len() - 3].detail["operation"].is_string());
    assert_eq!(records.last().unwrap().detail, json!({"replayed": 202}));
}

#[tokio::test]
async fn nothing_is_done_that_cannot_be_recorded() {
    let served = Served::with_app("web").await;
    let kept = served.dir.path().join("elsewhere");
    std::fs::rename(served.audit_file(), &kept).unwrap();
    let done = || {
        let calls = served.node.calls.lock().unwrap();
        let by_timer = |c: &&String| c.starts_with("apply");
        calls.iter().filter(|c| !by_timer(c)).count()
    };
    let before = done();
    let argv = json!({"argv": ["id"]});
    let (status, code, hint) = served.problem(served.exec("web", &argv)).await;
    assert_eq!((status, code.as_str()), (503, "audit_unavailable"));
    assert!(hint.contains("proximity audit verify"), "{hint}");
    let (status, _, _) = served.problem(served.post("/apps/web/stop")).await;
    assert_eq!(status, 503);
    assert_eq!(done(), before);
    assert_eq!(
        served.ok(served.get("/apps/web")).await["status"],
        "running"
    );
    // Looking is allowed; the log itself can't be read.
    let (status, code, _) = served.problem(served.get("/audit")).await;
    assert_eq!((status, code.as_str()), (500, "audit_unreadable"));
    // Put back, it goes on.
    std::fs::rename(&kept, served.audit_file()).unwrap();
    served.ok(served.exec("web", &argv)).await;
    let report = audit::verify(served.audit_file(), None).unwrap();
    assert!(report.is_sound(), "{report}");
}

#[tokio::test]
async fn answers_carry_the_head_and_the_log_can_be_read() {
    let served = Served::with_app("web").await;
    let answer = served
        .exec("web", &json!({"argv": ["id"]}))
        .send()
        .await
        .unwrap();
    let head = answer.headers()["proximity-audit-head"]
        .to_str()
        .unwrap()
        .to_owned();
    let anchor = head.parse().unwrap();
    let report = audit::verify(served.audit_file(), Some(anchor)).unwrap();
    assert_eq!(report.proof, audit::Proof::UpTo(anchor));
    assert_eq!(report.head, anchor, "the outcome is in the head");
    let looked = served.get("/apps").send().await.unwrap();
    assert_eq!(looked.headers()["proximity-audit-head"], head.as_str());
    let stranger = served
        .bare(Method::GET, "/api/v1/apps")
        .send()
        .await
        .unwrap();
    assert!(!stranger.headers().contains_key("proximity-audit-head"));

    let all = served.ok(served.get("/audit")).await;
    let all = all["records"].as_array().unwrap();
    assert_eq!(all.len() as u64, anchor.seq);
    assert_eq!(all.last().unwrap()["hash"], head.split_once(':').unwrap().1);
    let of = async |query: &str| {
        let found = served.ok(served.get(&format!("/audit?{query}"))).await;
        found["records"].as_array().unwrap().len()
    };
    assert_eq!(of("target=default").await, 2);
    assert_eq!(of("target=web&limit=3").await, 3);
    assert_eq!(of("until=2020-01-01T00:00:00Z").await, 0);
    assert_eq!(of("since=2020-01-01T00:00:00Z").await, all.len());
    for bad in ["since=yesterday", "limit=0", "limit=1001", "limit=x"] {
        let (status, code, _) = served.problem(served.get(&format!("/audit?{bad}"))).await;
        assert_eq!((status, code.as_str()), (400, "bad_query"), "{bad}");
    }
}

/// A bound far above what it takes (two syncs of the disk), so that only a real mistake breaks it:
/// a pause, a lock that is held over a sync, a log that is read from its beginning.
#[tokio::test]
async fn an_audited_command_is_not_slow() {
    let served = Served::with_app("web").await;
    let argv = json!({"argv": ["true"]});
    let mut took = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        served.ok(served.exec("web", &argv)).await;
        took.push(began.elapsed());
    }
    took.sort();
    println!("audited exec: median {:?}, p95 {:?}", took[25], took[47]);
    assert!(took[25] < Duration::from_millis(250), "{took:?}");
}
