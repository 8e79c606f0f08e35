//! Commands over kept connections: what is sent once, what is sent again, and what is not known.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::exec::{Encoding, ExecRequest, ExecResult};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use link::LinkError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::agent::Scope;

use crate::lab::{GUEST, Lab, conduct, healthy, until};
use crate::verifier::claims;

const SOON: Duration = Duration::from_secs(20);

fn command() -> ExecRequest {
    ExecRequest {
        argv: vec!["true".into()],
        ..ExecRequest::default()
    }
}

fn result(stdout: &str) -> ExecResult {
    ExecResult {
        stdout: stdout.into(),
        stderr: String::new(),
        stdout_encoding: Encoding::Utf8,
        stderr_encoding: Encoding::Utf8,
        exit_code: Some(0),
        signal: None,
        timed_out: false,
        truncated: false,
        duration_ms: 1,
        channel: "agent".into(),
    }
}

/// An agent that tells the token it was called with.
fn teller() -> Router {
    Router::new()
        .route("/health", get(async || healthy()))
        .route(
            "/exec",
            post(async |headers: HeaderMap, Json(_): Json<ExecRequest>| {
                Json(result(headers["authorization"].to_str().unwrap()))
            }),
        )
}

#[tokio::test]
async fn a_hundred_calls_need_one_handshake_and_one_token() {
    let lab = Lab::with(teller()).await;
    let health = lab.link.wait_ready(&lab.peer, SOON).await.unwrap();
    assert_eq!(health.instance, GUEST);
    let mut tokens = std::collections::BTreeSet::new();
    let begun = Instant::now();
    for _ in 0..100 {
        let result = lab.link.exec(&lab.peer, &command(), SOON).await.unwrap();
        tokens.insert(result.stdout);
    }
    println!("100 warm calls: {:?}", begun.elapsed());
    assert_eq!(lab.seen.full_handshakes.load(Ordering::SeqCst), 1);
    assert_eq!(lab.seen.resumed_handshakes.load(Ordering::SeqCst), 0);
    assert_eq!(lab.seen.tunnels(), 1);
    assert_eq!(tokens.len(), 1);
    let token = tokens.first().unwrap().strip_prefix("Bearer ").unwrap();
    let claims = claims(&lab.authority.tokens().public_key(), token, GUEST);
    assert_eq!(claims.scope, [Scope::Exec]);
}

