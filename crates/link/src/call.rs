//! One request to a peer and its answer: what is asked, by when, and how much of an answer is taken.

use std::sync::Arc;
use std::time::Duration;

use api::Problem;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use wire::agent::Scope;
use zeroize::Zeroizing;

use crate::connection::{Body, Connection, describe};
use crate::error::LinkError;
use crate::pool::{Key, Pool};

/// A problem is at most this long.
const PROBLEM_MAX_BYTES: usize = 64 << 10;
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What is asked.
pub(crate) struct Call {
    pub method: Method,
    /// Path and query, encoded.
    pub path: String,
    /// What the token must allow; none for an open route.
    pub scope: Option<Scope>,
    pub headers: HeaderMap,
    pub content: Content,
    /// Until when the whole answer must be there, from the moment at which the request can be sent.
    pub deadline: Duration,
    /// Whether asking twice is the same as asking once. Only such a request is sent again when a kept
    /// connection turns out to be dead after something was sent on it.
    pub repeatable: bool,
}

/// The body of a request.
pub(crate) enum Content {
    Nothing,
    Json(Bytes),
    /// Can be sent once.
    Stream(Option<Body>),
}

impl Call {
    /// A call without a body that may be repeated.
    pub fn new(method: Method, path: impl Into<String>, deadline: Duration) -> Self {
        Self {
            method,
            path: path.into(),
            scope: None,
            headers: HeaderMap::new(),
            content: Content::Nothing,
            deadline,
            repeatable: true,
        }
    }

    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = Some(scope);
        self
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub fn json(mut self, peer: &str, value: &impl Serialize) -> Result<Self, LinkError> {
        let json = serde_json::to_vec(value).map_err(|e| LinkError::NothingRan {
            peer: peer.to_owned(),
            reason: format!("the request cannot be written as JSON: {e}"),
        })?;
        // Keys and arguments are in it: it is overwritten when it is dropped.
        self.content = Content::Json(Bytes::from_owner(Zeroizing::new(json)));
        Ok(self)
    }

    pub fn stream(mut self, body: Body) -> Self {
        self.content = Content::Stream(Some(body));
        self.repeatable = false;
        self
    }

    pub fn once(mut self) -> Self {
        self.repeatable = false;
        self
    }

    /// The request for `peer`, with a token when it needs one.
    pub fn request(
        &mut self,
        peer: &str,
        bearer: Option<&HeaderValue>,
    ) -> Result<Request<Body>, LinkError> {
        let body = match &mut self.content {
            Content::Nothing => empty(),
            Content::Json(json) => Full::new(json.clone())
                .map_err(|never| match never {})
                .boxed_unsync(),
            Content::Stream(body) => body.take().unwrap_or_else(empty),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.parse().map_err(|e| LinkError::NothingRan {
            peer: peer.to_owned(),
            reason: format!("the request has no valid path: {e}"),
        })?;
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        if matches!(self.content, Content::Json(_)) {
            let json = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, json);
        }
        if let Ok(host) = HeaderValue::from_str(peer) {
            headers.insert(header::HOST, host);
        }
        if let Some(bearer) = bearer {
            headers.insert(header::AUTHORIZATION, bearer.clone());
        }
        Ok(request)
    }
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The end of a deadline. One that nobody lives to see is a year.
pub(crate) fn after(deadline: Duration) -> Instant {
    Instant::now() + deadline.min(LONGEST)
}

/// A connection on which a call is under way; it goes back to the pool only when the call is over.
pub(crate) struct Lease {
    pub connection: Connection,
    pub pool: Arc<Pool>,
    pub key: Key,
}

impl Lease {
    pub fn give_back(self) {
        self.pool.give(&self.key, self.connection);
    }
}

/// The head of an answer, and the connection on which the rest comes.
pub(crate) struct Answer {
    pub response: Response<Incoming>,
    pub lease: Lease,
    pub until: Instant,
}

impl Answer {
    /// Whose answer it is.
    pub fn peer(&self) -> String {
        self.lease.key.1.as_str().to_owned()
    }

