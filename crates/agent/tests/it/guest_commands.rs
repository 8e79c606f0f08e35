//! An agent that runs commands on this machine, served on a unix socket without authentication, and
//! the calls that the tests make.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::exec::{self, Groups, Processes};
use api::exec::{Encoding, ExecEvent, ExecResult};
use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};

/// Long enough for a busy machine, short enough for a test.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub struct Guest {
    pub processes: Arc<Processes>,
    pub socket: PathBuf,
    pub root: tempfile::TempDir,
}

pub async fn guest() -> Guest {
    guest_with(None).await
}

/// Whose commands get control groups of their own.
pub async fn guest_with(groups: Option<Groups>) -> Guest {
    let processes = Processes::start(groups).unwrap();
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let router = exec::router(processes.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Guest {
        processes,
        socket,
        root,
    }
}

impl Guest {
    pub async fn connect(&self) -> Caller {
        connect(&self.socket).await
    }

    /// Runs a request on a connection of its own.
    pub async fn exec(&self, request: Value) -> ExecResult {
        self.connect().await.exec(&request).await
    }

    /// Runs a line of shell.
    pub async fn sh(&self, line: &str) -> ExecResult {
        self.exec(serde_json::json!({ "command": line })).await
    }

    /// Waits until no command runs.
    pub async fn idle(&self) {
        eventually("no command runs", || self.processes.running() == 0).await;
    }
}

/// A caller of an agent on this socket.
pub async fn connect(socket: &Path) -> Caller {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    Caller { sender, connection }
}

/// One kept connection. Dropping it hangs up.
pub struct Caller {
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Caller {
    pub async fn post(&mut self, body: Vec<u8>, accept: &str) -> Response<Incoming> {
        let request = Request::post("/exec")
            .header("host", "guest")
            .header("accept", accept)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    pub async fn exec(&mut self, request: &Value) -> ExecResult {
        let answer = self
            .post(request.to_string().into_bytes(), "application/json")
            .await;
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(status, 200, "{body:?}");
        let result: ExecResult = serde_json::from_slice(&body).unwrap();
        assert_eq!(result.channel, "agent");
        result
    }

    /// The status and the code of a problem.
    pub async fn refused(&mut self, body: &str) -> (u16, String) {
        let answer = self.post(body.into(), "application/json").await;
        let kind = answer.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(kind, "application/problem+json", "{body:?}");
        let problem: api::Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.status, status);
        (status, problem.code)
    }

    pub async fn stream(&mut self, request: &Value) -> Events {
        let body = request.to_string().into_bytes();
        let answer = self.post(body, "application/x-ndjson").await;
        assert_eq!(answer.status(), 200);
        Events {
            body: answer.into_body(),
            read: Vec::new(),
        }
    }
}

/// The lines of a streamed command.
pub struct Events {
    body: Incoming,
    read: Vec<u8>,
}

impl Events {
    /// The next event; none when the stream is over.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await;
            match frame.unwrap() {
                Some(frame) => self.read.extend(frame.unwrap().into_data().unwrap()),
                None => {
                    assert!(self.read.is_empty(), "half a line");
                    return None;
                }
            }
        }
    }

    /// All events to the end.
    pub async fn rest(&mut self) -> Vec<ExecEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The bytes of text and its encoding.
pub fn bytes(data: &str, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Utf8 => data.as_bytes().to_vec(),
        Encoding::Base64 => base64::engine::general_purpose::STANDARD
            .decode(data)
            .unwrap(),
    }
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether a process of this number is there and no zombie.
pub fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with(['Z', 'X']))
}
