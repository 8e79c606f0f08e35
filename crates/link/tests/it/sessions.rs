//! Commands with open streams, and connections to ports.

use std::sync::Arc;
use std::time::Duration;

use api::exec::{ExecEvent, ExecRequest};
use api::session::{
    ACKNOWLEDGED, SessionControl, SessionStart, WINDOW_BYTES, WindowSize, acknowledgement,
};
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use link::{AgentSession, LinkError, SessionInput, SessionOutput};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::lab::{Lab, healthy};

fn start(argv: &str) -> SessionStart {
    SessionStart {
        exec: ExecRequest {
            argv: vec![argv.into()],
            ..ExecRequest::default()
        },
        tty: None,
    }
}

async fn say(socket: &mut WebSocket, event: ExecEvent) {
    let text = serde_json::to_string(&event).unwrap();
    let _ = socket.send(Message::Text(text.into())).await;
}

/// An agent whose commands are the words of this test.
async fn play(mut socket: WebSocket, gone: Arc<Notify>) {
    let Some(Ok(Message::Text(first))) = socket.recv().await else {
        panic!("the start comes first");
    };
    let start: SessionStart = serde_json::from_str(&first).unwrap();
    let command = start.exec.argv[0].clone();
    if command == "refused" {
        let error = ExecEvent::Error {
            code: "nothing_ran".into(),
            message: "too many commands".into(),
        };
        return say(&mut socket, error).await;
    }
    if command == "mute" {
        return;
    }
    let started = ExecEvent::Started {
        pid: 42,
        channel: String::new(),
    };
    say(&mut socket, started).await;
    match command.as_str() {
        "garbage" => {
            let _ = socket
                .send(Message::Binary(Bytes::from_static(b"\x07x")))
                .await;
        }
        "huge" => {
            let _ = socket.send(Message::Binary(vec![1; 1 << 20].into())).await;
        }
        "flood" => {
            let message = Bytes::from(vec![1; 60_000]);
            while socket.send(Message::Binary(message.clone())).await.is_ok() {}
        }
        "broken" => return,
        "deaf" => deaf(&mut socket).await,
        _ => echo(&mut socket).await,
    }
    let _ = socket.recv().await;
    gone.notify_one();
}

/// Takes no input, and tells how much of it came before a signal. Then it takes it all.
async fn deaf(socket: &mut WebSocket) {
    assert_eq!(socket.protocol().unwrap(), ACKNOWLEDGED);
    let (mut came, mut signalled) = (0, false);
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Binary(bytes) => came += bytes.len() as u64 - 1,
            Message::Text(text) => match serde_json::from_str(&text).unwrap() {
                SessionControl::StdinEof => break,
                _ => signalled = true,
            },
            _ => continue,
        }
        assert!(signalled || came <= WINDOW_BYTES, "{came}");
        if signalled {
            let message = acknowledgement(came).to_vec();
            let _ = socket.send(Message::Binary(message.into())).await;
        }
    }
    let text = [b"\x01".as_slice(), came.to_string().as_bytes()].concat();
    let _ = socket.send(Message::Binary(text.into())).await;
    exits(socket).await;
}

async fn echo(socket: &mut WebSocket) {
    let mut taken = 0;
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Binary(bytes) => {
                assert!(bytes.len() <= api::session::MESSAGE_MAX_BYTES + 1);
                assert_eq!(bytes[0], 0);
                taken += bytes.len() as u64 - 1;
                let message = acknowledgement(taken).to_vec();
                let _ = socket.send(Message::Binary(message.into())).await;
                let mut back = bytes.to_vec();
                back[0] = 1;
                let _ = socket.send(Message::Binary(back.into())).await;
            }
            Message::Text(text) => match serde_json::from_str(&text).unwrap() {
                SessionControl::StdinEof => break,
                control => {
                    let text = [b"\x02".as_slice(), format!("{control:?}").as_bytes()].concat();
                    let _ = socket.send(Message::Binary(text.into())).await;
                }
            },
            _ => {}
        }
    }
    exits(socket).await;
}

async fn exits(socket: &mut WebSocket) {
    let exit = ExecEvent::Exit {
        exit_code: Some(3),
        signal: None,
        timed_out: false,
        duration_ms: 9,
    };
    say(socket, exit).await;
}

async fn lab() -> (Lab, Arc<Notify>) {
    let gone = Arc::new(Notify::new());
    let told = gone.clone();
    let session = move |headers: HeaderMap, upgrade: WebSocketUpgrade| async move {
        assert!(headers.contains_key("authorization"));
        let upgrade = upgrade.protocols([ACKNOWLEDGED]);
        upgrade.on_upgrade(move |socket| play(socket, told))
    };
    let router = Router::new()
        .route("/health", get(async || healthy()))
        .route("/session", any(session));
    (Lab::with(router).await, gone)
}

async fn open(lab: &Lab, command: &str) -> AgentSession {
    lab.link.session(&lab.peer, &start(command)).await.unwrap()
}