    /// The whole body of a success, at most `limit` bytes; another status is a refusal.
    pub async fn body(self, limit: usize) -> Result<Bytes, LinkError> {
        if self.response.status().is_success() {
            self.collect(limit).await
        } else {
            Err(self.refusal().await)
        }
    }

    /// The same, as JSON.
    pub async fn json<T: DeserializeOwned>(self, limit: usize) -> Result<T, LinkError> {
        let peer = self.peer();
        let body = self.body(limit).await?;
        serde_json::from_slice(&body).map_err(|e| LinkError::Garbage {
            peer,
            // serde quotes what it found, which may be long.
            reason: cut(e.to_string(), 200),
        })
    }

    /// What an answer says that is no success.
    pub async fn refusal(self) -> LinkError {
        let status = self.response.status();
        let peer = self.peer();
        match self.collect(PROBLEM_MAX_BYTES).await {
            Ok(body) => LinkError::Refused {
                peer,
                problem: Box::new(problem(status, &body)),
            },
            Err(error) => error,
        }
    }

    async fn collect(mut self, limit: usize) -> Result<Bytes, LinkError> {
        let peer = self.peer();
        let unknown = |reason: String| LinkError::OutcomeUnknown { peer, reason };
        match timeout_at(self.until, whole(self.response.body_mut(), limit)).await {
            Ok(Ok(body)) => {
                self.lease.give_back();
                Ok(body)
            }
            Ok(Err(reason)) => Err(unknown(reason)),
            Err(_) => Err(unknown("its answer did not end in time".into())),
        }
    }
}

/// The body in one piece. It is copied, because a list of the pieces could be many times as large as
/// what they hold: a peer may send them a byte at a time.
async fn whole(body: &mut Incoming, limit: usize) -> Result<Bytes, String> {
    let mut taken = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| format!("its answer broke off: {}", describe(&e)))?;
        if let Ok(data) = frame.into_data() {
            if taken.len() + data.len() > limit {
                return Err(format!("its answer is larger than {limit} bytes"));
            }
            taken.extend_from_slice(&data);
        }
    }
    Ok(taken.into())
}

/// The problem in a body, with the status that was really sent.
fn problem(status: StatusCode, body: &[u8]) -> Problem {
    match serde_json::from_slice::<Problem>(body) {
        Ok(sent) => Problem {
            status: status.as_u16(),
            ..bounded(sent)
        },
        Err(_) => Problem::new(
            status.as_u16(),
            "unexpected_answer",
            format!("status {status} without a reason"),
        ),
    }
}

/// A peer's problem with texts of a bounded length.
pub(crate) fn bounded(sent: Problem) -> Problem {
    Problem {
        kind: cut(sent.kind, 200),
        title: cut(sent.title, 200),
        status: sent.status,
        detail: cut(sent.detail, 2000),
        code: cut(sent.code, 64),
        hint: sent.hint.map(|hint| cut(hint, 1000)),
    }
}

pub(crate) fn cut(text: String, most_chars: usize) -> String {
    match text.char_indices().nth(most_chars) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// A value for a query, with everything but unreserved characters encoded.
pub(crate) fn query_value(value: &str) -> String {
    use std::fmt::Write;
    value
        .bytes()
        .fold(String::with_capacity(value.len()), |mut text, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(
            query_value("/srv/a b&c=ü#?%\n"),
            "/srv/a%20b%26c%3D%C3%BC%23%3F%25%0A"
        );
    }

    #[test]
    fn texts_of_a_peer_are_cut() {
        let body = serde_json::to_vec(&Problem::new(200, "x", "ü".repeat(60_000))).unwrap();
        let problem = problem(StatusCode::NOT_FOUND, &body);
        assert_eq!(problem.status, 404);
        assert_eq!(problem.detail.chars().count(), 2001);
        assert_eq!(
            super::problem(StatusCode::BAD_GATEWAY, b"<html>").code,
            "unexpected_answer"
        );
    }
}
