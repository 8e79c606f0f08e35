//! How a controller speaks with the agent in a guest and with the relay on an appliance.
//!
//! **Agent**, TCP [`AGENT_PORT`] and for a controller on the same machine the abstract unix socket
//! [`AGENT_SOCKET`], TLS 1.3, HTTP/1.1 on both. Its certificate names the instance
//! ([`server_name`]); who may call is told by a token ([`Claims`]) in `Authorization: Bearer` or
//! `X-Access-Token`.
//!
//! | method and path | scope | body | answer |
//! |---|---|---|---|
//! | `GET /health` | none | – | 200 [`Health`] |
//! | `POST /exec` | exec | `api::exec::ExecRequest` | 200 `ExecResult`, or with `Accept: application/x-ndjson` lines of `ExecEvent` |
//! | `GET /session` | exec | websocket of `api::session` | |
//! | `GET /files?path=&user=` | files | – | 200 or 206 the bytes, `Repr-Digest` as header or trailer |
//! | `HEAD /files?path=&user=` | files | – | size, mode, times |
//! | `PUT /files?path=&user=&mode=` | files | the bytes, `Repr-Digest` as header or trailer | 201 or 200 [`Written`] |
//! | either, by [`AGENT_SOCKET`], with `Upgrade: proximity-file` | files | | 101, then the bytes in plain ([`api::file`]) |
//! | `POST /forward?port=` | forward | `Connection: Upgrade`, `Upgrade: tcp` | 101, then the bytes of a connection to that port on the guest's loopback |
//! | `PUT /identity` | identity | [`Bundle`](crate::identity::Bundle) | 204 |
//!
//! Errors are RFC 9457 problems; code `nothing_ran` means that no process was started.
//!
//! **Relay**, TCP [`RELAY_PORT`]. The first byte decides: a TLS record is the gateway API (see
//! `gateway`) with a token of scope gateway, an `P` begins a tunnel (see [`crate::tunnel`]).

use serde::{Deserialize, Serialize};

pub use api::file::Written;

/// Where the agent of a guest listens.
pub const AGENT_PORT: u16 = 39383;
/// Where it listens too: an abstract unix socket (unix(7)), which like a port belongs to the guest's network
/// namespace.
pub const AGENT_SOCKET: &str = "proximity-agent";
/// What may be on the way in each direction on such a socket, in bytes: with the kernel's 208 KiB both ends
/// of a large file wake each other for every second piece.
pub const AGENT_SOCKET_BUFFER_BYTES: usize = 1 << 20;
/// Where the relay of an appliance listens.
pub const RELAY_PORT: u16 = 39384;
/// Where the agent of a node listens.
pub const NODE_PORT: u16 = 39385;

/// Where the relay takes gRPC from the reverse proxy of its own appliance, on loopback only: that
/// proxy speaks HTTP/2 without TLS to TCP sockets alone. It leads where the routes lead.
pub const GRPC_PORT: u16 = 39386;

/// What a token lets its bearer do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Run commands.
    Exec,
    /// Read and write files.
    Files,
    /// Reach the guest's ports.
    Forward,
    /// Renew the guest's identity.
    Identity,
    /// On a relay: read and apply the gateway's state.
    Gateway,
    /// On a relay: open one tunnel.
    Tunnel,
}

/// What a token says: an EdDSA-signed JWT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Whom it is for: the id of an instance or of an appliance.
    pub aud: String,
    /// What it allows.
    pub scope: Vec<Scope>,
    /// From when it holds, in seconds since 1970.
    pub iat: u64,
    /// Until when it holds, in seconds since 1970; [`LEEWAY_S`] more is granted for clocks.
    pub exp: u64,
    /// With scope tunnel: the relay's nonce for this connection, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// With scope tunnel: where the tunnel leads, `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// How far clocks may differ, in seconds.
pub const LEEWAY_S: u64 = 30;
/// The longest life of a token, in seconds; one that claims more is refused.
pub const TOKEN_MAX_LIFE_S: u64 = 300;

/// The name in an instance's certificate: its id, which is one DNS label.
pub fn server_name(id: &api::InstanceId) -> String {
    id.as_str().to_owned()
}

/// What `GET /health` answers. The one open route, so it says little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The agent's version.
    pub version: String,
    /// The instance it is the agent of.
    pub instance: String,
    /// How long it has run.
    pub uptime_ms: u64,
}
