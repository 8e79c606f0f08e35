//! The ports: what the engine needs from the outside, as small object-safe traits.
//!
//! `backends` makes them real, [`crate::fake`] doubles them for tests. No port knows of operations,
//! users or HTTP; none keeps desired state.

use std::net::Ipv4Addr;
use std::time::Duration;

use api::app::Limits;
use api::entry::Protocol;
use api::{HostName, ImageDigest, InstanceId, InstanceName, InterfaceName, MacAddr, ZoneName};
use async_trait::async_trait;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use wire::gateway::{GatewayDiff, GatewayReport, GatewayState, ProbeRequest, RouteReport};
use wire::identity::Bundle;

pub use crate::channel::*;
pub use crate::image::Images;
pub use crate::store::Store;

use crate::catalog::GuestFile;
use crate::zone::Wan;

/// A port could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct PortError {
    /// The operation that failed, with the object.
    pub what: String,
    /// Why, as told by the other side.
    pub cause: String,
    /// What may help.
    pub hint: Option<String>,
}

impl PortError {
    /// An error without a hint.
    pub fn new(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self {
            what: what.into(),
            cause: cause.to_string(),
            hint: None,
        }
    }

    /// Adds what may help.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Everything that makes a guest what it is. Two equal specs make equal guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Its id.
    pub id: InstanceId,
    /// Its host name.
    pub name: InstanceName,
    /// The zone it belongs to.
    pub zone: ZoneName,
    /// `app`, `sandbox`, `browser` or `appliance`.
    pub kind: String,
    /// What it is cloned from.
    pub image: ImageDigest,
    /// What it may use.
    pub limits: Limits,
    /// Its network interfaces, `eth0` first.
    pub nics: Vec<Nic>,
    /// Files written before its first start. Changes after that do not reach the guest.
    pub files: Vec<GuestFile>,
}

/// One network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The bridge it is attached to.
    pub bridge: InterfaceName,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// A fixed address with the prefix of its network, set by the node; else DHCP in the guest.
    pub address: Option<Ipv4Net>,
    /// The default gateway, with a fixed address.
    pub gateway: Option<Ipv4Addr>,
    /// The address that is reserved for it, when the guest asks for it by DHCP.
    #[serde(default)]
    pub lease: Option<Ipv4Addr>,
}

impl Nic {
    /// The only address that may be used on it, if it is known here.
    pub fn own_address(&self) -> Option<Ipv4Addr> {
        self.address.map(|net| net.addr()).or(self.lease)
    }
}

/// What became of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// There is nothing of it.
    Absent,
    /// Begun and not finished: creating it again finishes it.
    Partial,
    /// Complete, not running.
    Stopped,
    /// Running.
    Running,
}

impl GuestState {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Partial => "partial",
            Self::Stopped => "stopped",
            Self::Running => "running",
        }
    }
}

/// A guest as its backend sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestObserved {
    /// What became of it.
    pub state: GuestState,
    /// The spec it was made of, when it is complete.
    pub spec: Option<GuestSpec>,
}

/// Guests on a node.
#[async_trait]
pub trait Backend: Send + Sync {
    /// What there is of a guest.
    async fn observe(&self, id: &InstanceId) -> Result<GuestObserved, PortError>;

    /// Ids of all guests that carry our mark, complete or not.
    async fn inventory(&self) -> Result<Vec<InstanceId>, PortError>;

    /// Makes a guest, or makes an existing stopped one conform to the spec. Idempotent.
    async fn create(&self, spec: &GuestSpec) -> Result<(), PortError>;

    /// Starts it and verifies that it runs. Idempotent.
    async fn start(&self, id: &InstanceId) -> Result<(), PortError>;

    /// A new identity for a guest whose present one ends soon; none while it lasts. Nothing is changed.
    async fn due_identity(&self, _id: &InstanceId) -> Result<Option<Bundle>, PortError> {
        Ok(None)
    }

    /// Puts an identity where the guest's agent finds it when it starts.
    async fn place_identity(&self, _id: &InstanceId, _identity: &Bundle) -> Result<(), PortError> {
        Ok(())
    }

