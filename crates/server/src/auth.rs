//! Who may call: bearer tokens (kept as hashes), and the local root user on the unix socket.
//! Loopback is no identity.

use std::io;
use std::path::{Path, PathBuf};

use api::Problem;
use axum::extract::{ConnectInfo, Request, State as Extract};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::Controller;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use sha2::{Digest, Sha256};

use crate::answer::Failed;
use crate::{Peer, State};

/// Who calls, by the name that stands in audit records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Actor {
    pub(crate) name: String,
}

/// Lets a request through if it carries a known token or comes from root on the unix socket.
pub(crate) async fn require(
    Extract(state): Extract<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Result<Response, Failed> {
    let actor = identify(&state, peer, request.headers()).await?;
    match actor {
        Some(actor) => {
            request.extensions_mut().insert(actor);
            Ok(next.run(request).await)
        }
        None => {
            let problem = Problem::new(401, "not_authenticated", "this call needs a token").hint(format!(
                "send `Authorization: Bearer TOKEN`, or call as root: curl --unix-socket {} http://localhost/api/v1/status",
                state.socket.display()
            ));
            let mut response = Failed(problem).into_response();
            let challenge = http::HeaderValue::from_static("Bearer realm=\"proximity\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            Ok(response)
        }
    }
}

async fn identify(state: &State, peer: Peer, headers: &HeaderMap) -> Result<Option<Actor>, Failed> {
    if let Some(token) = bearer(headers) {
        // Looking up a hash leaks nothing of the token by its timing.
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let found = state
            .controller
            .store()
            .token(&hash)
            .await
            .map_err(engine::Error::from)?;
        return Ok(found.map(|(name, _role)| Actor {
            name: format!("token:{name}"),
        }));
    }
    Ok(match peer {
        Peer::Unix { uid: Some(0) } => Some(Actor {
            name: "root".into(),
        }),
        _ => None,
    })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token.trim())
}

/// Refuses requests for other host names: a page in somebody's browser can make a name of its own
/// lead to 127.0.0.1 (DNS rebinding), but not call us by ours.
pub(crate) async fn check_host(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Failed> {
    let named = request.headers().get(HOST).and_then(|h| h.to_str().ok());
    let fine = match (peer, named) {
        (Peer::Unix { .. }, _) => true,
        (Peer::Tcp, Some(host)) => is_ours(host),
        (Peer::Tcp, None) => false,
    };
    if fine {
        return Ok(next.run(request).await);
    }
    Err(Problem::new(
        421,
        "wrong_host",
        "this server does not answer to that host name",
    )
    .hint("use 127.0.0.1 or localhost")
    .into())
}

fn is_ours(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(""),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let ours = ["localhost", "127.0.0.1", "::1"];
    ours.iter().any(|ours| name.eq_ignore_ascii_case(ours))
}

/// The first token could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AdminTokenError {
    /// Its file.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Its content.
    #[error("{} holds no token: {cause}; remove it and start again to get a new one", path.display())]
    Weak {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: audit::WeakSecret,
    },
    /// The random source.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] engine::store::StoreError),
}

/// Makes the first token (role admin) at `path`, 0600, unless it is there, and sees to it that the
/// store knows its hash and `redactor` hides it.
pub async fn admin_token(
    controller: &Controller,
    path: &Path,
    redactor: &audit::Redactor,
) -> Result<(), AdminTokenError> {
    let file = |cause| AdminTokenError::File {
        path: path.to_owned(),
        cause,
    };
    let token = match std::fs::read_to_string(path) {
        // A cut-off file must not become a token that anybody can guess.
        Ok(text) if text.trim().len() < 32 => {
            return Err(file(io::Error::new(
                io::ErrorKind::InvalidData,
                "it holds no token of ours; remove it, and a new one is made",
            )));
        }
        Ok(text) => text.trim().to_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let token = new_token()?;
            write_secret(path, &token).map_err(file)?;
            token
        }
        Err(e) => return Err(file(e)),
    };
    redactor
        .register(&token)
        .map_err(|cause| AdminTokenError::Weak {
            path: path.to_owned(),
            cause,
        })?;
    let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    let now = controller.entropy().now();
    controller
        .store()
        .put_token("admin", "admin", &hash, now)
        .await?;
    Ok(())
}

fn new_token() -> Result<String, AdminTokenError> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(AdminTokenError::Random)?;
    Ok(format!("prox_{}", hex::encode(bytes)))
}

fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temp = path.with_extension("new");
    let mut options = std::fs::File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    std::fs::rename(&temp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_ours() {
        for ours in [
            "localhost",
            "localhost:8765",
            "LocalHost",
            "127.0.0.1:8765",
            "[::1]:8765",
            "127.0.0.1",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example:8765",
            "127.0.0.1.evil.example",
            "",
            "[::2]:1",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn only_bearer_tokens_count() {
        let with = |v: &str| {
            let mut h = HeaderMap::new();
            h.insert(AUTHORIZATION, v.parse().unwrap());
            bearer(&h).map(str::to_owned)
        };
        assert_eq!(with("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(with("bearer abc").as_deref(), Some("abc"));
        assert_eq!(with("Basic abc"), None);
        assert_eq!(with("Bearer "), None);
    }
}
