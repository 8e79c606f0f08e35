//! Answers and problems as HTTP. The one place where an error gets its status.

use api::Problem;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::response::{IntoResponse, Response};
use engine::Error;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::de::DeserializeOwned;

use crate::audited::Told;

/// A problem on its way out.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) Problem);

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        let problem = e.problem();
        if problem.status >= 500 {
            tracing::error!(code = %problem.code, "{}", problem.detail);
        }
        Self(problem)
    }
}

impl From<Problem> for Failed {
    fn from(p: Problem) -> Self {
        Self(p)
    }
}

impl From<Box<Problem>> for Failed {
    fn from(p: Box<Problem>) -> Self {
        Self(*p)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let told = Told::problem(&self.0);
        let mut response = (status, Json(self.0)).into_response();
        response.extensions_mut().insert(told);
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

/// A JSON body; what is wrong with it becomes a problem like any other.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failed;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failed> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => {
                let code = match rejection {
                    JsonRejection::MissingJsonContentType(_) => "not_json",
                    _ => "bad_body",
                };
                let problem =
                    Problem::new(rejection.status().as_u16(), code, rejection.body_text());
                Err(problem.hint("send JSON with content-type: application/json; shapes: /api/v1/openapi.json").into())
            }
        }
    }
}

/// A query string; what is wrong with it becomes a problem like any other.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        let params: Result<Query<T>, QueryRejection> =
            Query::from_request_parts(parts, state).await;
        match params {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(400, "bad_query", rejection.body_text()).into()),
        }
    }
}

pub(crate) async fn not_found() -> Failed {
    Problem::new(404, "no_such_path", "there is nothing at this path")
        .hint("what there is: /api/v1/openapi.json, browsable at /api/docs")
        .into()
}

pub(crate) async fn method_not_allowed() -> Failed {
    Problem::new(
        405,
        "method_not_allowed",
        "this path does not take that method",
    )
    .hint("what there is: /api/v1/openapi.json, browsable at /api/docs")
    .into()
}
