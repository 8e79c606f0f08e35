//! What is wrong with a call is said with a code and a hint, and nothing is changed.

use reqwest::Method;
use serde_json::json;

use crate::served::Served;

#[tokio::test]
async fn paths_and_methods_that_are_not_there() {
    let served = Served::start().await;
    for (method, path, status, code) in [
        (Method::GET, "/api/v1/nothing", 404, "no_such_path"),
        (Method::GET, "/", 404, "no_such_path"),
        (
            Method::GET,
            "/api/v1/apps/../../etc/passwd",
            404,
            "no_such_path",
        ),
        (Method::PUT, "/api/v1/apps", 405, "method_not_allowed"),
        (Method::DELETE, "/api/v1/status", 405, "method_not_allowed"),
    ] {
        let call = served.bare(method, path).bearer_auth(&served.token);
        let (was, said, hint) = served.problem(call).await;
        assert_eq!((was, said.as_str()), (status, code), "{path}");
        assert!(hint.contains("/api/docs"), "{hint}");
    }
}

#[tokio::test]
async fn bodies_that_cannot_be_read() {
    let served = Served::up().await;
    let deploy = |body: String| {
        let call = served.post("/apps/deploy").body(body);
        call.header("content-type", "application/json")
    };
    for body in [
        "",
        "{",
        "[]",
        "null",
        r#"{"app_id":1}"#,
        r#"{"app_id":"nginx","nam":"x"}"#,
    ] {
        let (status, code, hint) = served.problem(deploy(body.into())).await;
        assert!(matches!(status, 400 | 422), "{status} {body}");
        assert_eq!(code, "bad_body", "{body}");
        assert!(hint.contains("openapi.json"), "{hint}");
    }
    let text = served.post("/apps/deploy").body(r#"{"app_id":"nginx"}"#);
    let (status, code, _) = served.problem(text).await;
    assert_eq!((status, code.as_str()), (415, "not_json"));
    let long = format!(r#"{{"app_id":"{}"}}"#, "x".repeat(13 << 20));
    let (status, code, _) = served.problem(deploy(long)).await;
    assert_eq!((status, code.as_str()), (413, "bad_body"));
    assert!(
        served
            .ok(served.get("/apps"))
            .await
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn requests_that_are_refused() {
    let served = Served::with_app("web").await;
    let deploy = |body| served.post("/apps/deploy").json(&body);
    let exec = |name: &str, body| served.exec(name, &body);
    let put = |path: &str, body| served.call(Method::PUT, path).json(&body);
    for (call, status, code, hint) in [
        (
            deploy(json!({"app_id": "ngnix"})),
            404,
            "unknown_recipe",
            "`nginx`",
        ),
        (
            deploy(json!({"app_id": "nginx", "instance_name": "No"})),
            422,
            "invalid_name",
            "",
        ),
        (
            deploy(json!({"app_id": "nginx", "instance_name": "web"})),
            409,
            "name_taken",
            "proximity app show web",
        ),
        (
            deploy(json!({"app_id": "nginx", "zone": "x"})),
            404,
            "unknown_zone",
            "proximity zone list",
        ),
        (
            deploy(json!({"app_id": "nginx", "config": {"x": "y"}})),
            422,
            "bad_request",
            "proximity app catalog nginx",
        ),
        (
            deploy(json!({"app_id": "nginx", "resume": true})),
            422,
            "bad_request",
            "--resume",
        ),
        (
            served
                .post("/apps/deploy?wait=soon")
                .json(&json!({"app_id": "nginx"})),
            400,
            "bad_query",
            "60s",
        ),
        (
            served.get("/apps/nobody"),
            404,
            "unknown_instance",
            "proximity app list",
        ),
        (
            served.call(Method::DELETE, "/apps/nobody"),
            404,
            "unknown_instance",
            "proximity app list",
        ),
        (
            served.get("/catalog/x"),
            404,
            "unknown_recipe",
            "proximity app catalog",
        ),
        (
            served.get("/operations/op-0000000000000000"),
            404,
            "unknown_operation",
            "proximity operation list",
        ),
        (
            served.get("/operations/x/events"),
            404,
            "unknown_operation",
            "proximity operation list",
        ),
        (
            served.get("/appliance/vhosts/x.prox.local"),
            404,
            "unknown_route",
            "proximity route list",
        ),
        (
            served.get("/system/infrastructure?zone=x"),
            404,
            "unknown_zone",
            "configuration",
        ),
        (
            served.post("/zones/x/up"),
            404,
            "unknown_zone",
            "configuration",
        ),
        (
            served.post("/zones/default/down").json(&json!({})),
            409,
            "zone_has_instances",
            "--with-instances",
        ),
        (exec("web", json!({})), 422, "bad_request", "argv"),
        (
            exec("web", json!({"argv": ["id"], "channel": "pct"})),
            422,
            "bad_request",
            "channels of web: agent",
        ),
        (
            exec("nobody", json!({"argv": ["id"]})),
            404,
            "unknown_instance",
            "proximity app list",
        ),
        (
            put("/appliance/password", json!({"password": "short"})),
            422,
            "bad_request",
            "words",
        ),
    ] {
        let (was, said, hinted) = served.problem(call).await;
        assert_eq!((was, said.as_str()), (status, code), "{hinted}");
        assert!(hinted.contains(hint), "{code}: {hinted}");
    }
    let apps = served.ok(served.get("/apps")).await;
    assert_eq!(apps.as_array().unwrap().len(), 1);
    assert_eq!(apps[0]["status"], "running");
}
