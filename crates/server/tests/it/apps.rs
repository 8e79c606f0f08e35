//! Apps, their logs, and commands in them.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::served::Served;

#[tokio::test]
async fn a_deploy_is_accepted_or_waited_for() {
    let served = Served::up().await;
    let answer = served.deploy("web", "").await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let accepted: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(accepted["name"], "web");
    let ended = served.end(&accepted).await;
    assert_eq!(
        (&ended["status"], &ended["kind"]),
        (&json!("succeeded"), &json!("deploy"))
    );

    let answer = served.deploy("db", "?wait=30s").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let app: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(app["status"], "running");
    assert_eq!(app["url"], "http://db.prox.local/");
    assert_eq!(
        (&app["ip"], &app["vmid"]),
        (&json!("10.20.0.101"), &json!(null))
    );
    assert_eq!(served.ok(served.get("/apps/db")).await, app);

    served.node.hold("probe");
    let answer = served.deploy("slow", "?wait=1s").await;
    assert_eq!(
        answer.status(),
        StatusCode::ACCEPTED,
        "it goes on without the caller"
    );
    served.node.mend("probe");
    served.node.fail("create", "the disk is full");
    let call = served.post("/apps/deploy?wait=30s");
    let call = call.json(&json!({"app_id": "nginx", "instance_name": "bad"}));
    let (status, code, hint) = served.problem(call).await;
    assert_eq!((status, code.as_str()), (502, "deploy_failed"));
    assert!(
        hint.contains("proximity app deploy nginx bad --resume"),
        "{hint}"
    );
}

#[tokio::test]
async fn what_runs_is_shown_where_people_look() {
    let served = Served::with_app("web").await;
    let routes = served.ok(served.get("/appliance/vhosts")).await;
    assert_eq!(routes[0]["host"], "web.prox.local");
    assert_eq!(routes[0]["health"], "healthy");
    let route = served
        .ok(served.get("/appliance/vhosts/web.prox.local"))
        .await;
    assert_eq!(route, routes[0]);
    let names = served.ok(served.get("/appliance/dns/records")).await;
    assert_eq!(names[0]["name"], "web.prox.local");
    let facts = served.ok(served.get("/system/infrastructure")).await;
    assert_eq!(
        (&facts["available"], &facts["connected_apps"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(facts["services"]["iptables"], "active");
    let status = served.ok(served.get("/status")).await;
    assert_eq!(
        (&status["instances"]["running"], &status["drift"]),
        (&json!(1), &json!([]))
    );
    let services = served.ok(served.get("/appliance/services")).await;
    assert_eq!(services["caddy"], "active");
}

#[tokio::test]
async fn a_command_and_its_result() {
    let served = Served::with_app("web").await;
    let result = served.ok(served.exec("web", &json!({"argv": ["echo", "$(id)"], "stdin": "in"})));
    assert_eq!(
        result.await,
        json!({
            "stdout": "echo $(id)", "stderr": "in", "stdout_encoding": "utf-8", "stderr_encoding": "utf-8",
            "exit_code": 0, "signal": null, "timed_out": false, "truncated": false, "duration_ms": 1,
            "channel": "agent",
        })
    );
    let binary = json!({"command": "cat", "stdin": "/wA=", "stdin_encoding": "base64"});
    let result = served.ok(served.exec("web", &binary)).await;
    assert_eq!(result["stdout"], "/bin/sh -c cat");
    assert_eq!(
        (&result["stderr"], &result["stderr_encoding"]),
        (&json!("/wA="), &json!("base64"))
    );
    let stop = served.ok(served.post("/apps/web/stop")).await;
    served.end(&stop).await;
    let call = served.exec("web", &json!({"argv": ["id"]}));
    let (status, code, hint) = served.problem(call).await;
    assert_eq!((status, code.as_str()), (409, "wrong_state"));
    assert!(hint.contains("proximity app start web"), "{hint}");
}

#[tokio::test]
async fn logs_are_data_and_never_a_page() {
    let served = Served::with_app("web").await;
    let answer = served.get("/apps/web/logs?lines=5").send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/plain; charset=utf-8");
    assert!(header("content-disposition").starts_with("attachment;"));
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(
        header("content-security-policy"),
        "sandbox; default-src 'none'"
    );
    assert!(answer.text().await.unwrap().ends_with("-n 5\n"));
    assert_eq!(served.problem(served.get("/apps/nobody/logs")).await.0, 404);
    let refused = served
        .problem(served.get("/apps/web/logs?lines=many"))
        .await;
    assert_eq!((refused.0, refused.1.as_str()), (400, "bad_query"));
    let head = served
        .call(Method::HEAD, "/apps/web/logs")
        .send()
        .await
        .unwrap();
    assert_eq!(head.status(), StatusCode::OK);
}
