//! A controller made of one function: it gets each request whole and answers as the test wants.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Problem;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};

pub const OPERATION: &str = "op-0123456789abcdef";
const DIGEST: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A running controller; it ends with the test's process.
pub struct Controller {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Controller {
    /// Listens on a free port of this machine.
    pub fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        let (router, seen) = router(answer);
        let url = serve(router);
        Self { url, seen }
    }

    /// Listens on a unix socket.
    pub fn start_unix(
        path: &Path,
        answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Self {
        let (router, seen) = router(answer);
        let url = serve_unix(path, router);
        Self { url, seen }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The first lines of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|s| s.line).collect()
    }
}

/// Serves a router on a free port of this machine until the test's process ends; its URL.
pub fn serve(router: Router) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    run(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    url
}

/// Serves a router on a unix socket; its URL.
pub fn serve_unix(path: &Path, router: Router) -> String {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    run(async move {
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    format!("unix:{}", path.display())
}

fn router(
    answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
) -> (Router, Arc<Mutex<Vec<Seen>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let answer = Arc::new(answer);
    let record = Arc::clone(&seen);
    let router = Router::new().fallback(move |request: Request| {
        let (answer, record) = (Arc::clone(&answer), Arc::clone(&record));
        async move {
            let (head, body) = request.into_parts();
            let path = head.uri.path_and_query().unwrap().as_str();
            let seen = Seen {
                line: format!("{} {}", head.method, path.trim_start_matches("/api/v1")),
                headers: head.headers,
                body: to_bytes(body, 64 << 20).await.unwrap(),
            };
            record.lock().unwrap().push(seen.clone());
            Ok::<_, Infallible>(answer(&seen))
        }
    });
    (router, seen)
}

fn run(server: impl Future<Output = ()> + Send + 'static) {
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(server);
    });
}

/// A JSON answer.
pub fn answer(status: u16, body: impl Serialize) -> Response {
    let body = serde_json::to_vec(&body).unwrap();
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// An error answer.
pub fn problem(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap();
    let body = serde_json::to_vec(&problem).unwrap();
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body,
    )
        .into_response()
}

/// What this controller does not know.
pub fn not_found(seen: &Seen) -> Response {
    problem(Problem::new(404, "not_found", format!("no {}", seen.line)))
}

/// Server-sent events; after the last one the connection breaks if `cut`, else it ends well.
pub fn events(text: String, cut: bool) -> Response {
    let head = futures::stream::once(async { Ok(Bytes::from(text)) });
    let tail = futures::stream::iter(cut.then_some(())).then(async |()| {
        // An error at once would take the events with it before they are sent.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err::<Bytes, std::io::Error>(std::io::ErrorKind::ConnectionReset.into())
    });
    let body = Body::from_stream(head.chain(tail));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// One `step` event.
pub fn step(seq: u32, step: &str, state: &str, message: &str, ms: Option<u64>) -> String {
    let data = json!({
        "seq": seq, "time": "2026-01-01T00:00:00Z", "step": step, "state": state,
        "message": message, "elapsed_ms": ms,
    });
    format!("id: {seq}\nevent: step\ndata: {data}\n\n")
}

/// The `end` event.
pub fn end(operation: &Value) -> String {
    format!("event: end\ndata: {operation}\n\n")
}

pub fn operation(kind: &str, target: &str, status: &str) -> Value {
    json!({
        "id": OPERATION, "kind": kind, "target": target, "status": status, "events": [],
        "created_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:05Z",
    })
}

pub fn accepted() -> Response {
    answer(202, json!({ "operation_id": OPERATION }))
}

pub fn zone(name: &str) -> Value {
    json!({
        "name": name, "node": "local", "bridge": "proximity-lan", "subnet": "10.20.0.0/24",
        "domain": "prox.local", "desired": "up", "state": "up", "instances": 1, "drift": [],
    })
}

pub fn app(name: &str) -> Value {
    json!({
        "name": name, "id": "i-0123456789abcdef", "app_id": "nginx", "zone": "default",
        "vmid": null, "ip": "10.20.0.100", "mac": "52:78:00:01:00:64", "port": 80,
        "url": format!("https://{name}.prox.local"), "status": "running", "image": DIGEST,
        "limits": { "cpu_millis": 500, "memory_mb": 256, "pids": 512, "disk_gb": 8 },
        "egress": "internet",
        "created_at": "2026-01-01T00:00:00Z",
    })
}
