//! The one place where a request's token is looked at, in front of every route but the open ones.
//!
//! A good token also tells the door that this connection belongs to somebody we know. The token goes
//! no further than here: no handler can log it.

use std::sync::Arc;

use api::Problem;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use wire::agent::Scope;

use super::Trust;
use super::token::{TokenError, allows};
use crate::answer::Failure;
use crate::door::Peer;

/// Where clients that can't set `Authorization` put the token.
const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");

/// The same routes, for bearers of a token with `scope` only. Routes that are added to the result
/// later are not behind it.
pub fn require(router: Router, trust: &Arc<Trust>, scope: Scope) -> Router {
    router.route_layer(from_fn_with_state((trust.clone(), scope), check))
}

async fn check(
    State((trust, scope)): State<(Arc<Trust>, Scope)>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    if let Err(refusal) = admit(&trust, scope, request.headers(), peer.as_deref()) {
        return refusal.into_response();
    }
    request.headers_mut().remove(header::AUTHORIZATION);
    request.headers_mut().remove(ACCESS_TOKEN);
    next.run(request).await
}

fn admit(
    trust: &Trust,
    scope: Scope,
    headers: &HeaderMap,
    peer: Option<&Peer>,
) -> Result<(), Refusal> {
    let token = token(headers).ok_or(Refusal::NoToken)?;
    let claims = trust.check(token)?;
    if peer.is_some_and(|peer| !peer.prove()) {
        return Err(Refusal::Full);
    }
    allows(&claims, scope)?;
    Ok(())
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    bearer.or_else(|| headers.get(ACCESS_TOKEN)?.to_str().ok())
}

enum Refusal {
    NoToken,
    Token(TokenError),
    Full,
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (problem, challenge) = match self {
            Self::NoToken => (
                Problem::new(401, "no_token", "this route needs a token")
                    .hint("send it as Authorization: Bearer TOKEN"),
                Some("Bearer"),
            ),
            Self::Token(error) => {
                let detail = error.to_string();
                match error {
                    TokenError::Invalid(_) => (
                        Problem::new(401, "invalid_token", detail),
                        Some("Bearer error=\"invalid_token\""),
                    ),
                    TokenError::Expired(_) => (
                        Problem::new(401, "expired_token", detail)
                            .hint("compare the clocks of controller and guest, or sign a new one"),
                        Some("Bearer error=\"invalid_token\""),
                    ),
                    TokenError::Scope(_) => (
                        Problem::new(403, "missing_scope", detail),
                        Some("Bearer error=\"insufficient_scope\""),
                    ),
                }
            }
            Self::Full => (
                Problem::new(503, "busy", "too many connections are open")
                    .hint("use open connections again, or close some"),
                None,
            ),
        };
        let mut response = Failure(problem).into_response();
        if let Some(challenge) = challenge {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        response
    }
}
