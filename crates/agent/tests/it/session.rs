//! `GET /session`: terminals and pipes of real processes over a websocket.

use api::exec::ExecEvent;
use api::session::{ACKNOWLEDGED, Stream, WINDOW_BYTES, acknowledged_bytes};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::guest_commands::{Guest, PATIENCE, eventually, guest, lives};

/// A client's end of a session.
struct Session {
    socket: WebSocketStream<UnixStream>,
    /// All that the command wrote so far, by stream.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// How much input was taken, as far as it was told.
    taken: u64,
}

async fn connect(guest: &Guest) -> Session {
    connect_with(guest, None).await
}

async fn connect_with(guest: &Guest, protocol: Option<&'static str>) -> Session {
    let stream = UnixStream::connect(&guest.socket).await.unwrap();
    let mut request = "ws://guest/session".into_client_request().unwrap();
    if let Some(protocol) = protocol {
        let name = "sec-websocket-protocol";
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(protocol));
    }
    let (socket, answer) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    let chosen = answer.headers().get("sec-websocket-protocol");
    assert_eq!(chosen.map(|chosen| chosen.to_str().unwrap()), protocol);
    Session {
        socket,
        stdout: Vec::new(),
        stderr: Vec::new(),
        taken: 0,
    }
}

/// A session that has started, and its process's number.
async fn start(guest: &Guest, start: Value) -> (Session, u32) {
    started(connect(guest).await, start).await
}

async fn started(mut session: Session, start: Value) -> (Session, u32) {
    session.say(start).await;
    match session.event().await {
        Some(ExecEvent::Started { pid, .. }) => (session, pid),
        other => panic!("{other:?}"),
    }
}

fn terminal(line: &str) -> Value {
    json!({"exec": {"command": line}, "tty": {"rows": 33, "cols": 77}})
}

impl Session {
    async fn say(&mut self, message: Value) {
        let message = Message::text(message.to_string());
        self.socket.send(message).await.unwrap();
    }

    async fn type_in(&mut self, keys: &[u8]) {
        let message = Message::binary([&[Stream::Stdin as u8], keys].concat());
        self.socket.send(message).await.unwrap();
    }

    /// The next event, keeping output that comes before it; none when the server has closed.
    async fn event(&mut self) -> Option<ExecEvent> {
        loop {
            if let Some(event) = self.next().await? {
                return Some(event);
            }
        }
    }

    async fn next(&mut self) -> Option<Option<ExecEvent>> {
        match timeout(PATIENCE, self.socket.next())
            .await
            .unwrap()?
            .unwrap()
        {
            Message::Text(text) => return Some(Some(serde_json::from_str(&text).unwrap())),
            Message::Binary(bytes) => match Stream::of(bytes[0]).unwrap() {
                Stream::Stdout => self.stdout.extend(&bytes[1..]),
                Stream::Stderr => self.stderr.extend(&bytes[1..]),
                Stream::Stdin => self.taken = acknowledged_bytes(&bytes[1..]).unwrap(),
            },
            Message::Close(_) => return None,
            _ => {}
        }
        Some(None)
    }

