//! The same call sent twice is carried out once.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::served::Served;

fn deploy(served: &Served, name: &str, key: &str) -> RequestBuilder {
    let body = json!({"app_id": "nginx", "instance_name": name});
    let call = served.post("/apps/deploy").json(&body);
    call.header("idempotency-key", key)
}

#[tokio::test]
async fn a_repeated_call_gets_the_first_answer() {
    let served = Served::up().await;
    let first = deploy(&served, "web", "k").send().await.unwrap();
    assert!(!first.headers().contains_key("idempotency-replayed"));
    let first: Value = first.json().await.unwrap();
    let second = deploy(&served, "web", "k").send().await.unwrap();
    assert_eq!(
        (second.status(), &second.headers()["idempotency-replayed"]),
        (202.try_into().unwrap(), &"true".parse().unwrap())
    );
    assert_eq!(second.json::<Value>().await.unwrap(), first);
    // A refusal is an answer too.
    let refused = served.problem(deploy(&served, "web", "k2")).await;
    assert_eq!(refused.1, "name_taken");
    let delete = served.ok(served.call(Method::DELETE, "/apps/web")).await;
    served.end(&delete).await;
    assert_eq!(served.problem(deploy(&served, "web", "k2")).await, refused);
    assert!(
        served
            .ok(served.get("/apps"))
            .await
            .as_array()
            .unwrap()
            .is_empty()
    );
    served.ok(deploy(&served, "web", "k3")).await;
}

#[tokio::test]
async fn a_key_belongs_to_one_call_and_one_caller() {
    let served = Served::up().await;
    served.ok(deploy(&served, "web", "k")).await;
    let other = served.problem(deploy(&served, "db", "k")).await;
    assert_eq!((other.0, other.1.as_str()), (422, "key_reused"));
    let path = served
        .call(Method::DELETE, "/apps/web")
        .header("idempotency-key", "k");
    assert_eq!(served.problem(path).await.1, "key_reused");
    let body = json!({"app_id": "nginx", "instance_name": "db"});
    let root = served.root(Method::POST, "/apps/deploy").json(&body);
    served.ok(root.header("idempotency-key", "k")).await;
    for bad in ["", "\u{fc}", &"x".repeat(256)] {
        let refused = served.problem(deploy(&served, "db2", bad)).await;
        assert_eq!(
            (refused.0, refused.1.as_str()),
            (400, "bad_idempotency_key"),
            "{bad:?}"
        );
    }
}

#[tokio::test]
async fn a_call_under_way_is_not_begun_again() {
    let served = Served::with_app("web").await;
    served.node.hold("exec");
    let exec = || {
        let call = served.exec("web", &json!({"argv": ["id"]}));
        call.header("idempotency-key", "k")
    };
    let first = tokio::spawn(exec().send());
    served.node.until_called("exec").await;
    let second = served.problem(exec()).await;
    assert_eq!((second.0, second.1.as_str()), (409, "in_flight"));
    served.node.mend("exec");
    let first: Value = first.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(served.ok(exec()).await, first);
    let calls = served.node.calls.lock().unwrap().clone();
    assert_eq!(calls.iter().filter(|c| c.starts_with("exec")).count(), 1);
}

#[tokio::test]
async fn what_may_have_run_is_not_run_again_and_what_did_not_may() {
    let served = Served::with_app("web").await;
    let exec = || {
        let call = served.exec("web", &json!({"argv": ["id"]}));
        call.header("idempotency-key", "k")
    };
    served.node.fail("exec", "the channel broke");
    let broken = served.problem(exec()).await;
    assert_eq!((broken.0, broken.1.as_str()), (502, "outcome_unknown"));
    served.node.mend("exec");
    assert_eq!(served.problem(exec()).await, broken);

    let log = served.audit_file();
    let kept = served.dir.path().join("elsewhere");
    std::fs::rename(&log, &kept).unwrap();
    assert_eq!(served.problem(deploy(&served, "db", "k2")).await.0, 503);
    std::fs::rename(&kept, &log).unwrap();
    served.ok(deploy(&served, "db", "k2")).await;
}

#[tokio::test]
async fn a_call_that_was_broken_off_is_answered_and_not_run_again() {
    let served = Served::with_app("web").await;
    served.node.hold("exec");
    let exec = || {
        let call = served.exec("web", &json!({"argv": ["id"]}));
        call.header("idempotency-key", "k")
    };
    let first = tokio::spawn(exec().send());
    served.node.until_called("exec").await;
    first.abort();
    // Until the server has seen that the caller is gone, the call is under way.
    let after = loop {
        let after = served.problem(exec()).await;
        if after.1 != "in_flight" {
            break after;
        }
    };
    served.node.mend("exec");
    assert_eq!((after.0, after.1.as_str()), (502, "outcome_unknown"));
    assert!(after.2.contains("new key"), "{}", after.2);
    let calls = served.node.calls.lock().unwrap().clone();
    assert_eq!(calls.iter().filter(|c| c.starts_with("exec")).count(), 1);
}

#[tokio::test]
async fn of_an_answer_that_is_too_large_its_end_is_kept() {
    let served = Served::with_app("web").await;
    let exec = |length: usize, key: &str| {
        // The node of tests answers with what it was told to run; such a character has six bytes in JSON.
        let call = served.exec("web", &json!({"argv": ["echo", "\u{1}".repeat(length)]}));
        call.header("idempotency-key", key)
    };
    for (length, kept) in [(1000, true), (180_000, false)] {
        let key = format!("k{length}");
        let first = served.ok(exec(length, &key)).await;
        assert_eq!(first["exit_code"], 0);
        assert_eq!(first["stdout"].as_str().unwrap().len(), length + 5);
        if kept {
            assert_eq!(served.ok(exec(length, &key)).await, first);
            continue;
        }
        for _ in 0..2 {
            let again = served.problem(exec(length, &key)).await;
            assert_eq!((again.0, again.1.as_str()), (410, "result_not_kept"));
            assert!(again.2.contains("new key"), "{}", again.2);
        }
        let again = exec(length, &key).send().await.unwrap();
        assert_eq!(again.headers()["idempotency-replayed"], "true");
        let problem: Value = again.json().await.unwrap();
        let detail = problem["detail"].as_str().unwrap();
        for part in ["answered with 200", "exit code 0", "too large"] {
            assert!(detail.contains(part), "{detail}");
        }
    }
    let calls = served.node.calls.lock().unwrap().clone();
    assert_eq!(calls.iter().filter(|c| c.starts_with("exec")).count(), 2);
}

#[tokio::test]
async fn streams_take_no_key() {
    let served = Served::with_app("web").await;
    let lines = served
        .exec("web", &json!({"argv": ["id"]}))
        .header("accept", "application/x-ndjson");
    let file = served
        .call(Method::PUT, "/instances/web/files?path=/x")
        .body("x");
    let port = served.post("/instances/web/forward?port=80");
    for call in [lines, file, port] {
        let refused = served.problem(call.header("idempotency-key", "k")).await;
        assert_eq!((refused.0, refused.1.as_str()), (400, "no_key_for_streams"));
    }
}
