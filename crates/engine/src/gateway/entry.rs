//! What people added to a zone's gateway, as the store keeps it.
//!
//! An entry has a key of its own in its zone and may take a name, an address or both there, which
//! nothing else of the zone has then. Entries that lead to an instance go with it; all go with their
//! zone. Pure: who checks what is free is the store, in the transaction that writes.

use std::net::Ipv4Addr;

use api::entry::Protocol;
use api::{HostName, InstanceId, InstanceName, MacAddr, ZoneName};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use wire::gateway::policy::RoutePolicy;

use crate::store::StoreError;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// A host name that leads to an app.
    Route(RouteEntry),
    /// A port of the outside that leads to an app.
    Port(PortEntry),
    /// A name.
    Record(RecordEntry),
    /// An address for a machine that is no instance.
    Reservation(ReservationEntry),
}

/// A host name that leads to an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The name.
    pub host: HostName,
    /// The app.
    pub instance: InstanceId,
    /// Its port.
    pub port: u16,
    /// What it asks of a request.
    pub policy: RoutePolicy,
}

/// A port of the outside that leads to an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortEntry {
    /// Of both ports.
    pub protocol: Protocol,
    /// The port outside.
    pub listen: u16,
    /// The app.
    pub instance: InstanceId,
    /// Its port.
    pub port: u16,
}

/// A name in the zone's domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEntry {
    /// The full name.
    pub name: HostName,
    /// What it stands for.
    pub target: RecordTarget,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordTarget {
    /// An address.
    Address(Ipv4Addr),
    /// An app's address.
    Instance(InstanceId),
}

/// An address for a machine that is no instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationEntry {
    /// The machine.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its name in the zone's domain.
    pub name: InstanceName,
    /// That name in full.
    pub host: HostName,
}

/// The key of a route.
pub fn route_key(host: &HostName) -> String {
    format!("route {host}")
}

/// The key of a published port.
pub fn port_key(protocol: Protocol, listen: u16) -> String {
    format!("port {protocol}/{listen}")
}

/// The key of a name.
pub fn record_key(name: &HostName) -> String {
    format!("name {name}")
}

/// The key of a reservation.
pub fn reservation_key(mac: MacAddr) -> String {
    format!("reservation {mac}")
}

impl Entry {
    /// What it is called in its zone, in words for people.
    pub fn key(&self) -> String {
        match self {
            Self::Route(route) => route_key(&route.host),
            Self::Port(port) => port_key(port.protocol, port.listen),
            Self::Record(record) => record_key(&record.name),
            Self::Reservation(kept) => reservation_key(kept.mac),
        }
    }

    /// The instance that it goes with.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Route(route) => Some(&route.instance),
            Self::Port(port) => Some(&port.instance),
            Self::Record(record) => match &record.target {
                RecordTarget::Instance(id) => Some(id),
                RecordTarget::Address(_) => None,
            },
            Self::Reservation(_) => None,
        }
    }

    /// The name that nothing else may have.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::Route(route) => Some(&route.host),
            Self::Record(record) => Some(&record.name),
            Self::Reservation(kept) => Some(&kept.host),
            Self::Port(_) => None,
        }
    }

    /// The address that nothing else may have.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Reservation(kept) => Some(kept.address),
            _ => None,
        }
    }
}

/// The part of the store that keeps entries. Every method is one transaction.
#[async_trait]
pub trait EntryStore: Send + Sync {
    /// The entry of a zone with this key.
    async fn entry(&self, zone: &ZoneName, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All entries of a zone, by key.
    async fn entries(&self, zone: &ZoneName) -> Result<Vec<Entry>, StoreError>;

    /// Writes an entry; says whether it is new. [`StoreError::Taken`] when its name or address belongs
    /// to something else, or, unless `replace`, when there is one of its key that differs;
    /// [`StoreError::ZoneDown`]; [`StoreError::Missing`] when its instance is gone or going.
    async fn put_entry(
        &self,
        zone: &ZoneName,
        entry: &Entry,
        replace: bool,
    ) -> Result<bool, StoreError>;

    /// Removes an entry; false when there is none.
    async fn remove_entry(&self, zone: &ZoneName, key: &str) -> Result<bool, StoreError>;
}
