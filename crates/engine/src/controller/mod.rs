//! The controller: takes requests, writes what is wanted, and lets reconcilers make it so.
//!
//! ```text
//!   request ──▶ store (desired state + operation) ──▶ wake worker ──▶ observe ▸ plan ▸ apply ▸ record
//! ```
//!
//! Owns the workers (one task per zone and per instance) and nothing durable: all that must survive
//! is in the store before it is acted on, so killing the process at any point loses nothing.

mod attention;
mod drift;
mod egress;
mod entries;
mod gateway_sync;
mod guest_commands;
mod identities;
mod orphans;
mod reconcile_instance;
mod reconcile_zone;
mod repair;
mod requests;
mod sandboxes;
mod views;
mod ways;
mod worker;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use api::{InstanceId, OperationId, ZoneName};

use crate::catalog::Catalog;
use crate::config::Config;
use crate::error::Error;
use crate::operation::Feed;
use crate::ports::{Backend, Channel, Entropy, Gateway, Images, NodeNetwork, Store};
use crate::zone::ZoneSpec;
use worker::Workers;

pub(crate) use attention::Attention;

pub use requests::{DownOptions, Power};
pub use ways::FoundGuest;
pub use worker::Pace;

/// The ports a controller works through.
#[derive(Clone)]
pub struct Ports {
    /// Desired state.
    pub store: Arc<dyn Store>,
    /// Guests.
    pub backend: Arc<dyn Backend>,
    /// Bridges and NAT.
    pub network: Arc<dyn NodeNetwork>,
    /// The appliances' gateway API.
    pub gateway: Arc<dyn Gateway>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// Ways to run a command, best first.
    pub channels: Vec<Arc<dyn Channel>>,
    /// Clock and randomness.
    pub entropy: Arc<dyn Entropy>,
}

/// See the module's documentation. Cheap to clone; all clones are one controller.
#[derive(Clone)]
pub struct Controller {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    catalog: Catalog,
    ports: Ports,
    feed: Feed,
    workers: Workers,
    pace: Pace,
    gateway_turns: Mutex<HashMap<ZoneName, Arc<gateway_sync::Turns>>>,
    /// Zones that are looked at soon.
    soon: Mutex<HashSet<ZoneName>>,
}

/// What a worker looks after.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    Zone(ZoneName),
    Instance(InstanceId),
}

impl Controller {
    /// A controller over these ports. Nothing happens before [`Controller::start`].
    pub fn new(config: Config, catalog: Catalog, ports: Ports) -> Self {
        Self::paced(config, catalog, ports, Pace::default())
    }

    /// As [`Controller::new`], with a pace of its own.
    pub fn paced(config: Config, catalog: Catalog, ports: Ports, pace: Pace) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                catalog,
                ports,
                feed: Feed::default(),
                workers: Workers::default(),
                pace,
                gateway_turns: Mutex::default(),
                soon: Mutex::default(),
            }),
        }
    }

    /// Wakes a worker for everything in the store: whatever was under way goes on from what is there.
    pub async fn start(&self) -> Result<(), Error> {
        for zone in self.ports().store.zones().await? {
            self.wake(Object::Zone(zone.spec.name));
        }
        for instance in self.ports().store.instances().await? {
            self.wake(Object::Instance(instance.id));
        }
        Ok(())
    }

    /// Stops all workers at once and for good. Guests go on; the next controller goes on where this one
    /// stopped. What is asked for from now on is written down and left to it.
    pub fn stop(&self) {
        self.inner.workers.stop();
    }

    /// The catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// The store, for what is not a request about zones or instances (tokens, idempotency keys).
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.ports.store
    }

    /// The clock.
    pub fn entropy(&self) -> &Arc<dyn Entropy> {
        &self.inner.ports.entropy
    }

    /// Wakes on every new event of any operation.
    pub fn feed(&self) -> &Feed {
        &self.inner.feed
    }

    fn ports(&self) -> &Ports {
        &self.inner.ports
    }

    fn configured_zone(&self, name: Option<&str>) -> Result<&ZoneSpec, Error> {
        let zones = &self.inner.config.zones;
        let found = match name {
            Some(n) => zones.values().find(|z| z.name.as_str() == n),
            None if zones.len() == 1 => zones.values().next(),
            None => zones.values().find(|z| z.name.as_str() == "default"),
        };
        found.ok_or_else(|| Error::UnknownZone(name.unwrap_or("default").to_owned()))
    }

    /// The name of the zone that a request is about, named or not.
    pub fn zone_name(&self, asked: Option<&str>) -> Result<&ZoneName, Error> {
        Ok(&self.configured_zone(asked)?.name)
    }

    fn new_operation_id(&self) -> Result<OperationId, Error> {
        Ok(OperationId::from_bytes(self.ports().entropy.id_bytes()?))
    }

    fn new_instance_id(&self) -> Result<InstanceId, Error> {
        Ok(InstanceId::from_bytes(self.ports().entropy.id_bytes()?))
    }
}