    /// Stops it: politely, then by force when `grace` is over. Idempotent.
    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), PortError>;

    /// Removes every trace of it. Refuses what does not carry our mark for this id. Idempotent.
    async fn destroy(&self, id: &InstanceId) -> Result<(), PortError>;

    /// The last lines of its console: data from a guest.
    async fn console_tail(&self, id: &InstanceId, lines: usize) -> Vec<String>;
}

/// What a zone needs of its node's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNetworkSpec {
    /// The zone it is for; its name is the mark on what is made.
    pub zone: ZoneName,
    /// The zone's bridge. The node itself has no address on it.
    pub bridge: InterfaceName,
    /// The zone's subnet.
    pub subnet: Ipv4Net,
    /// The way out.
    pub wan: Wan,
}

/// How the node's network stands against a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkObserved {
    /// What is missing or differs, in sentences; empty when all holds.
    pub drift: Vec<String>,
    /// What is in the way and not ours.
    pub conflicts: Vec<String>,
}

/// Bridges, kernel settings and the way out of a node.
#[async_trait]
pub trait NodeNetwork: Send + Sync {
    /// Compares what is with what should be; changes nothing.
    async fn observe(&self, spec: &NodeNetworkSpec) -> Result<NetworkObserved, PortError>;

    /// Makes it so. Touches nothing that does not carry our mark. Idempotent.
    async fn ensure(&self, spec: &NodeNetworkSpec) -> Result<(), PortError>;

    /// Makes exactly these ports of the node lead to the same ports of a managed WAN's appliance.
    /// Idempotent; with a WAN bridge of the operator's there is nothing to do.
    async fn publish(
        &self,
        spec: &NodeNetworkSpec,
        ports: &[(Protocol, u16)],
    ) -> Result<(), PortError>;

    /// Whether something of the node listens on a port that would be taken from it.
    async fn listens(
        &self,
        spec: &NodeNetworkSpec,
        protocol: Protocol,
        port: u16,
    ) -> Result<bool, PortError>;

    /// Takes what is ours away and puts settings back. Goes on past errors and reports all.
    async fn remove(&self, spec: &NodeNetworkSpec) -> Result<(), PortError>;
}

/// The gateway API of a zone's appliance.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// Makes the whole state hold and says what had to be changed.
    async fn apply(
        &self,
        appliance: &InstanceId,
        state: &GatewayState,
    ) -> Result<GatewayDiff, PortError>;

    /// Reads what holds now.
    async fn read(&self, appliance: &InstanceId) -> Result<GatewayReport, PortError>;

    /// As [`Gateway::read`], without names and routes: what these cost grows with their number, and who looks
    /// every few seconds does not need them.
    async fn look(&self, appliance: &InstanceId) -> Result<GatewayReport, PortError>;

    /// Reads one open route, and whether its target takes connections now; none when it is not open.
    async fn route(
        &self,
        appliance: &InstanceId,
        host: &HostName,
    ) -> Result<Option<RouteReport>, PortError>;

    /// Tells the relay its new identity.
    async fn renew(&self, _appliance: &InstanceId, _identity: &Bundle) -> Result<(), PortError> {
        Err(PortError::new(
            "renew the relay's identity",
            "this gateway has none",
        ))
    }

    /// Waits until an instance answers as asked, at most as long as the request says.
    /// The error's cause is the last thing that was seen.
    async fn probe(&self, appliance: &InstanceId, request: &ProbeRequest) -> Result<(), PortError>;
}

/// Time and randomness, so that tests can hold them still.
pub trait Entropy: Send + Sync {
    /// Now.
    fn now(&self) -> jiff::Timestamp;
    /// Eight random bytes for an id.
    fn id_bytes(&self) -> Result<[u8; 8], PortError>;
}

/// The machine's own clock and random source.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn id_bytes(&self) -> Result<[u8; 8], PortError> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|e| PortError::new("read random bytes", e))?;
        Ok(bytes)
    }
}
