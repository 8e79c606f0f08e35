//! The store port: desired state, addresses and operations. Every method is one transaction.

use api::app::Failure;
use api::egress::Egress;
use api::operation::{Operation, OperationEvent, OperationStatus};
use api::{InstanceId, InstanceName, OperationId, ZoneName};
use async_trait::async_trait;
use jiff::Timestamp;
pub use wire::gateway::Lease;

use crate::gateway::entry::EntryStore;
use crate::instance::InstanceRecord;
use crate::zone::ZoneRecord;

/// The store could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// An instance of that name exists.
    #[error("the name {0} is taken")]
    NameTaken(InstanceName),
    /// A name, an address or a port of the zone belongs to something else.
    #[error("{what} belongs to {by}")]
    Taken {
        /// What was asked for.
        what: String,
        /// What has it.
        by: String,
    },
    /// No address of the zone is free and rested.
    #[error("zone {0} has no free address")]
    NoAddress(ZoneName),
    /// The zone still has instances.
    #[error("zone {zone} has {} instance(s): {}", names.len(), names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", "))]
    HasInstances {
        /// Which zone.
        zone: ZoneName,
        /// Its instances.
        names: Vec<InstanceName>,
    },
    /// The zone is not wanted up.
    #[error("zone {0} is not up")]
    ZoneDown(ZoneName),
    /// An operation on that object is under way.
    #[error("operation {operation} ({kind}) is under way for {target}")]
    Busy {
        /// Which one.
        operation: OperationId,
        /// What it does.
        kind: String,
        /// What it is about.
        target: String,
    },
    /// There is no such record.
    #[error("there is no {0}")]
    Missing(String),
    /// The database failed.
    #[error("{what}: {cause}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What the database said.
        cause: String,
    },
}

/// A new operation: what it does, to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOperation {
    /// Its id.
    pub id: OperationId,
    /// `deploy`, `delete`, …
    pub kind: String,
    /// The name of the zone or instance.
    pub target: String,
    /// The id of the zone (its name) or the instance: what reconcilers look operations up by.
    pub object: String,
    /// Now.
    pub at: Timestamp,
}

/// Where desired state lives. Transactions are inside the methods, one each.
#[async_trait]
pub trait Store: EntryStore {
    /// All zones ever brought up and not yet taken down.
    async fn zones(&self) -> Result<Vec<ZoneRecord>, StoreError>;
    /// One zone.
    async fn zone(&self, name: &ZoneName) -> Result<Option<ZoneRecord>, StoreError>;
    /// Writes a zone together with the operation that will bring it there. [`StoreError::Busy`] when one
    /// is under way for it; [`StoreError::HasInstances`] when it is wanted down, has instances, and they
    /// are not to go with it.
    async fn begin_zone(
        &self,
        zone: &ZoneRecord,
        operation: &NewOperation,
        with_instances: bool,
    ) -> Result<(), StoreError>;
    /// Marks whether the zone has reached what is wanted.
    async fn settle_zone(&self, name: &ZoneName, settled: bool) -> Result<(), StoreError>;
    /// Forgets a zone that was taken down and ends what was under way for it; false, and nothing is
    /// forgotten, when it is wanted up by now.
    async fn forget_zone(&self, name: &ZoneName, at: Timestamp) -> Result<bool, StoreError>;

    /// The leases that the zone's appliance has given, as they were last remembered.
    async fn leases(&self, zone: &ZoneName) -> Result<Vec<Lease>, StoreError>;
    /// Remembers these leases of a zone and no others; nothing when there is no such zone.
    async fn remember_leases(&self, zone: &ZoneName, leases: &[Lease]) -> Result<(), StoreError>;

