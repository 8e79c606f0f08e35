//! Points at which a test stops the controller: one behind every record of an operation. Debug builds only; in
//! a release build there is no such code.
//!
//! ```text
//!   PROXIMITY_FAULT_POINTS = DIR
//!   DIR/passed   a line for each record that is on the disk: `deploy web 3 publish done`
//!   DIR/hold     `deploy web 3`, or `deploy * 3` for any target: whoever writes that record does not go on
//!                while the file says so
//! ```
//! The number counts the records of one operation since this process began. Holding is all that is done here:
//! whoever holds the controller kills it, or what it works with, or lets it go on.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::OperationId;

use crate::SqliteStore;

/// Names the directory.
const VARIABLE: &str = "PROXIMITY_FAULT_POINTS";

/// The fault points of one store; none where nobody asked for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultPoints {
    dir: Option<PathBuf>,
    passed: Arc<Mutex<HashMap<String, u32>>>,
}

/// By what a record's operation is found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of<'a> {
    /// The operation itself.
    Operation(&'a OperationId),
    /// The newest one of an object.
    Object(&'a str),
}

impl FaultPoints {
    pub(crate) fn from_environment() -> Self {
        Self {
            dir: std::env::var_os(VARIABLE).map(PathBuf::from),
            ..Self::default()
        }
    }
}

impl SqliteStore {
    /// A record of an operation is on the disk. Comes back when nobody holds the controller here.
    pub(crate) async fn passed(&self, of: Of<'_>, what: &str) {
        let Some(dir) = &self.faults.dir else {
            return;
        };
        let (query, key) = match of {
            Of::Operation(id) => (
                "SELECT id, kind, target FROM operations WHERE id = ?",
                id.as_str(),
            ),
            Of::Object(object) => (
                "SELECT id, kind, target FROM operations WHERE object = ? ORDER BY created_at DESC LIMIT 1",
                object,
            ),
        };
        let row: Result<Option<(String, String, String)>, _> = sqlx::query_as(query)
            .bind(key)
            .fetch_optional(&self.pool)
            .await;
        let Ok(Some((id, kind, target))) = row else {
            return;
        };
        let number = {
            let passed = self.faults.passed.lock();
            let mut passed = passed.unwrap_or_else(PoisonError::into_inner);
            let number = passed.entry(id).or_default();
            *number += 1;
            *number
        };
        let point = format!("{kind} {target} {number}");
        let any = format!("{kind} * {number}");
        let log = File::options()
            .append(true)
            .create(true)
            .open(dir.join("passed"));
        // A test that sees no point passed fails by itself.
        let _ = log.and_then(|mut log| log.write_all(format!("{point} {what}\n").as_bytes()));
        let held = || std::fs::read_to_string(dir.join("hold")).unwrap_or_default();
        while [&point, &any].contains(&&held()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
