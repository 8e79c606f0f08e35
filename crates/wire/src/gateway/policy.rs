//! What a route asks of a request before the app sees it. No secret travels: only what proves one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The conditions of one route. A plain one has none, and its bytes are passed on unread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutePolicy {
    /// Requests by http are sent to https (308). Previews on `*.localhost` are not.
    pub redirect_https: bool,
    /// Who may come in; everybody without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RouteAuth>,
    /// The largest body of a request, in bytes; a larger one is answered 413.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u64>,
    /// How long the app may take until its answer begins, in milliseconds; then it is 504.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_within_ms: Option<u64>,
}

impl RoutePolicy {
    /// True when it asks for nothing.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// How a request shows that it may come in. Digests are lower-case hexadecimal; `Debug` shows none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RouteAuth {
    /// Name and password by HTTP basic authentication (RFC 7617).
    Basic {
        /// The name.
        user: String,
        /// Random bytes, different for each password.
        salt: String,
        /// Rounds of PBKDF2-HMAC-SHA256.
        rounds: u32,
        /// The 32 bytes that PBKDF2 makes of the password.
        hash: String,
    },
    /// A random token: `Authorization: Bearer` or `X-Route-Token`.
    Token {
        /// The token's SHA-256.
        sha256: String,
    },
}

impl RouteAuth {
    /// `basic` or `token`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Basic { .. } => "basic",
            Self::Token { .. } => "token",
        }
    }
}

impl fmt::Debug for RouteAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => write!(f, "Basic({user:?}, …)"),
            Self::Token { .. } => f.write_str("Token(…)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_not_shown() {
        let auth = RouteAuth::Basic {
            user: "anna".into(),
            salt: "aa55".into(),
            rounds: 1,
            hash: "bb66".into(),
        };
        let policy = RoutePolicy {
            auth: Some(auth),
            ..RoutePolicy::default()
        };
        let shown = format!("{policy:?}");
        assert!(shown.contains("anna") && !shown.contains("aa55") && !shown.contains("bb66"));
    }

    #[test]
    fn a_plain_policy_is_an_empty_document() {
        let plain: RoutePolicy = serde_json::from_str("{}").unwrap();
        assert!(plain.is_plain());
        assert!(serde_json::from_str::<RoutePolicy>(r#"{"max_body":1}"#).is_err());
    }
}