#[tokio::test]
async fn input_control_and_output_pass_and_the_end_is_told_once() {
    let (lab, _) = lab().await;
    // The session takes the connection that is warm.
    lab.link.health(&lab.peer).await.unwrap();
    let mut session = open(&lab, "echo").await;
    assert_eq!(lab.seen.tunnels(), 1);
    assert_eq!(session.pid, 42);
    let sent: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let window = WindowSize { rows: 2, cols: 3 };
    for input in [
        SessionInput::Stdin(sent.clone().into()),
        SessionInput::Resize(window),
    ] {
        session.input.send(input).await.unwrap();
    }
    let (mut stdout, mut stderr, mut ends) = (Vec::new(), Vec::new(), 0);
    while let Some(output) = session.output.recv().await {
        assert_eq!(ends, 0);
        match output {
            SessionOutput::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            SessionOutput::Stderr(bytes) => {
                stderr.extend_from_slice(&bytes);
                // What was said has arrived; a signal would not wait for it.
                if stderr.ends_with(b"}") && !stderr.ends_with(b"15 }") {
                    session.signals.send(15).await.unwrap();
                } else {
                    session.input.send(SessionInput::StdinEof).await.unwrap();
                }
            }
            SessionOutput::Ended {
                exit_code,
                duration_ms,
                ..
            } => {
                assert_eq!((exit_code, duration_ms), (Some(3), 9));
                ends += 1;
            }
            SessionOutput::Failed(error) => panic!("{error}"),
        }
    }
    assert_eq!(ends, 1);
    assert!(stdout == sent);
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(stderr, "Resize { rows: 2, cols: 3 }Signal { signal: 15 }");
}

#[tokio::test]
async fn a_signal_does_not_wait_behind_input() {
    let (lab, _) = lab().await;
    let AgentSession {
        input,
        signals,
        mut output,
        ..
    } = open(&lab, "deaf").await;
    let much = Bytes::from(vec![7; 1 << 20]);
    let typing = tokio::spawn(async move {
        for _ in 0..4 {
            let input = input.send(SessionInput::Stdin(much.clone()));
            input.await.unwrap();
        }
        input.send(SessionInput::StdinEof).await.unwrap();
    });
    // When the window is full nothing more is sent, however long one waits; that it never is more is seen there.
    signals.send(2).await.unwrap();
    typing.await.unwrap();
    match output.recv().await {
        Some(SessionOutput::Stdout(came)) => assert_eq!(came, (4 << 20).to_string()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        output.recv().await,
        Some(SessionOutput::Ended { .. })
    ));
}

#[tokio::test]
async fn a_session_without_an_end_is_a_failure() {
    let (lab, _) = lab().await;
    for command in ["broken", "garbage", "huge"] {
        let mut session = open(&lab, command).await;
        match session.output.recv().await {
            Some(SessionOutput::Failed(error)) => {
                assert!(error.may_have_run(), "{command}: {error}")
            }
            other => panic!("{command}: {other:?}"),
        }
        assert!(session.output.recv().await.is_none());
    }
    let refused = lab.link.session(&lab.peer, &start("refused")).await;
    assert!(
        matches!(refused, Err(LinkError::NothingRan { .. })),
        "{refused:?}"
    );
    let tunnels = lab.seen.tunnels();
    let long = start(&"x".repeat(200_000));
    let long = lab.link.session(&lab.peer, &long).await;
    assert!(
        matches!(long, Err(LinkError::NothingRan { .. })),
        "{long:?}"
    );
    assert_eq!(lab.seen.tunnels(), tunnels);
    let mute = lab.link.session(&lab.peer, &start("mute")).await;
    assert!(
        matches!(mute, Err(LinkError::OutcomeUnknown { .. })),
        "{mute:?}"
    );
}

#[tokio::test]
async fn a_slow_taker_slows_the_command_and_going_away_ends_it() {
    let (lab, gone) = lab().await;
    let mut session = open(&lab, "flood").await;
    assert!(matches!(
        session.output.recv().await,
        Some(SessionOutput::Stdout(_))
    ));
    // Nobody takes the rest: it stays where it is, and other calls are not held up.
    lab.link.health(&lab.peer).await.unwrap();
    assert!(session.output.len() <= 16);
    drop(session);
    timeout(Duration::from_secs(10), gone.notified())
        .await
        .unwrap();

    let session = open(&lab, "echo").await;
    drop(session.output);
    // Its echo ends when the websocket closes.
    timeout(Duration::from_secs(10), gone.notified())
        .await
        .unwrap();
    drop(session.input);
}

async fn forwarded(mut request: axum::extract::Request) -> Response {
    match request.uri().query() {
        Some("port=80") => {}
        _ => {
            let problem = api::Problem::new(502, "connection_refused", "nothing listens");
            return (StatusCode::BAD_GATEWAY, axum::Json(problem)).into_response();
        }
    }
    assert_eq!(request.headers()[header::UPGRADE], "tcp");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        write.write_all(b"hello ").await.unwrap();
        copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "tcp")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

#[tokio::test]
async fn a_port_is_reached_with_half_close() {
    let lab = Lab::with(Router::new().route("/forward", post(forwarded))).await;
    let mut stream = lab.link.forward(&lab.peer, 80).await.unwrap();
    let sent = vec![7; 1 << 20];
    let (mut read, mut write) = tokio::io::split(&mut *stream);
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, taken) = tokio::join!(writing, read.read_to_end(&mut back));
    taken.unwrap();
    assert!(back == [b"hello ".as_slice(), &sent].concat());

    let Err(error) = lab.link.forward(&lab.peer, 81).await else {
        panic!("a port that nobody listens at was opened");
    };
    let LinkError::Refused { problem, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(problem.code, "connection_refused");
}
