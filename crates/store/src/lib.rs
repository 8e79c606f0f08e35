//! The engine's store port on SQLite, inside the data directory. One writer, WAL, every method one
//! immediate transaction that is on the disk (`synchronous = FULL`) before it returns; only events of operations
//! do not wait for it.
//!
//! Owns the database file. Never interprets what it keeps: plans and rules are the engine's.

mod entries;
#[cfg(debug_assertions)]
mod fault_points;
mod instances;
mod keys;
mod operations;
mod zones;

use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use api::app::Failure;
use api::egress::Egress;
use api::operation::{Operation, OperationEvent, OperationStatus};
use api::{InstanceId, InstanceName, OperationId, ZoneName};
use async_trait::async_trait;
use engine::instance::InstanceRecord;
use engine::store::{IdempotencyKey, KeyClaim, Lease, NewOperation, Store, StoreError};
use engine::zone::ZoneRecord;
use jiff::Timestamp;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
    /// For events: they tell and decide nothing, so none of them waits for the disk. They outlive this
    /// process; before a power cut they are safe with the next change of a record.
    events: SqlitePool,
    known: entries::Known,
    #[cfg(debug_assertions)]
    faults: fault_points::FaultPoints,
}

impl SqliteStore {
    /// Opens the database, making it if there is none, and brings its schema up to date. A database
    /// that is damaged or newer than this program is refused and left as it is.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        keep_private(path).map_err(|e| StoreError::Failed {
            what: "protect the database",
            cause: format!("{}: {e}", path.display()),
        })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = async |most, options| {
            // A connection to a file needs no question whether it is still there.
            let pool = SqlitePoolOptions::new()
                .max_connections(most)
                .test_before_acquire(false);
            let opened = pool.connect_with(options).await;
            opened.map_err(failed("open the database"))
        };
        let store = Self {
            pool: pool(4, options.clone()).await?,
            events: pool(1, options.synchronous(SqliteSynchronous::Normal)).await?,
            known: entries::Known::default(),
            #[cfg(debug_assertions)]
            faults: fault_points::FaultPoints::from_environment(),
        };
        let (verdict,): (String,) = sqlx::query_as("PRAGMA quick_check(1)")
            .fetch_one(&store.pool)
            .await
            .map_err(failed("check the database"))?;
        if verdict != "ok" {
            return Err(StoreError::Failed {
                what: "check the database",
                cause: format!(
                    "{} is damaged: {verdict}; restore it from a backup",
                    path.display()
                ),
            });
        }
        sqlx::migrate!("./migrations")
            .run(&store.pool)
            .await
            .map_err(|e| StoreError::Failed {
                what: "bring the database's schema up to date",
                cause: e.to_string(),
            })?;
        Ok(store)
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.events.close().await;
        self.pool.close().await;
    }

    async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, StoreError> {
        begin(&self.pool).await
    }
}

async fn begin(pool: &SqlitePool) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, StoreError> {
    pool.begin_with("BEGIN IMMEDIATE")
        .await
        .map_err(failed("begin a transaction"))
}

/// Says in debug builds that a record of an operation is on the disk; nothing in release builds.
macro_rules! passed {
    ($store:expr, $of:ident($by:expr), $what:expr) => {
        #[cfg(debug_assertions)]
        $store.passed(fault_points::Of::$of($by), $what).await;
    };
}

/// Guests and other users of the node may pass through the data directory, but not read this. SQLite
/// gives the files beside it (`-wal`, `-shm`) the same permissions.
fn keep_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    for beside in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        match std::fs::set_permissions(&name, std::fs::Permissions::from_mode(0o600)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |e| StoreError::Failed {
        what,
        cause: e.to_string(),
    }
}

/// Reads a column that this program wrote itself; anything else means a damaged or edited database.
fn parse<T: FromStr>(what: &'static str, text: &str) -> Result<T, StoreError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| StoreError::Failed {
        what,
        cause: e.to_string(),
    })
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Failed {
        what: "write a record as JSON",
        cause: e.to_string(),
    })
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Failed {
        what: "read a record",
        cause: e.to_string(),
    })
}

/// A unit enum as the word that serde gives it.
fn word<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    Ok(to_json(value)?.trim_matches('"').to_owned())
}

fn from_word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    from_json(&format!("\"{text}\""))
}

#[async_trait]
impl Store for SqliteStore {
    async fn zones(&self) -> Result<Vec<ZoneRecord>, StoreError> {
        self.all_zones().await
    }

    async fn zone(&self, name: &ZoneName) -> Result<Option<ZoneRecord>, StoreError> {
        self.one_zone(name).await
    }

    async fn begin_zone(
        &self,
        zone: &ZoneRecord,
        operation: &NewOperation,
        with_instances: bool,
    ) -> Result<(), StoreError> {
        self.write_zone(zone, operation, with_instances).await?;
        passed!(self, Operation(&operation.id), "begun");
        Ok(())
    }

