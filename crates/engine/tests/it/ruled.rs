//! A controller over a node in memory and a real store, that can be stopped and started again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::app::{AppStatus, DeployRequest};
use api::operation::{Operation, OperationStatus, StepState};
use api::{InstanceId, InstanceName, OperationId};
use engine::catalog::Catalog;
use engine::controller::{DownOptions, Pace};
use engine::fake::{self, FakeNode};
use engine::instance::InstanceRecord;
use engine::store::Store;
use engine::{Config, Controller, Error};
use store::SqliteStore;
use tempfile::TempDir;
use wire::gateway::GatewayState;

/// The test's world. It ends with its value.
pub struct Ruled {
    dir: Arc<TempDir>,
    pub node: Arc<FakeNode>,
    pub store: Arc<SqliteStore>,
    pub controller: Controller,
}

impl Ruled {
    /// Nothing is up.
    pub async fn new() -> Self {
        Self::with(Config::built_in().unwrap()).await
    }

    pub async fn with(config: Config) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let node = Arc::new(FakeNode::default());
        let store = Arc::new(SqliteStore::open(&path(&dir)).await.unwrap());
        let controller = controller(config, &node, &store);
        controller.start().await.unwrap();
        Self {
            dir,
            node,
            store,
            controller,
        }
    }

    /// The default zone is up.
    pub async fn up() -> Self {
        let ruled = Self::new().await;
        let id = ruled.controller.zone_up(None).await.unwrap();
        assert_eq!(ruled.end(&id).await.failure, None);
        ruled
    }

    /// An nginx of that name runs.
    pub async fn with_app(name: &str) -> Self {
        let ruled = Self::up().await;
        let id = ruled.deploy(name).await.unwrap();
        assert_eq!(ruled.end(&id).await.failure, None);
        ruled
    }

    /// Another process takes over: the controller stops at once, the database is opened anew.
    pub async fn restarted(self) -> Self {
        self.restarted_with(Config::built_in().unwrap()).await
    }

    pub async fn restarted_with(self, config: Config) -> Self {
        self.controller.stop();
        let store = Arc::new(SqliteStore::open(&path(&self.dir)).await.unwrap());
        let controller = controller(config, &self.node, &store);
        controller.start().await.unwrap();
        Self {
            dir: self.dir.clone(),
            node: self.node.clone(),
            store,
            controller,
        }
    }

    /// Another controller over the same node and a store that lost the end of its log: so many of its bytes are
    /// left. Neither changes this one's.
    pub async fn with_log_cut_at(&self, left: usize) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::copy(path(&self.dir), path(&dir)).unwrap();
        let log = self.log();
        std::fs::write(path(&dir).with_extension("db-wal"), &log[..left]).unwrap();
        let node = Arc::new(FakeNode::default());
        *node.guests.lock().unwrap() = self.node.guests.lock().unwrap().clone();
        *node.networks.lock().unwrap() = self.node.networks.lock().unwrap().clone();
        *node.images.lock().unwrap() = self.node.images.lock().unwrap().clone();
        *node.gateways.lock().unwrap() = self.node.gateways.lock().unwrap().clone();
        let store = Arc::new(SqliteStore::open(&path(&dir)).await.unwrap());
        let controller = controller(Config::built_in().unwrap(), &node, &store);
        controller.start().await.unwrap();
        Self {
            dir,
            node,
            store,
            controller,
        }
    }

    /// The store's write-ahead log.
    pub fn log(&self) -> Vec<u8> {
        std::fs::read(path(&self.dir).with_extension("db-wal")).unwrap()
    }

    pub async fn deploy(&self, name: &str) -> Result<OperationId, Error> {
        let accepted = self
            .controller
            .deploy(&request("nginx", Some(name)))
            .await?;
        Ok(accepted.0)
    }

    pub async fn down(&self, with_instances: bool) -> Result<OperationId, Error> {
        let options = DownOptions { with_instances };
        self.controller.zone_down(None, options).await
    }

    /// Waits for the end of an operation.
    pub async fn end(&self, id: &OperationId) -> Operation {
        let mut feed = self.controller.feed().subscribe();
        loop {
            feed.mark_unchanged();
            let operation = self.controller.operation(id.as_str(), 0).await.unwrap();
            if operation.status != OperationStatus::Running {
                return operation;
            }
            feed.changed().await.unwrap();
        }
    }

    /// Waits until the records are as wanted. Looks often: the store tells nobody of a change.
    pub async fn until_recorded(&self, holds: impl Fn(&[InstanceRecord]) -> bool) {
        while !holds(&self.store.instances().await.unwrap()) {
            tokio::task::yield_now().await;
        }
    }

    pub async fn record(&self, name: &str) -> InstanceRecord {
        let name: InstanceName = name.parse().unwrap();
        let found = self.store.instance_named(&name).await.unwrap();
        found.unwrap()
    }

    pub async fn id(&self, name: &str) -> InstanceId {
        self.record(name).await.id
    }

    /// What the only appliance was told last.
    pub fn gateway(&self) -> GatewayState {
        let gateways = self.node.gateways.lock().unwrap();
        gateways.values().next().unwrap().clone()
    }

    /// Names and routes that the appliance has.
    pub fn published(&self) -> (Vec<String>, Vec<String>) {
        let state = self.gateway();
        (
            state.hosts.iter().map(|h| h.name.to_string()).collect(),
            state.routes.iter().map(|r| r.host.to_string()).collect(),
        )
    }

    /// Whether a guest runs; none when there is no such guest.
    pub fn guest(&self, id: &InstanceId) -> Option<bool> {
        self.node.guests.lock().unwrap().get(id).map(|g| g.1)
    }

    /// The app is one of a kind: recorded, running, published and routed, and nothing else is there.
    pub async fn assert_only(&self, name: &str) {
        let record = self.record(name).await;
        assert_eq!(record.status, AppStatus::Running);
        assert_eq!((record.restart, &record.failure), (false, &None));
        assert_eq!(self.guest(&record.id), Some(true));
        assert_eq!(
            self.node.guests.lock().unwrap().len(),
            2,
            "it and the appliance"
        );
        assert_eq!(self.store.instances().await.unwrap().len(), 1);
        let host = record.host(&fake::zone_spec());
        let hosts = self.gateway().hosts;
        assert_eq!(hosts, [record.reserved_host(&fake::zone_spec())]);
        assert_eq!(self.published().1, [host.to_string()]);
    }

    /// Nothing is left of any app; the appliance and its network are.
    pub async fn assert_no_apps(&self) {
        assert!(self.store.instances().await.unwrap().is_empty());
        assert_eq!(self.node.guests.lock().unwrap().len(), 1, "the appliance");
        self.node
            .until(|node| {
                let gateways = node.gateways.lock().unwrap();
                gateways
                    .values()
                    .all(|g| g.hosts.is_empty() && g.routes.is_empty())
            })
            .await;
    }

    /// Nothing runs and no operation is open.
    pub async fn assert_idle(&self) {
        let operations = self.store.operations(1000).await.unwrap();
        let open = operations
            .iter()
            .find(|o| o.status == OperationStatus::Running);
        assert_eq!(open, None);
    }
}

