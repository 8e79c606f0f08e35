//! Commands with their streams open: over a websocket, and as lines of JSON.

use api::session::{ACKNOWLEDGED, acknowledged_bytes};
use futures::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::served::Served;

async fn session(
    served: &Served,
    headers: &[(&'static str, String)],
    messages: &[Message],
) -> Result<Vec<Message>, Error> {
    let url = served.base.replace("http://", "ws://");
    let mut request = format!("{url}/api/v1/instances/web/session").into_client_request()?;
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
    for message in messages {
        socket.send(message.clone()).await?;
    }
    let mut heard = Vec::new();
    while let Some(message) = socket.next().await {
        match message? {
            Message::Close(_) => break,
            message => heard.push(message),
        }
    }
    Ok(heard)
}

fn json_of(message: &Message) -> Value {
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

#[tokio::test]
async fn a_session_carries_bytes_and_ends_with_one_event() {
    let served = Served::with_app("web").await;
    let token = [("authorization", format!("Bearer {}", served.token))];
    let start = json!({"exec": {"argv": ["cat"], "env": {"A": "secret-a"}}});
    let messages = [
        Message::text(start.to_string()),
        Message::binary(vec![0, 0xff, 0]),
        Message::text(r#"{"type":"stdin_eof"}"#),
    ];
    let heard = session(&served, &token, &messages).await.unwrap();
    assert_eq!(
        json_of(&heard[0]),
        json!({"type": "started", "pid": 1, "channel": "agent"})
    );
    assert_eq!(heard[1], Message::binary(b"\x01cat".to_vec()));
    assert_eq!(heard[2], Message::binary(vec![1, 0xff, 0]));
    let end = json_of(&heard[3]);
    assert_eq!(
        (&end["type"], &end["exit_code"]),
        (&json!("exit"), &json!(0))
    );
    assert_eq!(heard.len(), 4);

    let records = served.ok(served.get("/audit?target=web")).await.to_string();
    assert!(records.contains("instance.session") && records.contains("cat"));
    assert!(!records.contains("secret-a"), "{records}");
}

#[tokio::test]
async fn whoever_asks_is_told_what_input_was_taken() {
    let served = Served::with_app("web").await;
    let headers = [
        ("authorization", format!("Bearer {}", served.token)),
        ("sec-websocket-protocol", ACKNOWLEDGED.to_owned()),
    ];
    let mut messages = vec![Message::text(r#"{"exec":{"argv":["cat"]}}"#)];
    messages.extend((0..6).map(|_| Message::binary(vec![0; 40_001])));
    messages.push(Message::text(r#"{"type":"stdin_eof"}"#));
    let heard = session(&served, &headers, &messages).await.unwrap();
    let all: Vec<&[u8]> = heard.iter().filter_map(binary).collect();
    let output = all.iter().filter(|bytes| bytes[0] == 1);
    let output: usize = output.map(|bytes| bytes.len() - 1).sum();
    assert_eq!(output, "cat".len() + 240_000);
    let taken = all.iter().filter(|bytes| bytes[0] == 0);
    let taken: Vec<u64> = taken
        .map(|bytes| acknowledged_bytes(&bytes[1..]).unwrap())
        .collect();
    assert!(taken.iter().all(|bytes| *bytes <= 240_000), "{taken:?}");
    assert!(taken.is_sorted() && !taken.is_empty(), "{taken:?}");
}

fn binary(message: &Message) -> Option<&[u8]> {
    match message {
        Message::Binary(bytes) => Some(bytes),
        _ => None,
    }
}

#[tokio::test]
async fn a_message_that_is_not_understood_ends_the_command_and_is_told() {
    let served = Served::with_app("web").await;
    let token = [("authorization", format!("Bearer {}", served.token))];
    let start = Message::text(json!({"exec": {"argv": ["cat"]}}).to_string());
    for wrong in [
        Message::text(r#"{"type":"reboot"}"#),
        Message::binary(vec![1, 2]),
    ] {
        let heard = session(&served, &token, &[start.clone(), wrong]).await;
        let heard = heard.unwrap();
        let end = json_of(heard.last().unwrap());
        assert_eq!(end["code"], "outcome_unknown", "{heard:?}");
    }
}

#[tokio::test]
async fn who_may_not_and_what_cannot_be_is_told() {
    let served = Served::with_app("web").await;
    let token = ("authorization", format!("Bearer {}", served.token));
    let status = |refused: Result<Vec<Message>, Error>| match refused {
        Err(Error::Http(answer)) => answer.status().as_u16(),
        other => panic!("{other:?}"),
    };
    assert_eq!(status(session(&served, &[], &[]).await), 401);
    let foreign = ("origin", "http://evil.example".to_owned());
    let refused = session(&served, &[token.clone(), foreign], &[]).await;
    assert_eq!(status(refused), 403, "a page of another host");

    let own = ("origin", served.base.clone());
    let headers = [token, own];
    for (first, code) in [
        ("{}", "nothing_ran"),
        (r#"{"exec":{"argv":["id"],"stdin":"x"}}"#, "nothing_ran"),
        (
            r#"{"exec":{"argv":["id"],"channel":"lxc-attach"}}"#,
            "nothing_ran",
        ),
        (
            r#"{"exec":{"argv":["id"]},"tty":{"rows":0,"cols":1}}"#,
            "nothing_ran",
        ),
    ] {
        let heard = session(&served, &headers, &[Message::text(first)])
            .await
            .unwrap();
        let end = json_of(&heard[0]);
        assert_eq!(
            (&end["type"], &end["code"]),
            (&json!("error"), &json!(code)),
            "{first}"
        );
        assert_eq!(heard.len(), 1);
    }
}

#[tokio::test]
async fn a_command_as_lines() {
    let served = Served::with_app("web").await;
    let call = served.exec("web", &json!({"argv": ["a", "b"], "stdin": "in"}));
    let answer = call
        .header("accept", "application/x-ndjson")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let text = answer.text().await.unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let kinds: Vec<&str> = lines.iter().map(|l| l["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["started", "stdout", "exit"]);
    assert_eq!(lines[1]["data"], "a b");
}

#[tokio::test]
async fn sandboxes() {
    let served = Served::up().await;
    let made = served
        .post("/sandboxes?wait=30s")
        .json(&json!({"name": "box", "ttl_s": 600}));
    let made = made.send().await.unwrap();
    assert_eq!(made.status(), StatusCode::CREATED);
    let sandbox: Value = made.json().await.unwrap();
    assert_eq!(sandbox["status"], "running");
    let id = sandbox["id"].as_str().unwrap();
    let list = served.ok(served.get("/sandboxes")).await;
    assert_eq!(list.as_array().unwrap().len(), 1);
    let call = served.post(&format!("/sandboxes/{id}/extend"));
    let extended = served.ok(call.json(&json!({"ttl_s": 7200}))).await;
    assert!(extended["expires_in_s"].as_u64().unwrap() > 7000);
    let killed = served
        .ok(served.call(Method::DELETE, "/sandboxes/box"))
        .await;
    served.end(&killed).await;
    assert_eq!(served.ok(served.get("/sandboxes")).await, json!([]));
}
