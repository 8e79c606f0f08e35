//! Where the controller is and what opens its door: a unix socket or a URL, and a token.
//!
//! Parses and checks; connects to nothing. Never lets a token go in plain text to another machine.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;
use reqwest::header::HeaderValue;

/// A bearer token. `Debug` shows that there is one, never what it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the token as it is written in the environment or in a file: white space around it
    /// is dropped, and a token that cannot stand in a header is refused.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidEndpoint::Token);
        }
        Ok(Self(text.to_owned()))
    }

    /// The `Authorization` header that carries it, marked as sensitive.
    pub(crate) fn header(&self) -> Result<HeaderValue, InvalidEndpoint> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0))
            .map_err(|_| InvalidEndpoint::Token)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why an endpoint is refused before anything is sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// The URL cannot be read.
    #[error("{url:?} is not a controller's URL: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token would cross a network in plain text.
    #[error(
        "refused to send the token to {host} over plain http: anybody on the way could read it"
    )]
    PlainHttp {
        /// The other machine.
        host: String,
    },
    /// The token holds what no token holds.
    #[error("the token is empty or holds characters that no token has (white space, controls)")]
    Token,
}

impl InvalidEndpoint {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Url { .. } => {
                "write it like https://controller.example:8765 or unix:/var/lib/proximity/proximity.sock"
            }
            Self::PlainHttp { .. } => {
                "use an https:// URL, or a tunnel: `ssh -N -L 8765:127.0.0.1:8765 HOST` and --url http://127.0.0.1:8765"
            }
            Self::Token => {
                "set PROXIMITY_TOKEN to the one line of DATA_DIR/admin.token, or to a token you were given"
            }
        }
    }
}

/// A controller's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The socket in the controller's data directory; it knows root by the peer's credentials.
    Unix(PathBuf),
    /// A base URL, `http` or `https`.
    Http(Url),
}

impl Endpoint {
    /// Reads `http://…`, `https://…`, or `unix:/PATH` for a socket. User names, passwords, queries
    /// and fragments have no place in it.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        let bad = |reason: &str| InvalidEndpoint::Url {
            url: without_userinfo(text),
            reason: reason.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(bad("the path of the socket must be absolute"))
            };
        }
        let url = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("it must begin with https://, http:// or unix:"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad(
                "a user name or password must not stand in it; set PROXIMITY_TOKEN",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("a query or fragment has no meaning here"));
        }
        Ok(Self::Http(url))
    }

    /// Refuses to let a token leave this machine in plain text.
    pub(crate) fn check_token(&self) -> Result<(), InvalidEndpoint> {
        match self {
            Self::Http(url) if url.scheme() == "http" && !is_loopback(url) => {
                Err(InvalidEndpoint::PlainHttp {
                    host: url.host_str().unwrap_or_default().to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether the other end is on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Http(url) => is_loopback(url),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Http(url) if url.scheme() == "https")
    }

    /// The URL of `path` below `/api/v1`, each segment escaped on its own.
    pub(crate) fn url(&self, path: &[&str]) -> Result<Url, InvalidEndpoint> {
        let mut url = match self {
            Self::Http(url) => url.clone(),
            Self::Unix(_) => Url::parse("http://localhost/").map_err(|e| InvalidEndpoint::Url {
                url: self.to_string(),
                reason: e.to_string(),
            })?,
        };
        match url.path_segments_mut() {
            Ok(mut segments) => {
                segments.pop_if_empty().extend(["api", "v1"]).extend(path);
            }
            Err(()) => {
                return Err(InvalidEndpoint::Url {
                    url: self.to_string(),
                    reason: "it has no path".to_owned(),
                });
            }
        }
        Ok(url)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

// `localhost` counts: RFC 6761 says that it never leaves the machine, and resolvers keep to that.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || match address.parse::<IpAddr>() {
            Ok(IpAddr::V6(v6)) => {
                v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback())
            }
            Ok(IpAddr::V4(v4)) => v4.is_loopback(),
            Err(_) => false,
        }
}

// What is shown back must not hold a password that somebody wrote into the URL.
fn without_userinfo(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            let (head, tail) = (text.get(..scheme + 3), text.get(at + 1..));
            format!("{}…@{}", head.unwrap_or_default(), tail.unwrap_or_default())
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed() {
        let check = |text: &str, shown: Option<&str>| {
            assert_eq!(
                Endpoint::parse(text).ok().map(|e| e.to_string()).as_deref(),
                shown,
                "{text}"
            );
        };
        check("http://127.0.0.1:8765", Some("http://127.0.0.1:8765"));
        check("https://c.example/base/", Some("https://c.example/base"));
        check("unix:/run/p.sock", Some("unix:/run/p.sock"));
        check("unix:///run/p.sock", Some("unix:/run/p.sock"));
        check("unix:p.sock", None);
        check("ftp://c.example", None);
        check("c.example:8765", None);
        check("https://user:secret@c.example", None);
        check("https://c.example/?token=x", None);
        check("", None);
    }

    #[test]
    fn a_password_in_the_url_is_not_shown_back() {
        let text = Endpoint::parse("https://me:hunter2@c.example")
            .unwrap_err()
            .to_string();
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_token_leaves_the_machine_over_tls_only() {
        let check = |url: &str, ok: bool| {
            assert_eq!(
                Endpoint::parse(url).unwrap().check_token().is_ok(),
                ok,
                "{url}"
            );
        };
        for local in [
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://localhost:8765",
            "http://[::1]:8765",
            "http://[::ffff:127.0.0.1]",
            "unix:/x",
            "https://10.0.0.1",
        ] {
            check(local, true);
        }
        for far in [
            "http://10.0.0.1:8765",
            "http://controller.lan",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://[fe80::1]",
        ] {
            check(far, false);
        }
    }

    #[test]
    fn segments_are_escaped() {
        let url = Endpoint::parse("https://c.example/base")
            .unwrap()
            .url(&["apps", "../x?y"])
            .unwrap();
        assert_eq!(
            url.as_str(),
            "https://c.example/base/api/v1/apps/..%2Fx%3Fy"
        );
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::parse(" prox_abc \n").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert!(!format!("{:?}", secret.header().unwrap()).contains("abc"));
        assert!(Secret::parse("a b").is_err());
        assert!(Secret::parse("").is_err());
    }
}