    /// Waits until the command has written this.
    async fn reads(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            match self.next().await {
                Some(None) => {}
                other => panic!(
                    "{other:?} after {:?}",
                    String::from_utf8_lossy(&self.stdout)
                ),
            }
        }
    }

    /// The final event, after which there is none, and the close.
    async fn end(&mut self) -> ExecEvent {
        let last = self.event().await.expect("a session ends with an event");
        assert!(
            matches!(last, ExecEvent::Exit { .. } | ExecEvent::Error { .. }),
            "{last:?}"
        );
        assert_eq!(self.event().await, None);
        last
    }

    async fn exits(&mut self) -> (Option<i32>, Option<i32>) {
        match self.end().await {
            ExecEvent::Exit {
                exit_code, signal, ..
            } => (exit_code, signal),
            other => panic!("{other:?}"),
        }
    }

    async fn fails(&mut self) -> String {
        match self.end().await {
            ExecEvent::Error { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn streams_stay_apart_and_exact() {
    let guest = guest().await;
    let (session, _) = start(
        &guest,
        json!({"exec": {"command": "cat; echo end >&2; exit 5"}}),
    )
    .await;
    let input: Vec<u8> = (0..2_000_000u32).map(|i| i as u8).collect();
    let chunks: Vec<Vec<u8>> = input.chunks(60_000).map(<[u8]>::to_vec).collect();
    let (mut sink, mut stream) = session.socket.split();
    let typing = tokio::spawn(async move {
        for chunk in chunks {
            let message = Message::binary([&[0u8], chunk.as_slice()].concat());
            sink.send(message).await.unwrap();
        }
        let eof = Message::text(r#"{"type":"stdin_eof"}"#);
        sink.send(eof).await.unwrap();
        sink
    });
    let (mut stdout, mut stderr): (Vec<u8>, Vec<u8>) = Default::default();
    let mut events = Vec::new();
    while let Some(message) = timeout(PATIENCE, stream.next()).await.unwrap() {
        match message.unwrap() {
            Message::Binary(bytes) if bytes[0] == 1 => stdout.extend(&bytes[1..]),
            Message::Binary(bytes) => stderr.extend(&bytes[1..]),
            Message::Text(text) => events.push(serde_json::from_str(&text).unwrap()),
            _ => {}
        }
    }
    drop(typing.await.unwrap());
    assert!(stdout == input);
    assert_eq!(stderr, b"end\n");
    assert!(matches!(
        events[..],
        [ExecEvent::Exit {
            exit_code: Some(5),
            ..
        }]
    ));
    guest.idle().await;
}

#[tokio::test]
async fn a_terminal_is_one() {
    let guest = guest().await;
    let line = "tty; echo $TERM; stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done";
    let (mut session, pid) = start(&guest, terminal(line)).await;
    session.reads("ready").await;
    let text = String::from_utf8(session.stdout.clone()).unwrap();
    assert!(
        text.starts_with("/dev/pts/") && text.contains("xterm-256color\r\n33 77\r\n"),
        "{text}"
    );
    session
        .say(json!({"type": "resize", "rows": 5, "cols": 6}))
        .await;
    session.reads("5 6").await;
    // The key, not the signal: the terminal makes the one of the other.
    session.type_in(b"\x03").await;
    assert_eq!(session.exits().await, (None, Some(2)));
    assert!(!lives(&pid.to_string()));
    // What is written last is not lost, and Ctrl-D is the end of input.
    let (mut session, _) = start(&guest, terminal("cat; seq 20000; exit 9")).await;
    session.type_in(b"hello\n").await;
    session.reads("hello\r\nhello\r\n").await;
    session.say(json!({"type": "stdin_eof"})).await;
    assert_eq!(session.exits().await, (Some(9), None));
    let text = String::from_utf8_lossy(&session.stdout).into_owned();
    assert!(
        text.ends_with("\r\n19999\r\n20000\r\n"),
        "{}",
        &text[text.len().saturating_sub(60)..]
    );
    guest.idle().await;
}

#[tokio::test]
async fn a_terminal_belongs_to_its_user() {
    let guest = guest().await;
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let exec =
        json!({"command": "id -u; echo mine >/dev/tty; stat -c %u $(tty)", "user": "nobody"});
    let tty = json!({"rows": 24, "cols": 80});
    let (mut session, _) = start(&guest, json!({"exec": exec, "tty": tty})).await;
    assert_eq!(session.exits().await, (Some(0), None));
    assert_eq!(session.stdout, b"65534\r\nmine\r\n65534\r\n");
}

#[tokio::test]
async fn signals_reach_the_whole_group() {
    let guest = guest().await;
    let line = "trap '' TERM; trap 'wait; exit 3' USR1; (trap 'echo child; exit' USR1; echo up; while :; do sleep 0.02; done) & while :; do sleep 0.02; done";
    let (mut session, _) = start(&guest, json!({"exec": {"command": line}})).await;
    session.reads("up").await;
    session.say(json!({"type": "signal", "signal": 15})).await;
    session.say(json!({"type": "signal", "signal": 10})).await;
    session.reads("child").await;
    assert_eq!(session.exits().await, (Some(3), None));
    let (mut session, _) = start(&guest, json!({"exec": {"command": "sleep 1000"}})).await;
    session.say(json!({"type": "signal", "signal": 64})).await;
    assert_eq!(session.exits().await, (None, Some(64)));
}

#[tokio::test]
async fn input_that_is_not_read_keeps_nothing_else_waiting() {
    let guest = guest().await;
    // As much as a peer may send that heeds no acknowledgements, and more than the pipe takes.
    let much = vec![7; 60_000];
    for signal in [Some(15), None] {
        let sleep = json!({"exec": {"argv": ["sleep", "1000"]}});
        let (mut session, pid) = start(&guest, sleep).await;
        for _ in 0..16 {
            session.type_in(&much).await;
        }
        match signal {
            Some(signal) => {
                let control = json!({"type": "signal", "signal": signal});
                session.say(control).await;
                assert_eq!(session.exits().await, (None, Some(signal)));
            }
            None => drop(session),
        }
        eventually("it ends", || !lives(&pid.to_string())).await;
    }
    guest.idle().await;
}

#[tokio::test]
async fn whoever_asks_is_told_what_was_taken() {
    let guest = guest().await;
    let session = connect_with(&guest, Some(ACKNOWLEDGED)).await;
    // It begins to read when it is told to, and stops in the middle.
    let line =
        "trap 'exec head -c 1000000 >/dev/null' USR1; echo set; while :; do sleep 0.02; done";
    let (mut session, _) = started(session, json!({"exec": {"command": line}})).await;
    // Before the trap is set the signal would end it.
    while session.stdout != b"set\n" {
        assert_eq!(session.next().await, Some(None));
    }
    let piece = vec![7; 1 << 14];
    let mut sent = 0;
    let mut send = async |session: &mut Session, bytes: u64| {
        while sent < bytes {
            session.type_in(&piece).await;
            sent += piece.len() as u64;
        }
    };
    send(&mut session, WINDOW_BYTES).await;
    session.say(json!({"type": "signal", "signal": 10})).await;
    while session.taken < WINDOW_BYTES / 2 {
        assert_eq!(session.next().await, Some(None));
    }
    assert!(session.taken <= WINDOW_BYTES);
    // What is left when the command ends was never read, and holds nobody up.
    for window in 1..6 {
        send(&mut session, window * WINDOW_BYTES).await;
    }
    assert_eq!(session.exits().await, (Some(0), None));
    guest.idle().await;
}

#[tokio::test]
async fn a_session_without_a_peer_ends_its_tree() {
    let guest = guest().await;
    let runaway = "setsid sh -c 'echo pid $$; exec sleep 1000' & trap '' HUP; sleep 1000";
    let pipes = json!({"exec": {"command": runaway}});
    for (request, polite) in [
        (terminal(runaway), true),
        (terminal(runaway), false),
        (pipes, false),
    ] {
        let (mut session, pid) = start(&guest, request).await;
        while !session.stdout.ends_with(b"\n") {
            assert_eq!(session.next().await, Some(None));
        }
        let text = String::from_utf8(session.stdout.clone()).unwrap();
        let child = text.trim().strip_prefix("pid ").unwrap().to_owned();
        assert!(lives(&child) && lives(&pid.to_string()));
        if polite {
            session.socket.close(None).await.unwrap();
        }
        drop(session);
        eventually("both end", || !lives(&child) && !lives(&pid.to_string())).await;
    }
    guest.idle().await;
}

#[tokio::test]
async fn every_session_has_one_final_event() {
    let guest = guest().await;
    let fails = async |first: Message| {
        let mut session = connect(&guest).await;
        session.socket.send(first).await.unwrap();
        session.fails().await
    };
    for first in [
        Message::text("{"),
        Message::binary(b"\0x".to_vec()),
        Message::text(r#"{"exec":{}}"#),
        Message::text(r#"{"exec":{"argv":["cat"],"stdin":"x"}}"#),
        Message::text(r#"{"exec":{"argv":["true"],"user":"no-such-user"}}"#),
    ] {
        assert_eq!(fails(first).await, "nothing_ran");
    }
    for (wrong, says) in [
        (Message::text("{}"), "outcome_unknown"),
        (Message::binary(b"\x01x".to_vec()), "outcome_unknown"),
        (
            Message::text(r#"{"type":"signal","signal":65}"#),
            "outcome_unknown",
        ),
    ] {
        let (mut session, pid) = start(&guest, json!({"exec": {"argv": ["sleep", "1000"]}})).await;
        session.socket.send(wrong).await.unwrap();
        assert_eq!(session.fails().await, says);
        eventually("it ends", || !lives(&pid.to_string())).await;
    }
    let (mut session, pid) = start(&guest, json!({"exec": {"argv": ["no-such-program"]}})).await;
    assert_eq!(pid, 0);
    assert_eq!(session.exits().await, (Some(127), None));
    assert!(String::from_utf8_lossy(&session.stderr).contains("no-such-program"));
    let exec = json!({"exec": {"argv": ["sleep", "1000"], "timeout_ms": 50}});
    let (mut session, _) = start(&guest, exec).await;
    let last = session.end().await;
    assert!(matches!(
        last,
        ExecEvent::Exit {
            exit_code: None,
            timed_out: true,
            ..
        }
    ));
    guest.idle().await;
}
