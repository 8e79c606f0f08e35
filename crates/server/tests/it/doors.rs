//! Who gets in, by which door, and what every answer carries.

use reqwest::{Method, StatusCode};

use crate::served::Served;

#[tokio::test]
async fn nobody_without_a_token_on_the_port() {
    let served = Served::start().await;
    let bare = || served.bare(Method::GET, "/api/v1/status");
    for call in [
        bare(),
        bare().bearer_auth("wrong"),
        bare().bearer_auth(""),
        bare().header("authorization", format!("Basic {}", served.token)),
        bare().query(&[("token", &served.token)]),
        bare()
            .header("x-role", "admin")
            .header("x-forwarded-for", "127.0.0.1"),
    ] {
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(
            answer.headers()["www-authenticate"],
            "Bearer realm=\"proximity\""
        );
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "not_authenticated");
        let hint = problem["hint"].as_str().unwrap();
        let socket = served.dir.path().join("p.sock");
        assert!(
            hint.contains(&format!("curl --unix-socket {}", socket.display())),
            "{hint}"
        );
        assert!(!problem.to_string().contains(&served.token));
    }
}

#[tokio::test]
async fn the_token_and_root_get_in() {
    let served = Served::start().await;
    served.ok(served.get("/status")).await;
    served.ok(served.root(Method::GET, "/status")).await;
    // A wrong token on the socket is a wrong token.
    let wrong = served.root(Method::GET, "/status").bearer_auth("wrong");
    assert_eq!(served.problem(wrong).await.0, 401);
    for open in [
        "/api/v1/system/health",
        "/api/v1/openapi.json",
        "/api/docs/",
    ] {
        let answer = served.bare(Method::GET, open).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{open}");
    }
}

#[tokio::test]
async fn the_token_is_kept_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let served = Served::start().await;
    for (file, mode) in [
        ("admin.token", 0o600),
        ("p.sock", 0o600),
        ("audit.log", 0o600),
    ] {
        let meta = std::fs::metadata(served.dir.path().join(file)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{file}");
    }
    // The store has a hash; the token itself is in its file only.
    for file in ["p.db", "p.db-wal"] {
        let bytes = std::fs::read(served.dir.path().join(file)).unwrap();
        let token = served.token.as_bytes();
        assert!(!bytes.windows(token.len()).any(|w| w == token), "{file}");
    }
    // Starting again takes the same one.
    let file = served.dir.path().join("admin.token");
    let redactor = audit::Redactor::new();
    server::admin_token(&served.controller, &file, &redactor)
        .await
        .unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), served.token);
    assert_eq!(redactor.text(&format!("x{}x", served.token)), "x***x");
    std::fs::write(&file, "\n").unwrap();
    let empty = server::admin_token(&served.controller, &file, &redactor).await;
    assert!(empty.unwrap_err().to_string().contains("holds no token"));
}

#[tokio::test]
async fn only_our_own_host_names() {
    let served = Served::start().await;
    for host in [
        "evil.example",
        "localhost.evil.example",
        "10.20.0.1",
        "prox.local:8765",
    ] {
        let call = served.get("/status").header("host", host);
        let (status, code, hint) = served.problem(call).await;
        assert_eq!((status, code.as_str()), (421, "wrong_host"), "{host}");
        assert!(hint.contains("localhost"));
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8765"] {
        let call = served.get("/status").header("host", host);
        assert_eq!(
            call.send().await.unwrap().status(),
            StatusCode::OK,
            "{host}"
        );
    }
    // Open paths are no way around it.
    let call = served
        .bare(Method::GET, "/api/docs/")
        .header("host", "evil.example");
    assert_eq!(served.problem(call).await.0, 421);
}

#[tokio::test]
async fn every_answer_is_safe_for_a_browser() {
    let served = Served::start().await;
    for path in [
        "/api/v1/status",
        "/api/v1/nothing",
        "/",
        "/api/docs/",
        "/api/v1/openapi.json",
    ] {
        let answer = served.bare(Method::GET, path).send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("x-frame-options"), "DENY", "{path}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        assert!(
            !answer.headers().contains_key("access-control-allow-origin"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_second_controller_finds_the_socket_taken() {
    let served = Served::start().await;
    let socket = served.dir.path().join("p.sock");
    let any = "127.0.0.1:0".parse().unwrap();
    let second = server::bind(any, &socket).await;
    let refused = second.err().unwrap().to_string();
    assert!(
        refused.contains("a controller is running already"),
        "{refused}"
    );
    served.ok(served.root(Method::GET, "/status")).await;
}