    /// All instances, by name.
    async fn instances(&self) -> Result<Vec<InstanceRecord>, StoreError>;
    /// One instance by id.
    async fn instance(&self, id: &InstanceId) -> Result<Option<InstanceRecord>, StoreError>;
    /// One instance by name.
    async fn instance_named(
        &self,
        name: &InstanceName,
    ) -> Result<Option<InstanceRecord>, StoreError>;
    /// An instance by its name, with its zone: what every command in it needs, in one read.
    async fn guest_named(
        &self,
        name: &InstanceName,
    ) -> Result<Option<(InstanceRecord, ZoneRecord)>, StoreError>;
    /// Reserves a name and an address (chosen by [`crate::address::choose`] from `range`) and writes the
    /// instance with its operation. The record's own address is ignored; the written one comes back.
    async fn begin_deploy(
        &self,
        record: &InstanceRecord,
        range: (std::net::Ipv4Addr, std::net::Ipv4Addr),
        operation: &NewOperation,
    ) -> Result<InstanceRecord, StoreError>;
    /// Writes what is wanted of an existing instance with the operation that will bring it there.
    /// [`StoreError::Busy`] when one is under way, unless `supersede`: then that one ends as failed.
    async fn begin_change(
        &self,
        record: &InstanceRecord,
        operation: &NewOperation,
        supersede: bool,
    ) -> Result<(), StoreError>;
    /// Writes the progress of an instance: status, published, routed, restart, failure. What is wanted
    /// of it is left as it is.
    async fn save_progress(&self, record: &InstanceRecord) -> Result<(), StoreError>;
    /// As [`Store::begin_change`] with `supersede`, for an instance whose life ends when `record` says. False,
    /// and nothing is changed, when its end was moved meanwhile, or it is on its way out already.
    async fn begin_expiry(
        &self,
        record: &InstanceRecord,
        operation: &NewOperation,
    ) -> Result<bool, StoreError>;
    /// Sets when an instance ends by itself; false when there is none, or it is on its way out.
    async fn set_expiry(&self, id: &InstanceId, at: Timestamp) -> Result<bool, StoreError>;
    /// Sets what an instance may reach outside; false when there is none, or it is on its way out.
    async fn set_egress(&self, id: &InstanceId, egress: &Egress) -> Result<bool, StoreError>;
    /// Forgets a deleted instance and ends what was under way for it; its address rests from `at`.
    async fn forget_instance(&self, id: &InstanceId, at: Timestamp) -> Result<(), StoreError>;

    /// Adds an event to an operation; its `seq` is given by the store and comes back.
    async fn append_event(
        &self,
        id: &OperationId,
        event: &OperationEvent,
    ) -> Result<u32, StoreError>;
    /// Writes an operation that is over as it begins, with its one event; false, and nothing is written, when
    /// one of that id is there.
    async fn note(
        &self,
        operation: &NewOperation,
        event: &OperationEvent,
    ) -> Result<bool, StoreError>;
    /// Ends an operation. Ending one that has ended changes nothing.
    async fn finish_operation(
        &self,
        id: &OperationId,
        status: OperationStatus,
        failure: Option<&Failure>,
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// The operation under way for an object.
    async fn open_operation(&self, object: &str) -> Result<Option<Operation>, StoreError>;
    /// One operation with its events after `after` (0 for all).
    async fn operation(
        &self,
        id: &OperationId,
        after: u32,
    ) -> Result<Option<Operation>, StoreError>;
    /// The newest operations, without their events.
    async fn operations(&self, limit: u32) -> Result<Vec<Operation>, StoreError>;

    /// Remembers an API token by its hash; another one of the same name is valid no more.
    async fn put_token(
        &self,
        name: &str,
        role: &str,
        hash: &[u8; 32],
        at: Timestamp,
    ) -> Result<(), StoreError>;
    /// The name and role of the token with that hash.
    async fn token(&self, hash: &[u8; 32]) -> Result<Option<(String, String)>, StoreError>;

    /// Claims an idempotency key: the kept answer if the same request was answered before.
    async fn claim_key(&self, key: &IdempotencyKey, at: Timestamp) -> Result<KeyClaim, StoreError>;
    /// Keeps the answer for a claimed key, or gives the key up when there is none.
    async fn settle_key(
        &self,
        key: &IdempotencyKey,
        answer: Option<(u16, String)>,
    ) -> Result<(), StoreError>;
    /// Gives this answer to every key that was claimed and not settled: their calls ended with the
    /// process that carried them out.
    async fn settle_open_keys(&self, answer: (u16, String)) -> Result<(), StoreError>;
}

/// An `Idempotency-Key` as one token used it for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Who used it.
    pub token: String,
    /// The key.
    pub key: String,
    /// SHA-256 of method, path and body.
    pub request: [u8; 32],
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyClaim {
    /// First use: go on, then settle it.
    New,
    /// The same request was answered: status and body.
    Answered(u16, String),
    /// The same request is under way.
    InFlight,
    /// The key was used for another request.
    Mismatch,
}
