//! Routes with a policy, and gRPC: real HTTP servers behind real sockets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use agent::relay::front::grpc;
use agent::relay::route::{RouteTable, Target};
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::routing::{any, get};
use base64::Engine as _;
use futures::{SinkExt, StreamExt, stream};
use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message as Heard;
use wire::gateway::policy::{RouteAuth, RoutePolicy};

const PATIENCE: Duration = Duration::from_secs(20);

/// An app that shows what reached it.
async fn app() -> SocketAddrV4 {
    let echo = async |headers: HeaderMap, body: Bytes| {
        let authorization = headers.get("authorization");
        let authorization = authorization.map(|v| v.to_str().unwrap().to_owned());
        format!("{} bytes, {authorization:?}", body.len())
    };
    let events = async || {
        let first = stream::once(async { Ok::<_, Infallible>("data: 1\n\n") });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from_stream(first.chain(stream::pending())))
            .unwrap()
    };
    let socket = async |upgrade: WebSocketUpgrade| {
        upgrade.on_upgrade(async |mut socket| {
            while let Some(Ok(message)) = socket.recv().await {
                if let Message::Text(text) = message {
                    let answer = format!("app:{text}");
                    socket.send(Message::text(answer)).await.unwrap();
                }
            }
        })
    };
    let silent = async || -> &'static str { std::future::pending().await };
    let router = axum::Router::new()
        .route("/", any(echo))
        .route("/events", get(events))
        .route("/socket", any(socket))
        .route("/silent", get(silent));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = v4(listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("not IPv4"),
    }
}

struct Lab {
    table: RouteTable,
    dir: tempfile::TempDir,
    app: SocketAddrV4,
}

impl Lab {
    async fn new(policy: RoutePolicy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lab = Self {
            table: RouteTable::new(dir.path(), None).unwrap(),
            dir,
            app: app().await,
        };
        lab.set(lab.app, policy);
        lab
    }

    fn set(&self, address: SocketAddrV4, policy: RoutePolicy) {
        let target = Target {
            instance: "i-0000000000000001".parse().unwrap(),
            address,
            policy,
        };
        let targets = BTreeMap::from([("web.x".parse().unwrap(), target)]);
        let (_, failed) = self.table.open(&targets);
        assert!(failed.is_empty(), "{failed:?}");
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("web.x"))
            .await
            .unwrap()
    }

    /// Status, headers and text that one request gets.
    async fn ask(&self, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let stream = TokioIo::new(self.connect().await);
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let answer = timeout(PATIENCE, sender.send_request(request)).await;
        let (head, body) = answer.expect("an answer in time").unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        (head.status, head.headers, text)
    }
}

fn request(path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::post(path).header("host", "web.x");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

fn with_token() -> RoutePolicy {
    RoutePolicy {
        auth: Some(RouteAuth::Token {
            // Of `s3cret`.
            sha256: "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0".into(),
        }),
        ..RoutePolicy::default()
    }
}

#[tokio::test]
async fn a_token_opens_the_route_and_the_app_does_not_see_it() {
    let lab = Lab::new(with_token()).await;
    let (status, headers, _) = lab.ask(request("/", &[], "x")).await;
    assert_eq!(status, 401);
    assert_eq!(headers["www-authenticate"], "Bearer realm=\"web.x\"");
    let good = [("authorization", "Bearer s3cret")];
    let (status, _, text) = lab.ask(request("/", &good, "four")).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "4 bytes, None"));
}

#[tokio::test]
async fn a_policy_holds_from_the_next_request_of_an_open_connection_on() {
    let lab = Lab::new(RoutePolicy::default()).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(lab.connect().await))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut status = async || {
        let answer = sender.send_request(request("/", &[], "x")).await.unwrap();
        let (head, body) = answer.into_parts();
        body.collect().await.unwrap();
        head.status
    };
    assert_eq!(status().await, 200);
    lab.set(lab.app, with_token());
    assert_eq!(status().await, 401);
    lab.set(lab.app, RoutePolicy::default());
    assert_eq!(status().await, 200);
}

