//! Operations as server-sent events.

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::served::Served;

/// One event: its name, its id, its data.
type Event = (String, Option<u32>, Value);

/// Reads events until `enough`, or to the end of the stream.
async fn events(answer: &mut Response, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut text = String::new();
    let mut seen = Vec::new();
    while !enough(&seen) {
        let Some(piece) = answer.chunk().await.unwrap() else {
            break;
        };
        text.push_str(std::str::from_utf8(&piece).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let mut lines = event.lines();
                lines.find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
            };
            if let (Some(name), Some(data)) = (field("event"), field("data")) {
                let id = field("id").map(|id| id.parse().unwrap());
                seen.push((name.to_owned(), id, serde_json::from_str(data).unwrap()));
            }
            text = rest.to_owned();
        }
    }
    seen
}

async fn watch(served: &Served, id: &str, after: Option<&str>) -> Response {
    let mut call = served.get(&format!("/operations/{id}/events"));
    if let Some(after) = after {
        call = call.header("last-event-id", after);
    }
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    answer
}

#[tokio::test]
async fn events_come_as_they_happen_and_can_be_resumed() {
    let served = Served::up().await;
    served.node.hold("probe");
    let accepted: Value = served.deploy("web", "").await.json().await.unwrap();
    let id = accepted["operation_id"].as_str().unwrap();
    let mut live = watch(&served, id, None).await;
    let waits = |e: &[Event]| e.last().is_some_and(|e| e.2["step"] == "ready");
    let mut seen = events(&mut live, waits).await;
    assert_eq!(seen[0].2["step"], "image");
    served.node.mend("probe");
    seen.extend(events(&mut live, |_| false).await);
    let (end, steps) = seen.split_last().unwrap();
    assert_eq!((end.0.as_str(), end.1), ("end", None));
    assert_eq!(end.2["status"], "succeeded");
    assert!(steps.iter().all(|s| s.0 == "step"));
    let ids: Vec<u32> = steps.iter().map(|s| s.1.unwrap()).collect();
    assert_eq!(ids, (1..=steps.len() as u32).collect::<Vec<_>>());
    assert_eq!(steps.last().unwrap().2["step"], "route");

    let mut late = watch(&served, id, Some("5")).await;
    let resumed = events(&mut late, |_| false).await;
    assert_eq!(resumed, seen[5..]);
    let mut over = watch(&served, id, Some("9999")).await;
    assert_eq!(events(&mut over, |_| false).await.len(), 1, "the end only");
    let call = served.get(&format!("/operations/{id}/events"));
    let bad = served.problem(call.header("last-event-id", "x")).await;
    assert_eq!((bad.0, bad.1.as_str()), (400, "bad_event_id"));

    let whole = served.ok(served.get(&format!("/operations/{id}"))).await;
    let told: Vec<&Value> = steps.iter().map(|s| &s.2).collect();
    assert_eq!(json!(whole["events"]), json!(told));
    let list = served.ok(served.get("/operations")).await;
    assert_eq!(list[0]["id"], id);
    assert_eq!(list[0]["events"], json!([]));
}

#[tokio::test]
async fn a_failed_operation_ends_with_its_failure() {
    let served = Served::up().await;
    served.node.fail("start", "no memory");
    let accepted: Value = served.deploy("web", "").await.json().await.unwrap();
    let mut live = watch(&served, accepted["operation_id"].as_str().unwrap(), None).await;
    let seen = events(&mut live, |_| false).await;
    let end = seen.last().unwrap();
    assert_eq!(
        (end.0.as_str(), &end.2["status"]),
        ("end", &json!("failed"))
    );
    assert_eq!(end.2["failure"]["step"], "start");
    assert_eq!(seen[seen.len() - 2].2["state"], "failed");
}

#[tokio::test]
async fn a_watch_ends_with_the_server() {
    let served = Served::up().await;
    served.node.hold("probe");
    let accepted: Value = served.deploy("web", "").await.json().await.unwrap();
    let mut live = watch(&served, accepted["operation_id"].as_str().unwrap(), None).await;
    events(&mut live, |e| !e.is_empty()).await;
    served.stop();
    let rest = events(&mut live, |_| false).await;
    assert!(
        rest.iter().all(|e| e.0 == "step"),
        "no end that did not happen"
    );
}
