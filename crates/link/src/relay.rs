//! Tunnels through a relay: the preface of [`wire::tunnel`], from the controller's side.
//!
//! What comes out is a bare stream of bytes to the target. The relay is not trusted with them: TLS is
//! spoken inside, with the guest.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, SystemTime};

use api::InstanceId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::tunnel::{CONGESTION, MAGIC, NONCE_BYTES, OPEN, REFUSED, TOKEN_MAX_BYTES};

use crate::identity::IdentityError;
use crate::token::Tokens;

/// A relay's reason for refusing is cut after this many bytes.
const REASON_MAX_BYTES: usize = 512;

/// Why there is no tunnel. In each case nothing reached the target.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The relay does not answer, or not as a relay does.
    #[error("the relay at {relay} is not reachable: {reason}")]
    NotReachable {
        /// Where it was looked for.
        relay: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The relay opened no tunnel: the target does not answer, or is none.
    #[error("the relay opens no tunnel to {target}: {reason}")]
    Refused {
        /// Where the tunnel should have led.
        target: SocketAddrV4,
        /// What the relay said; data from the appliance, only ever shown.
        reason: String,
    },
    /// No token could be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Connects to a relay without a tunnel, without delaying small writes.
pub async fn connect(relay: SocketAddr, deadline: Duration) -> Result<TcpStream, DialError> {
    match timeout(deadline, tcp(relay)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(not_reachable(relay, &error)),
        Err(_) => Err(late(relay, deadline)),
    }
}

/// Opens a tunnel to `target` through the relay of `appliance`, all of it within `deadline`.
pub async fn dial(
    tokens: &Tokens,
    relay: SocketAddr,
    appliance: &InstanceId,
    target: SocketAddrV4,
    deadline: Duration,
) -> Result<TcpStream, DialError> {
    timeout(deadline, open(tokens, relay, appliance, target))
        .await
        .map_err(|_| late(relay, deadline))?
}

async fn open(
    tokens: &Tokens,
    relay: SocketAddr,
    appliance: &InstanceId,
    target: SocketAddrV4,
) -> Result<TcpStream, DialError> {
    let broken = |error: io::Error| not_reachable(relay, &error);
    let mut stream = tcp(relay).await.map_err(broken)?;
    stream.write_all(&MAGIC).await.map_err(broken)?;
    let mut nonce = [0; NONCE_BYTES];
    stream.read_exact(&mut nonce).await.map_err(broken)?;
    let token = tokens.tunnel(appliance.as_str(), &nonce, target, SystemTime::now())?;
    let length = u16::try_from(token.len())
        .ok()
        .filter(|length| *length <= TOKEN_MAX_BYTES)
        .ok_or_else(|| broken(io::Error::other("the token is too long")))?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(token.as_bytes());
    stream.write_all(&message).await.map_err(broken)?;
    match stream.read_u8().await.map_err(broken)? {
        OPEN => Ok(stream),
        REFUSED => Err(DialError::Refused {
            target,
            reason: reason(&mut stream).await,
        }),
        other => Err(broken(io::Error::other(format!(
            "it answered {other}, which is no answer of a relay"
        )))),
    }
}

async fn tcp(relay: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(relay).await?;
    stream.set_nodelay(true)?;
    // Within one machine; see the constant. A kernel that offers no choice keeps its own.
    let _ = rustix::net::sockopt::set_tcp_congestion(&stream, CONGESTION);
    Ok(stream)
}

/// A reason that does not arrive as a whole is still a refusal.
async fn reason(stream: &mut TcpStream) -> String {
    let length = stream.read_u16().await.unwrap_or_default();
    let mut reason = Vec::new();
    let most = usize::from(length).min(REASON_MAX_BYTES) as u64;
    let read = stream.take(most).read_to_end(&mut reason).await;
    if read.is_err() || reason.is_empty() {
        return "it gave no reason".into();
    }
    String::from_utf8_lossy(&reason).into_owned()
}

fn not_reachable(relay: SocketAddr, error: &io::Error) -> DialError {
    let reason = if error.kind() == io::ErrorKind::UnexpectedEof {
        "it closed the connection".to_owned()
    } else {
        error.to_string()
    };
    DialError::NotReachable { relay, reason }
}

fn late(relay: SocketAddr, deadline: Duration) -> DialError {
    let reason = format!("no answer within {} ms", deadline.as_millis());
    DialError::NotReachable { relay, reason }
}