#[tokio::test]
async fn a_new_connection_resumes_the_tls_session_and_forgetting_closes_the_old_one() {
    let lab = Lab::with(teller()).await;
    lab.link.exec(&lab.peer, &command(), SOON).await.unwrap();
    lab.link.forget(&lab.peer.instance);
    lab.link.exec(&lab.peer, &command(), SOON).await.unwrap();
    assert_eq!(lab.seen.tunnels(), 2);
    assert_eq!(lab.seen.full_handshakes.load(Ordering::SeqCst), 1);
    assert_eq!(lab.seen.resumed_handshakes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn calls_at_a_time_have_connections_of_their_own() {
    let lab = Lab::with(teller()).await;
    let command = command();
    let calls = (0..12).map(|_| lab.link.exec(&lab.peer, &command, SOON));
    for result in futures::future::join_all(calls).await {
        result.unwrap();
    }
    assert_eq!(lab.seen.tunnels(), 12);
    // Eight of them are kept, and enough for as many calls.
    until(|| lab.seen.ended() == 4).await;
    let calls = (0..8).map(|_| lab.link.exec(&lab.peer, &command, SOON));
    for result in futures::future::join_all(calls).await {
        result.unwrap();
    }
    assert_eq!(lab.seen.tunnels(), 12);
    lab.link.forget(&lab.peer.instance);
    until(|| lab.seen.ended() == 12).await;
}

/// An agent that reads requests without a framework: it counts, and does as `after` says.
#[derive(Clone, Copy, PartialEq)]
enum After {
    /// Answers the first request of a connection, then closes it.
    FirstAnswer,
    /// Answers the first and closes when it has read the second.
    SecondRequest,
    /// Closes when it has read the first.
    FirstRequest,
}

async fn closing(after: After) -> (Lab, Arc<AtomicUsize>) {
    let lab = Lab::new().await;
    let executed = Arc::new(AtomicUsize::new(0));
    let count = executed.clone();
    let conduct = conduct(move |mut stream| {
        let executed = count.clone();
        async move {
            for round in 1.. {
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                while !request.ends_with(b"}") {
                    match stream.read(&mut piece).await {
                        Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
                        _ => return,
                    }
                }
                executed.fetch_add(1, Ordering::SeqCst);
                let close = match after {
                    After::FirstRequest => true,
                    After::SecondRequest => round == 2,
                    After::FirstAnswer => false,
                };
                if !close {
                    let body = serde_json::to_string(&result("")).unwrap();
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    let answer = head + &body;
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
                if close || after == After::FirstAnswer {
                    stream.shutdown().await.unwrap();
                    return;
                }
            }
        }
    });
    lab.serve_with(lab.bundle(), conduct).await;
    (lab, executed)
}

#[tokio::test]
async fn a_kept_connection_that_the_agent_closed_is_replaced_and_nothing_runs_twice() {
    let (lab, executed) = closing(After::FirstAnswer).await;
    for round in 1..=5 {
        lab.link.exec(&lab.peer, &command(), SOON).await.unwrap();
        // Closed by the agent, and then by the link.
        until(|| lab.seen.ended() == round).await;
    }
    assert_eq!(executed.load(Ordering::SeqCst), 5);
    assert_eq!(lab.seen.tunnels(), 5);
}

#[tokio::test]
async fn a_command_whose_answer_does_not_come_is_not_sent_again() {
    let (lab, executed) = closing(After::FirstRequest).await;
    let error = lab.link.exec(&lab.peer, &command(), SOON).await;
    assert!(
        matches!(error, Err(LinkError::OutcomeUnknown { .. })),
        "{error:?}"
    );
    assert!(error.unwrap_err().may_have_run());
    assert_eq!(executed.load(Ordering::SeqCst), 1);

    // The same on a connection that was kept.
    let (lab, executed) = closing(After::SecondRequest).await;
    lab.link.exec(&lab.peer, &command(), SOON).await.unwrap();
    let error = lab.link.exec(&lab.peer, &command(), SOON).await;
    assert!(
        matches!(error, Err(LinkError::OutcomeUnknown { .. })),
        "{error:?}"
    );
    assert_eq!(executed.load(Ordering::SeqCst), 2);
    assert_eq!(lab.seen.tunnels(), 1);
}

#[tokio::test]
async fn what_may_be_asked_twice_is_asked_again_when_a_kept_connection_breaks() {
    let (lab, executed) = closing(After::SecondRequest).await;
    lab.link.exec(&lab.peer, &command(), SOON).await.unwrap();
    // The first try breaks on the kept connection, the second is answered on a new one.
    let renewed = lab.link.renew(&lab.peer, &lab.bundle()).await;
    renewed.unwrap();
    assert_eq!(executed.load(Ordering::SeqCst), 3);
    assert_eq!(lab.seen.tunnels(), 2);
}

#[tokio::test]
async fn problems_of_the_agent_come_as_they_are() {
    let router = Router::new().route(
        "/exec",
        post(async || {
            let problem = api::Problem::new(422, "nothing_ran", "no such user").hint("add it");
            (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response()
        }),
    );
    let lab = Lab::with(router).await;
    for _ in 0..3 {
        let error = lab
            .link
            .exec(&lab.peer, &command(), SOON)
            .await
            .unwrap_err();
        assert!(!error.may_have_run());
        let LinkError::Refused { problem, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(
            (problem.code.as_str(), problem.status),
            ("nothing_ran", 422)
        );
        assert_eq!(problem.hint.as_deref(), Some("add it"));
    }
    // A refusal is a whole answer: its connection is kept.
    assert_eq!(lab.seen.tunnels(), 1);
}

#[tokio::test]
async fn waiting_ends_when_the_agent_answers_or_patience_is_over() {
    let lab = Lab::new().await;
    let begun = Instant::now();
    let error = lab
        .link
        .wait_ready(&lab.peer, Duration::from_millis(100))
        .await;
    let error = error.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(!error.may_have_run());
    assert!(error.to_string().contains("connection refused"), "{error}");

    let waiting = {
        let (link, peer) = (lab.link.clone(), lab.peer.clone());
        tokio::spawn(async move { link.wait_ready(&peer, SOON).await })
    };
    let tried = lab.seen.refused.load(Ordering::SeqCst);
    until(|| lab.seen.refused.load(Ordering::SeqCst) > tried + 3).await;
    lab.serve(lab.bundle(), teller()).await;
    waiting.await.unwrap().unwrap();
    lab.link.exec(&lab.peer, &command(), SOON).await.unwrap();
    assert_eq!(lab.seen.tunnels(), 1);
}

#[tokio::test]
async fn a_new_identity_is_given_and_old_connections_are_closed() {
    let router = teller().route(
        "/identity",
        put(
            async |headers: HeaderMap, Json(bundle): Json<wire::identity::Bundle>| {
                assert_eq!(bundle.instance, GUEST);
                assert!(headers.contains_key("authorization"));
                StatusCode::NO_CONTENT
            },
        ),
    );
    let lab = Lab::with(router).await;
    lab.link.renew(&lab.peer, &lab.bundle()).await.unwrap();
    lab.link.health(&lab.peer).await.unwrap();
    assert_eq!(lab.seen.tunnels(), 2);
}
