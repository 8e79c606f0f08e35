//! The OpenAPI document: it is reviewed when it changes, and it tells of every path there is.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::served::Served;

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// `METHOD path` of everything in the document.
fn documented() -> BTreeSet<String> {
    let document = server::openapi_document();
    let mut all = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys();
        all.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    all
}

/// `METHOD path` of every `.route("/path", get(…).put(…))` in the sources.
fn routed() -> BTreeSet<String> {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = BTreeSet::new();
    for file in std::fs::read_dir(sources).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for call in text.split(".route(").skip(1) {
            let path = call.split('"').nth(1).unwrap();
            // The handlers stand between here and the next call of the chain, or its end.
            let handlers = call.split(".route(").next().unwrap();
            let handlers = handlers.split("\n}").next().unwrap();
            for method in METHODS {
                if handlers.contains(&format!("{method}(")) {
                    all.insert(format!("{} /api/v1{path}", method.to_uppercase()));
                }
            }
        }
    }
    all
}

#[test]
fn the_document() {
    insta::assert_json_snapshot!(server::openapi_document());
}

#[test]
fn every_route_is_in_the_document() {
    assert_eq!(routed(), documented());
    assert!(routed().len() > 20);
}

#[test]
fn references_lead_somewhere_and_operations_have_names_of_their_own() {
    let document = server::openapi_document();
    let text = document.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
    let mut tagged = BTreeSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap();
            let tag = operation["tags"][0].as_str().unwrap();
            assert!(tagged.insert(format!("{tag} {id}")), "{tag} {id} twice");
        }
    }
}

#[tokio::test]
async fn every_documented_call_is_there() {
    let served = Served::start().await;
    for call in documented() {
        let (method, path) = call.split_once(' ').unwrap();
        let path = path
            .replace("{name}", "x")
            .replace("{zone}", "x")
            .replace("{id}", "x");
        let path = path.replace("{host}", "x.y");
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = served.bare(method, &path).bearer_auth(&served.token);
        let answer = answer.send().await.unwrap();
        if !answer.status().is_success() {
            let problem: Value = answer.json().await.unwrap();
            let code = problem["code"].as_str().unwrap();
            assert!(
                !matches!(code, "no_such_path" | "method_not_allowed"),
                "{call}: {problem}"
            );
        }
    }
}

#[tokio::test]
async fn it_is_served_and_can_be_browsed() {
    let served = Served::start().await;
    let answer = served
        .bare(Method::GET, "/api/v1/openapi.json")
        .send()
        .await
        .unwrap();
    assert_eq!(
        answer.json::<Value>().await.unwrap(),
        server::openapi_document()
    );
    let page = served.bare(Method::GET, "/api/docs/").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    assert!(
        page.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
    let page = page.text().await.unwrap();
    assert!(page.contains("swagger-ui"), "{page}");
    // Everything the page needs comes from here.
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "{page}"
    );
    let short = served.bare(Method::GET, "/api/docs").send().await.unwrap();
    assert!(
        short.status().is_success() || short.status().is_redirection(),
        "{}",
        short.status()
    );
}
