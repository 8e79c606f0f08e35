//! A router on a real TCP socket, and raw HTTP/1.1 requests to it.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A body of a request in a test.
pub type TestBody = BoxBody<Bytes, std::io::Error>;

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.as_ref()?.get(name)?.to_str().ok()
    }

    pub fn code(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let problem: api::Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        problem.code
    }
}

/// Serves a router until the test ends.
pub async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Sends a request on a connection of its own; the head of the answer.
pub async fn send(
    address: SocketAddr,
    request: Request<TestBody>,
) -> Result<Response<hyper::body::Incoming>, hyper::Error> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    timeout(PATIENCE, sender.send_request(request))
        .await
        .expect("an answer in time")
}

/// Sends a request and reads the whole answer.
pub async fn call(address: SocketAddr, request: Request<TestBody>) -> Answer {
    let (head, body) = send(address, request).await.unwrap().into_parts();
    let body = timeout(PATIENCE, body.collect())
        .await
        .expect("a body in time")
        .unwrap();
    Answer {
        status: head.status,
        headers: head.headers,
        trailers: body.trailers().cloned(),
        body: body.to_bytes(),
    }
}

/// A request with a whole body and these headers.
pub fn request(
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<TestBody> {
    let body = body.into();
    let body = if body.is_empty() && method != Method::PUT {
        Empty::new().map_err(|never| match never {}).boxed()
    } else {
        Full::new(body).map_err(|never| match never {}).boxed()
    };
    with_body(method, uri, headers, body)
}

/// A request with any body.
pub fn with_body(
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
    body: TestBody,
) -> Request<TestBody> {
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "guest");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}
