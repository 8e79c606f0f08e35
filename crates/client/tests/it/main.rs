//! A watch over an operation against a server that speaks a few scripted lines: when it gives up,
//! when it does not, and what it never mistakes for an end.
#![cfg(test)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::{Client, Endpoint, Error, OperationWatch, Patience, Watched};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PATIENCE: Patience = Patience {
    silence: Duration::from_millis(200),
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(10),
    give_up_after: Duration::from_millis(400),
};
const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// What the server does with one connection after it has read the request.
#[derive(Clone, Copy)]
enum Answer {
    /// Says this and closes.
    Say(&'static str),
    /// Sends the head of an event stream and nothing more.
    Silence,
}

/// A server that answers its n-th connection with the n-th answer, and from then on with the last.
async fn server(answers: &'static [Answer]) -> (Client, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let n = count.fetch_add(1, Ordering::SeqCst);
            let answer = answers[n.min(answers.len() - 1)];
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                match answer {
                    Answer::Say(text) => {
                        let _ = stream.write_all(text.as_bytes()).await;
                    }
                    Answer::Silence => {
                        let _ = stream.write_all(HEAD.as_bytes()).await;
                        // Held open until the client closes it.
                        let _ = stream.read(&mut [0]).await;
                    }
                }
            });
        }
    });
    let client = Client::new(Endpoint::parse(&url).unwrap(), None).unwrap();
    (client, connections)
}

async fn watch(client: Client) -> (usize, Result<(), Error>) {
    let id = "op-0123456789abcdef".parse().unwrap();
    let mut watch = OperationWatch::new(client, id, PATIENCE);
    let mut lost = 0;
    loop {
        match watch.next().await {
            Ok(Watched::Lost(_)) => lost += 1,
            Ok(Watched::Step(_)) => {}
            Ok(Watched::End(_)) => return (lost, Ok(())),
            Err(error) => return (lost, Err(error)),
        }
    }
}

#[tokio::test]
async fn a_stream_that_only_ever_ends_is_given_up_and_is_no_success() {
    let (client, connections) = server(&[Answer::Say(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 0\r\n\r\n",
    )])
    .await;
    let (lost, end) = watch(client).await;
    assert!(matches!(end, Err(Error::Interrupted { .. })), "{end:?}");
    assert!(lost > 5 && connections.load(Ordering::SeqCst) > 5);
}

#[tokio::test]
async fn silence_is_a_cut() {
    let (client, connections) = server(&[Answer::Silence]).await;
    let (lost, end) = watch(client).await;
    assert!(matches!(end, Err(Error::Interrupted { .. })), "{end:?}");
    assert!((1..=2).contains(&lost), "{lost}");
    assert!(connections.load(Ordering::SeqCst) >= 2);
}

#[tokio::test]
async fn a_controller_that_comes_back_is_waited_for() {
    let down = Answer::Say("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    let end = Answer::Say(concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        "event: end\ndata: {\"id\":\"op-0123456789abcdef\",\"kind\":\"deploy\",\"target\":\"web\",",
        "\"status\":\"succeeded\",\"events\":[],\"created_at\":\"2026-01-01T00:00:00Z\"}\n\n"
    ));
    let answers: &'static [Answer] = vec![down, Answer::Silence, down, end].leak();
    let (client, connections) = server(answers).await;
    let (lost, outcome) = watch(client).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!((lost, connections.load(Ordering::SeqCst)), (3, 4));
}

#[tokio::test]
async fn nobody_there_is_unreachable_in_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(Endpoint::parse(&url).unwrap(), None).unwrap();
    let (lost, end) = watch(client).await;
    assert!(matches!(end, Err(Error::Unreachable { .. })), "{end:?}");
    assert!(lost > 1);
}

#[tokio::test]
async fn a_refusal_is_final() {
    let (client, connections) = server(&[Answer::Say(concat!(
        "HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\r\n",
        "{\"type\":\"urn:x\",\"title\":\"not found\",\"status\":404,\"detail\":\"no\",\"code\":\"not_found\"}"
    ))])
    .await;
    let (lost, end) = watch(client).await;
    assert!(matches!(end, Err(Error::Problem(_))), "{end:?}");
    assert_eq!((lost, connections.load(Ordering::SeqCst)), (0, 1));
}

#[tokio::test]
async fn an_endless_event_is_refused() {
    let text: &'static str = format!("{HEAD}data: {}", "x".repeat(2 << 20)).leak();
    let answers: &'static [Answer] = vec![Answer::Say(text)].leak();
    let (client, _) = server(answers).await;
    let (_, end) = watch(client).await;
    assert!(matches!(end, Err(Error::Protocol { .. })), "{end:?}");
}