#[tokio::test]
async fn http_is_sent_to_https_with_its_path() {
    let lab = Lab::new(RoutePolicy {
        redirect_https: true,
        ..RoutePolicy::default()
    })
    .await;
    let by = |proto| [("x-forwarded-proto", proto), ("x-forwarded-host", "web.x")];
    let (status, headers, _) = lab.ask(request("/a?b=c", &by("http"), "x")).await;
    assert_eq!(status, 308);
    assert_eq!(headers["location"], "https://web.x/a?b=c");
    assert_eq!(lab.ask(request("/", &by("https"), "x")).await.0, 200);
}

#[tokio::test]
async fn a_body_has_its_limit_whether_its_length_is_said_or_not() {
    let lab = Lab::new(RoutePolicy {
        max_body_bytes: Some(1000),
        ..RoutePolicy::default()
    })
    .await;
    let (status, _, text) = lab.ask(request("/", &[], vec![0; 1000])).await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::OK, "1000 bytes, None")
    );
    let (status, _, text) = lab.ask(request("/", &[], vec![0; 300_000])).await;
    assert_eq!(status, 413, "{text}");
    assert!(text.contains("1000 bytes"), "{text}");
    let pieces = stream::iter((0..3).map(|_| Ok::<_, Infallible>(vec![0; 400])));
    let (status, _, text) = lab.ask(request("/", &[], Body::from_stream(pieces))).await;
    assert_eq!(status, 413, "{text}");
}

#[tokio::test]
async fn an_app_that_says_nothing_in_time_is_given_up_and_an_event_stream_is_not() {
    let lab = Lab::new(RoutePolicy {
        answer_within_ms: Some(300),
        ..RoutePolicy::default()
    })
    .await;
    let silent = Request::get("/silent").header("host", "web.x");
    let (status, _, _) = lab.ask(silent.body(Body::empty()).unwrap()).await;
    assert_eq!(status, 504);
    // The first event is there while the answer goes on, for longer than an answer may take to begin.
    let mut client = lab.connect().await;
    client
        .write_all(b"GET /events HTTP/1.1\r\nHost: web.x\r\n\r\n")
        .await
        .unwrap();
    let mut heard = String::new();
    while !heard.contains("data: 1\n\n") {
        let mut buffer = [0; 1024];
        let read = timeout(PATIENCE, client.read(&mut buffer)).await;
        let length = read.expect("an event in time").unwrap();
        assert_ne!(length, 0, "{heard:?}");
        heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    let more = timeout(Duration::from_millis(600), client.read_u8()).await;
    assert!(more.is_err(), "it neither ends nor says more: {more:?}");
}

#[tokio::test]
async fn a_websocket_passes_the_guard_and_ends_with_its_route() {
    let lab = Lab::new(with_token()).await;
    let asked = |token: &str| {
        Request::get("ws://web.x/socket")
            .header("host", "web.x")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")
            .header("x-route-token", token)
            .body(())
            .unwrap()
    };
    let refused = tokio_tungstenite::client_async(asked("wrong"), lab.connect().await).await;
    assert!(refused.unwrap_err().to_string().contains("401"));
    let (mut socket, _) = tokio_tungstenite::client_async(asked("s3cret"), lab.connect().await)
        .await
        .unwrap();
    for word in ["one", "two"] {
        socket.send(word.into()).await.unwrap();
        let answer = timeout(PATIENCE, socket.next()).await.unwrap().unwrap();
        assert_eq!(answer.unwrap().to_text().unwrap(), format!("app:{word}"));
    }
    assert_eq!(lab.table.report().await[0].connections, 1);
    lab.table.close_others(&BTreeMap::new());
    let end = timeout(PATIENCE, socket.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(Heard::Text(_)))), "{end:?}");
}

#[tokio::test]
async fn an_app_that_is_down_is_502() {
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = v4(gone.local_addr().unwrap());
    drop(gone);
    let lab = Lab::new(with_token()).await;
    lab.set(address, with_token());
    let good = [("authorization", "Bearer s3cret")];
    assert_eq!(lab.ask(request("/", &good, "x")).await.0, 502);
}

