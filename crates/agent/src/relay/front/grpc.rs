//! Takes gRPC from the reverse proxy: HTTP/2 without TLS, on the appliance's loopback.
//!
//! The proxy cannot speak HTTP/2 to unix sockets, so all routes share one port; the request's host
//! says which one is meant, and it counts among that route's connections. Whoever can connect here is
//! on the appliance and gets no further than through the proxy itself: to open routes, by their
//! policies.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::HostName;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Body, admit, pass, refusal};
use crate::relay::route::RouteTable;

/// Connections at a time: the proxy keeps very few.
const CONNECTIONS: usize = 8;
/// Calls on one connection at a time.
const CALLS: u32 = 256;
/// How often a silent connection is asked whether it is there.
const PING: Duration = Duration::from_secs(60);

/// Opens the port; 0 is any free one.
pub async fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await
}

/// Answers for ever.
pub async fn serve(listener: TcpListener, routes: RouteTable) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    serve_one(client, routes).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for gRPC could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(client: TcpStream, routes: RouteTable) {
    let service = service_fn(move |request| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(answer(&routes, request).await) }
    });
    // Without delay: an answer of few bytes would wait for the acknowledgement of the one before.
    let _ = client.set_nodelay(true);
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS)
        .keep_alive_interval(PING)
        .serve_connection(TokioIo::new(client), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection for gRPC ended");
    }
}

async fn answer(routes: &RouteTable, mut request: Request<Incoming>) -> Response<Body> {
    let Some(lane) = host_of(&request).and_then(|host| routes.lane(&host)) else {
        let why = "No app answers to this name (404). See: proximity route list";
        return refusal(StatusCode::NOT_FOUND, why);
    };
    let policy = lane.way.target.borrow().policy.clone();
    if let Err(refusal) = admit(&lane.way, &policy, &mut request).await {
        return *refusal;
    }
    let (target, counted) = (lane.way.target, lane.counted);
    let answer = pass::grpc(request, target).await;
    // Counted as long as its answer lives.
    let hold = move |frame| {
        let _ = &counted;
        frame
    };
    answer.map(|body| body.map_frame(hold).boxed_unsync())
}

fn host_of(request: &Request<Incoming>) -> Option<HostName> {
    let header = request.headers().get(header::HOST);
    let host = match (request.uri().host(), header) {
        (Some(host), _) => host,
        (None, header) => header?.to_str().ok()?.split(':').next()?,
    };
    host.to_ascii_lowercase().parse().ok()
}
