//! An app for guests of end-to-end tests, which speaks what real apps speak: HTTP with its headers
//! shown, server-sent events and websockets on port 8080, gRPC as far as a proxy sees it on port 8081,
//! UDP on port 8082.

use std::convert::Infallible;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderValue, Request, Response};
use axum::response::IntoResponse;
use axum::routing::{any, get};
use futures::{StreamExt, stream};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, UdpSocket};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let router = Router::new()
        .route("/", any(shown))
        .route("/events", get(events))
        .route("/socket", any(socket));
    let pages = TcpListener::bind("0.0.0.0:8080").await?;
    let calls = TcpListener::bind("0.0.0.0:8081").await?;
    let datagrams = UdpSocket::bind("0.0.0.0:8082").await?;
    tokio::spawn(echo_calls(calls));
    tokio::spawn(echo_datagrams(datagrams));
    axum::serve(pages, router).await?;
    Ok(())
}

/// How long the body was, and what came with it.
async fn shown(headers: HeaderMap, body: Bytes) -> String {
    let mut text = format!("{} bytes\n", body.len());
    for (name, value) in &headers {
        text.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    text
}

/// One event, and no end.
async fn events() -> Response<Body> {
    let first = stream::once(async { Ok::<_, Infallible>("data: first\n\n") });
    let body = Body::from_stream(first.chain(stream::pending()));
    let event_stream = [("content-type", "text/event-stream")];
    (event_stream, body).into_response()
}

/// Answers each text with itself.
async fn socket(upgrade: WebSocketUpgrade) -> Response<Body> {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(text) = message
                && socket
                    .send(Message::text(format!("echo {text}")))
                    .await
                    .is_err()
            {
                return;
            }
        }
    })
}

/// Answers each message as it comes, and ends with a status in trailers.
async fn echo_calls(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn(|request: Request<Incoming>| async move {
            let messages = http_body_util::BodyStream::new(request.into_body());
            let end = stream::once(async {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Ok::<_, hyper::Error>(Frame::trailers(trailers))
            });
            let mut answer = Response::new(http_body_util::StreamBody::new(messages.chain(end)));
            let kind = HeaderValue::from_static("application/grpc");
            answer.headers_mut().insert("content-type", kind);
            Ok::<_, Infallible>(answer)
        });
        let connection = http2::Builder::new(TokioExecutor::new());
        tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
    }
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        if let Some(said) = buffer.get(..length) {
            // Who went away gets no answer.
            let _ = socket.send_to(said, from).await;
        }
    }
}