impl Drop for Ruled {
    fn drop(&mut self) {
        self.controller.stop();
    }
}

fn path(dir: &TempDir) -> PathBuf {
    dir.path().join("p.db")
}

fn controller(config: Config, node: &Arc<FakeNode>, store: &Arc<SqliteStore>) -> Controller {
    let pace = Pace {
        longest_pause: Duration::from_millis(20),
        appliance: Duration::from_millis(20),
        ..Pace::default()
    };
    let catalog = Catalog::new(&[]).unwrap();
    Controller::paced(config, catalog, node.ports(store.clone()), pace)
}

pub fn request(recipe: &str, name: Option<&str>) -> DeployRequest {
    let name = name.map(|n| serde_json::json!(n)).unwrap_or_default();
    let json = serde_json::json!({"app_id": recipe, "instance_name": name});
    serde_json::from_value(json).unwrap()
}

/// `step state` of every event.
pub fn events(operation: &Operation) -> Vec<String> {
    let word = |state| match state {
        StepState::Started => "started",
        StepState::Progress => "progress",
        StepState::Done => "done",
        StepState::Failed => "failed",
    };
    let events = operation.events.iter();
    events
        .map(|e| format!("{} {}", e.step, word(e.state)))
        .collect()
}

/// The code that a refused request gets.
pub fn code<T: std::fmt::Debug>(refused: Result<T, Error>) -> String {
    refused.unwrap_err().problem().code
}
