//! Carries one request to the instance and its answer back.
//!
//! Each request has a connection of its own to the instance: the way there is a bridge on the same
//! machine, and what one request leaves behind on a connection is then nobody else's. Headers that
//! concern one connection (RFC 9110, 7.6.1) stay on theirs. Never retries.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::{mpsc, watch};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::{BUFFER_BYTES, Body, refusal, too_large};
use crate::relay::route::Target;
use crate::relay::splice::{IDLE, connect, route_closed};

type Failure = Box<dyn Error + Send + Sync>;

/// Both ends of a connection that left HTTP behind.
pub struct Upgrade {
    client: OnUpgrade,
    app: OnUpgrade,
}

/// Headers that are about one connection and not about the request.
const OF_A_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::EXPECT,
];

/// Carries an HTTP/1.1 request. What becomes another protocol is handed to `upgrades`.
pub async fn http(
    mut request: Request<Incoming>,
    target: &Target,
    upgrades: mpsc::Sender<Upgrade>,
) -> Response<Body> {
    let protocol = upgrade_of(request.headers());
    let client = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
    of_one_connection(request.headers_mut(), protocol.as_ref());
    let request = limited(request, target.policy.max_body_bytes);
    let exchange = async {
        let stream = connect(target.address).await?;
        let (mut app, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection.with_upgrades());
        Ok::<_, Failure>(app.send_request(request).await?)
    };
    let mut answer = match timeout(patience(target), exchange).await {
        Ok(Ok(answer)) => answer,
        other => return no_answer(target, other),
    };
    let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let spoken = upgrade_of(answer.headers()).filter(|_| switched);
    if let (Some(client), Some(_)) = (client, &spoken) {
        let app = hyper::upgrade::on(&mut answer);
        // There is one place, and a connection switches once.
        let _ = upgrades.try_send(Upgrade { client, app });
    } else if switched {
        return refusal(
            StatusCode::BAD_GATEWAY,
            "The app switched to a protocol nobody asked for (502)",
        );
    }
    of_one_connection(answer.headers_mut(), spoken.as_ref());
    answer.map(|body| body.map_err(Failure::from).boxed_unsync())
}

/// Carries a gRPC request by HTTP/2. Its answer ends with an error when the route is closed.
pub async fn grpc(request: Request<Incoming>, target: watch::Receiver<Target>) -> Response<Body> {
    let here = target.borrow().clone();
    let request = limited(request, here.policy.max_body_bytes);
    let exchange = async {
        let stream = connect(here.address).await?;
        let (mut app, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok::<_, Failure>(app.send_request(request).await?)
    };
    match timeout(patience(&here), exchange).await {
        Ok(Ok(answer)) => answer.map(|body| until_closed(body, target)),
        other => no_answer(&here, other),
    }
}

fn patience(target: &Target) -> Duration {
    let asked = target.policy.answer_within_ms;
    asked.map_or(IDLE, Duration::from_millis).min(IDLE)
}

fn limited(request: Request<Incoming>, most: Option<u64>) -> Request<Body> {
    request.map(|body| match most {
        Some(most) => {
            Limited::new(body, usize::try_from(most).unwrap_or(usize::MAX)).boxed_unsync()
        }
        None => body.map_err(Failure::from).boxed_unsync(),
    })
}

fn until_closed(body: Incoming, target: watch::Receiver<Target>) -> Body {
    let frames = stream::unfold(Some((body, target)), async |open| {
        let (mut body, mut target) = open?;
        tokio::select! {
            biased;
            () = route_closed(&mut target) => {
                let closed: Result<Frame<Bytes>, Failure> = Err("the route was closed".into());
                Some((closed, None))
            }
            frame = body.frame() => {
                let frame = frame?.map_err(Failure::from);
                Some((frame, Some((body, target))))
            }
        }
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

type Outcome = Result<Result<Response<Incoming>, Failure>, Elapsed>;

fn no_answer(target: &Target, outcome: Outcome) -> Response<Body> {
    let Ok(outcome) = outcome else {
        let why = "The app behind this name did not answer in time (504)";
        return refusal(StatusCode::GATEWAY_TIMEOUT, why);
    };
    let error = outcome.err();
    if let (Some(most), Some(error)) = (target.policy.max_body_bytes, &error)
        && has_cause::<LengthLimitError>(error.as_ref())
    {
        return too_large(most);
    }
    tracing::debug!(?error, address = %target.address, "an app does not answer");
    let why = "The app behind this name does not answer (502). See: proximity app list";
    refusal(StatusCode::BAD_GATEWAY, why)
}

fn has_cause<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(here) = error {
        if here.is::<T>() {
            return true;
        }
        error = here.source();
    }
    false
}

/// The protocol that a head wants to go on with.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut words = headers
        .get_all(header::CONNECTION)
        .into_iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    let wanted = words.any(|w| w.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| wanted).cloned()
}

/// Leaves out what concerned the other connection, and says what this one goes on with.
fn of_one_connection(headers: &mut HeaderMap, protocol: Option<&HeaderValue>) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .into_iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|w| w.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_A_CONNECTION) {
        headers.remove(name);
    }
    headers.remove(header::UPGRADE);
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
}

/// Copies both ways until both have ended; whoever drops this ends it.
pub async fn both_ways(upgrade: Upgrade) {
    let Ok((client, app)) = tokio::try_join!(upgrade.client, upgrade.app) else {
        return;
    };
    let (mut client, mut app) = (TokioIo::new(client), TokioIo::new(app));
    // How a peer ended its connection is between it and the other one.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut app).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn what_concerns_one_connection_stays_there() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("keep-alive", "5"),
            ("x-mine", "1"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("x-other", "2"),
        ]);
        assert_eq!(upgrade_of(&map), None);
        of_one_connection(&mut map, None);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-other"]);
    }

    #[test]
    fn an_upgrade_is_passed_on() {
        let mut map = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        let protocol = upgrade_of(&map);
        of_one_connection(&mut map, protocol.as_ref());
        assert_eq!(map["upgrade"], "websocket");
        assert_eq!(map["connection"], "upgrade");
    }
}