/// A gRPC server as far as the gateway sees one: HTTP/2 without TLS that answers each message as it
/// comes, with its status in trailers.
async fn grpc_app(hold: &'static Notify) -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = v4(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(move |request: Request<_>| async move {
                let held = request.uri().path() == "/held";
                let body: hyper::body::Incoming = request.into_body();
                let echoed = http_body_util::BodyStream::new(body);
                let end = stream::once(async move {
                    if held {
                        hold.notified().await;
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    Ok::<_, hyper::Error>(hyper::body::Frame::trailers(trailers))
                });
                let body = http_body_util::StreamBody::new(echoed.chain(end));
                let answer = Response::builder().header("content-type", "application/grpc");
                Ok::<_, Infallible>(answer.body(body).unwrap())
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

#[tokio::test]
async fn grpc_streams_both_ways_with_trailers_by_the_routes_policy() {
    static HOLD: Notify = Notify::const_new();
    let lab = Lab::new(with_token()).await;
    lab.set(grpc_app(&HOLD).await, with_token());
    let listener = grpc::listen(0).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(grpc::serve(listener, lab.table.clone()));
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let asked = |host: &str, token: &str, path: &str, body: Body| {
        Request::post(format!("http://{host}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {token}"))
            .body(body)
            .unwrap()
    };
    for (host, token, status) in [
        ("web.x", "wrong", 401),
        ("other.x", "s3cret", 404),
        ("web.x", "s3cret", 200),
    ] {
        let answer = sender.send_request(asked(host, token, "/", Body::from("x")));
        assert_eq!(answer.await.unwrap().status(), status, "{host} {token}");
    }

    // A message is answered before the next one is sent.
    let (mut say, said) = futures::channel::mpsc::channel::<Result<&str, Infallible>>(1);
    let call = asked("web.x", "s3cret", "/", Body::from_stream(said));
    let answer = sender.send_request(call);
    say.send(Ok("one")).await.unwrap();
    let mut body = timeout(PATIENCE, answer)
        .await
        .unwrap()
        .unwrap()
        .into_body();
    for word in ["one", "two"] {
        let frame = timeout(PATIENCE, body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.unwrap().into_data().unwrap(), word);
        if word == "one" {
            say.send(Ok("two")).await.unwrap();
        }
    }
    drop(say);
    let trailers = timeout(PATIENCE, body.frame()).await.unwrap().unwrap();
    assert_eq!(
        trailers.unwrap().into_trailers().unwrap()["grpc-status"],
        "0"
    );

    // A call that is under way ends with an error when its route is closed.
    let call = asked("web.x", "s3cret", "/held", Body::from("x"));
    let mut body = sender.send_request(call).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(lab.table.report().await[0].connections, 1);
    lab.table.close_others(&BTreeMap::new());
    let end = timeout(PATIENCE, body.frame()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "{end:?}");
}

#[tokio::test]
async fn a_password_is_asked_for_and_good_for_many_requests() {
    // Of `open sesame` with this salt, by 1000 rounds (RFC 8018's PBKDF2-HMAC-SHA256).
    let mut hash = [0; 32];
    let rounds = std::num::NonZeroU32::new(1000).unwrap();
    let algorithm = ring::pbkdf2::PBKDF2_HMAC_SHA256;
    ring::pbkdf2::derive(algorithm, rounds, &[1; 16], b"open sesame", &mut hash);
    let lab = Lab::new(RoutePolicy {
        auth: Some(RouteAuth::Basic {
            user: "anna".into(),
            salt: hex::encode([1; 16]),
            rounds: 1000,
            hash: hex::encode(hash),
        }),
        ..RoutePolicy::default()
    })
    .await;
    let (status, headers, _) = lab.ask(request("/", &[], "x")).await;
    assert_eq!(status, 401);
    assert_eq!(headers["www-authenticate"], "Basic realm=\"web.x\"");
    let pair = base64::engine::general_purpose::STANDARD.encode("anna:open sesame");
    let good = format!("Basic {pair}");
    for _ in 0..3 {
        let (status, _, text) = lab
            .ask(request("/", &[("authorization", &good)], "four"))
            .await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "4 bytes, None"));
    }
}