    async fn settle_zone(&self, name: &ZoneName, settled: bool) -> Result<(), StoreError> {
        self.mark_zone(name, settled).await?;
        passed!(self, Object(name.as_str()), "settled");
        Ok(())
    }

    async fn forget_zone(&self, name: &ZoneName, at: Timestamp) -> Result<bool, StoreError> {
        let gone = self.delete_zone(name, at).await?;
        passed!(self, Object(name.as_str()), "forgotten");
        Ok(gone)
    }

    async fn leases(&self, zone: &ZoneName) -> Result<Vec<Lease>, StoreError> {
        self.zone_leases(zone).await
    }

    async fn remember_leases(&self, zone: &ZoneName, leases: &[Lease]) -> Result<(), StoreError> {
        self.write_leases(zone, leases).await
    }

    async fn instances(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        self.all_instances().await
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<InstanceRecord>, StoreError> {
        self.instance_by("id", id.as_str()).await
    }

    async fn instance_named(
        &self,
        name: &InstanceName,
    ) -> Result<Option<InstanceRecord>, StoreError> {
        self.instance_by("name", name.as_str()).await
    }

    async fn guest_named(
        &self,
        name: &InstanceName,
    ) -> Result<Option<(InstanceRecord, ZoneRecord)>, StoreError> {
        self.instance_and_zone(name).await
    }

    async fn begin_deploy(
        &self,
        record: &InstanceRecord,
        range: (Ipv4Addr, Ipv4Addr),
        operation: &NewOperation,
    ) -> Result<InstanceRecord, StoreError> {
        let written = self.insert_instance(record, range, operation).await?;
        passed!(self, Operation(&operation.id), "begun");
        Ok(written)
    }

    async fn begin_change(
        &self,
        record: &InstanceRecord,
        operation: &NewOperation,
        supersede: bool,
    ) -> Result<(), StoreError> {
        self.change_instance(record, operation, supersede).await?;
        passed!(self, Operation(&operation.id), "begun");
        Ok(())
    }

    async fn begin_expiry(
        &self,
        record: &InstanceRecord,
        operation: &NewOperation,
    ) -> Result<bool, StoreError> {
        let begun = self.expire_instance(record, operation).await?;
        passed!(self, Object(record.id.as_str()), "begun");
        Ok(begun)
    }

    async fn save_progress(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        self.update_progress(record).await?;
        passed!(self, Object(record.id.as_str()), "saved");
        Ok(())
    }

    async fn set_egress(&self, id: &InstanceId, egress: &Egress) -> Result<bool, StoreError> {
        self.update_egress(id, egress).await
    }

    async fn set_expiry(&self, id: &InstanceId, at: Timestamp) -> Result<bool, StoreError> {
        self.update_expiry(id, at).await
    }

    async fn forget_instance(&self, id: &InstanceId, at: Timestamp) -> Result<(), StoreError> {
        self.delete_instance(id, at).await?;
        passed!(self, Object(id.as_str()), "forgotten");
        Ok(())
    }

    async fn append_event(
        &self,
        id: &OperationId,
        event: &OperationEvent,
    ) -> Result<u32, StoreError> {
        let seq = self.insert_event(id, event).await?;
        passed!(
            self,
            Operation(id),
            &format!("{} {}", event.step, word(&event.state)?)
        );
        Ok(seq)
    }

    async fn note(
        &self,
        operation: &NewOperation,
        event: &OperationEvent,
    ) -> Result<bool, StoreError> {
        self.insert_note(operation, event).await
    }

    async fn finish_operation(
        &self,
        id: &OperationId,
        status: OperationStatus,
        failure: Option<&Failure>,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.end_operation(id, status, failure, at).await?;
        passed!(self, Operation(id), word(&status)?.as_str());
        Ok(())
    }

    async fn open_operation(&self, object: &str) -> Result<Option<Operation>, StoreError> {
        self.running_operation(object).await
    }

    async fn operation(
        &self,
        id: &OperationId,
        after: u32,
    ) -> Result<Option<Operation>, StoreError> {
        self.one_operation(id, after).await
    }

    async fn operations(&self, limit: u32) -> Result<Vec<Operation>, StoreError> {
        self.newest_operations(limit).await
    }

    async fn put_token(
        &self,
        name: &str,
        role: &str,
        hash: &[u8; 32],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.insert_token(name, role, hash, at).await
    }

    async fn token(&self, hash: &[u8; 32]) -> Result<Option<(String, String)>, StoreError> {
        self.find_token(hash).await
    }

    async fn claim_key(&self, key: &IdempotencyKey, at: Timestamp) -> Result<KeyClaim, StoreError> {
        self.take_key(key, at).await
    }

    async fn settle_key(
        &self,
        key: &IdempotencyKey,
        answer: Option<(u16, String)>,
    ) -> Result<(), StoreError> {
        self.answer_key(key, answer).await
    }

    async fn settle_open_keys(&self, answer: (u16, String)) -> Result<(), StoreError> {
        self.answer_open_keys(answer).await
    }
}
