//! Answers of the agent's HTTP APIs: JSON, and errors as RFC 9457 problems. Decides nothing.

use api::Problem;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A value as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// An error with its code for programs and a sentence for people.
pub fn problem(status: u16, code: &str, detail: impl Into<String>) -> Response {
    Failure(Problem::new(status, code, detail)).into_response()
}

/// There is nothing at a path.
pub async fn no_such_path() -> Response {
    problem(404, "no_such_path", "there is nothing at this path")
}

/// A path is there, but not for the method.
pub async fn no_such_method() -> Response {
    problem(405, "no_such_method", "the path does not know this method")
}

/// A problem on its way out.
#[derive(Debug)]
pub struct Failure(pub Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, &self.0);
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
