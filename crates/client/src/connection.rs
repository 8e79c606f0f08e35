//! One controller and the way to it: sends requests, reads answers within deadline and size, and
//! sorts failures. Knows nothing of what the calls mean; those stand in `calls`.

use std::io::ErrorKind;
use std::time::Duration;

use api::Problem;
use reqwest::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::endpoint::{Endpoint, Secret};
use crate::error::{Error, chain, io_kind};

pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// For calls that only look or only start something.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// No answer of the API comes near it; two full streams of an exec (8 MiB each, as JSON) have
/// their own limit.
const ANSWER_LIMIT: usize = 16 << 20;
/// What a problem may take; the rest is cut.
pub(crate) const PROBLEM_LIMIT: usize = 256 << 10;

/// A client of one controller. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    endpoint: Endpoint,
    token: Option<Secret>,
}

/// One request before it is sent.
pub(crate) struct Call<'a> {
    pub method: Method,
    pub path: &'a [&'a str],
    pub query: Vec<(&'static str, String)>,
    pub idempotency_key: Option<&'a str>,
    pub deadline: Duration,
    pub answer_limit: usize,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self {
            method,
            path,
            query: Vec::new(),
            idempotency_key: None,
            deadline: CALL_DEADLINE,
            answer_limit: ANSWER_LIMIT,
        }
    }

    pub(crate) fn get(path: &'a [&'a str]) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|v| (name, v.to_string())));
        self
    }
}

impl Client {
    /// A client of the controller at `endpoint`. Connects to nothing yet, but refuses a token
    /// that would cross a network in plain text.
    pub fn new(endpoint: Endpoint, token: Option<Secret>) -> Result<Self, Error> {
        if token.is_some() {
            endpoint.check_token()?;
        }
        // One TLS provider in the whole program. An error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("proximity/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_DEADLINE)
            .redirect(reqwest::redirect::Policy::none());
        if let Endpoint::Unix(path) = &endpoint {
            builder = builder.unix_socket(path.as_path());
        }
        if endpoint.is_local() {
            builder = builder.no_proxy();
        }
        if !endpoint.is_tls() {
            // No TLS, no trust store: reading the system's takes longer than most calls.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| Error::Protocol {
            tried: endpoint.to_string(),
            status: None,
            what: chain(&e),
        })?;
        Ok(Self {
            http,
            endpoint,
            token,
        })
    }

    /// The controller's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks, and reads a JSON answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let request = self.request(&call)?;
        self.read_json(request, &call).await
    }

    /// Asks with a JSON body, and reads a JSON answer.
    pub(crate) async fn json_with<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let request = self.request(&call)?.json(body);
        self.read_json(request, &call).await
    }

    async fn read_json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        call: &Call<'_>,
    ) -> Result<T, Error> {
        let body = self.body(request, call).await?;
        serde_json::from_slice(&body)
            .map_err(|e| self.protocol(format!("the answer is not what was asked for: {e}")))
    }

    /// Sends, and reads the answer's bytes. What is not a success becomes an error.
    pub(crate) async fn body(
        &self,
        request: RequestBuilder,
        call: &Call<'_>,
    ) -> Result<Vec<u8>, Error> {
        let response = request
            .send()
            .await
            .map_err(|e| self.failed(&e, call.deadline))?;
        let response = self.accepted(response).await?;
        let (body, cut) = self
            .read(response, call.answer_limit, call.deadline)
            .await?;
        if cut {
            return Err(self.protocol(format!("more than {} bytes", call.answer_limit)));
        }
        Ok(body)
    }

    /// The request of a call, with its deadline, token and idempotency key.
    pub(crate) fn request(&self, call: &Call<'_>) -> Result<RequestBuilder, Error> {
        let url = self.endpoint.url(call.path)?;
        let mut request = self
            .http
            .request(call.method.clone(), url)
            .timeout(call.deadline);
        request = request.header(ACCEPT, "application/json, application/problem+json");
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        if let Some(key) = call.idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        self.authorized(request)
    }

    /// A GET for an endless answer: no deadline over all, the reader sets one for each piece.
    pub(crate) fn stream_request(&self, path: &[&str]) -> Result<RequestBuilder, Error> {
        let url = self.endpoint.url(path)?;
        self.authorized(self.http.get(url))
    }

    fn authorized(&self, request: RequestBuilder) -> Result<RequestBuilder, Error> {
        Ok(match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.header()?),
            None => request,
        })
    }

    /// Lets a success through and turns anything else into a problem.
    pub(crate) async fn accepted(&self, response: Response) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let (body, _) = self.read(response, PROBLEM_LIMIT, CALL_DEADLINE).await?;
        Err(self.refusal(status.as_u16(), &body))
    }

    /// The error of an answer that is no success.
    pub(crate) fn refusal(&self, status: u16, body: &[u8]) -> Error {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => Error::Problem(Box::new(problem)),
            Err(_) => Error::Protocol {
                tried: self.endpoint.to_string(),
                status: Some(status),
                what: match reqwest::StatusCode::from_u16(status) {
                    Ok(status) => format!("{status}, and no problem that says why"),
                    Err(_) => "a status that is none".to_owned(),
                },
            },
        }
    }

    /// What opens the controller's door.
    pub(crate) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    async fn read(
        &self,
        mut response: Response,
        limit: usize,
        deadline: Duration,
    ) -> Result<(Vec<u8>, bool), Error> {
        let mut body = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|e| self.failed(&e, deadline))?
        {
            if body.len() + piece.len() > limit {
                return Ok((body, true));
            }
            body.extend_from_slice(&piece);
        }
        Ok((body, false))
    }

    /// Sorts a failure of the transport: nothing was sent, or nobody knows.
    pub(crate) fn failed(&self, error: &reqwest::Error, deadline: Duration) -> Error {
        let tried = self.endpoint.to_string();
        if error.is_connect() {
            return Error::Unreachable {
                tried,
                cause: plain_cause(error),
                next: self.next_step(io_kind(error)),
            };
        }
        if error.is_builder() || error.is_request() && error.is_redirect() {
            return self.protocol(chain(error));
        }
        let cause = if error.is_timeout() {
            format!("no answer within {} s", deadline.as_secs())
        } else {
            plain_cause(error)
        };
        Error::Interrupted { tried, cause }
    }

    pub(crate) fn protocol(&self, what: String) -> Error {
        Error::Protocol {
            tried: self.endpoint.to_string(),
            status: None,
            what,
        }
    }

    pub(crate) fn next_step(&self, kind: Option<ErrorKind>) -> String {
        match (&self.endpoint, kind) {
            (Endpoint::Unix(_), Some(ErrorKind::PermissionDenied)) => {
                "the socket serves root only: use sudo, or set PROXIMITY_URL and PROXIMITY_TOKEN"
            }
            (Endpoint::Unix(_), _) => {
                "start the controller with `proximity serve`; for one on another machine set PROXIMITY_URL and PROXIMITY_TOKEN"
            }
            (Endpoint::Http(_), Some(ErrorKind::ConnectionRefused)) if self.endpoint.is_local() => {
                "start the controller with `proximity serve`, or check the port in PROXIMITY_URL"
            }
            (Endpoint::Http(_), _) => {
                "check PROXIMITY_URL (or --url), the network between, and that the controller runs"
            }
        }
        .to_owned()
    }
}

/// The innermost cause, which says most in fewest words.
fn plain_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
