//! Rows of operations and their events.

use api::OperationId;
use api::app::Failure;
use api::operation::{Operation, OperationEvent, OperationStatus};
use engine::store::{NewOperation, StoreError};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::{SqliteStore, failed, from_json, from_word, parse, to_json, word};

type Tx = sqlx::Transaction<'static, sqlx::Sqlite>;

/// How many finished operations are kept; the oldest go when a new one begins.
const KEPT: i64 = 1000;

/// Begins an operation, unless one is under way for its object.
pub(crate) async fn insert(tx: &mut Tx, new: &NewOperation) -> Result<(), StoreError> {
    let open: Option<(String, String, String)> = sqlx::query_as(
        "SELECT id, kind, target FROM operations WHERE object = ? AND status = 'running'",
    )
    .bind(&new.object)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("look for open operations"))?;
    if let Some((id, kind, target)) = open {
        return Err(StoreError::Busy {
            operation: parse("read an operation", &id)?,
            kind,
            target,
        });
    }
    sqlx::query("INSERT INTO operations (id, kind, target, object, status, created_at) VALUES (?, ?, ?, ?, 'running', ?)")
        .bind(new.id.as_str())
        .bind(&new.kind)
        .bind(&new.target)
        .bind(&new.object)
        .bind(new.at.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed("begin an operation"))?;
    drop_old(tx).await
}

async fn drop_old(tx: &mut Tx) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM operations WHERE status <> 'running' AND id NOT IN
             (SELECT id FROM operations ORDER BY created_at DESC LIMIT ?)",
    )
    .bind(KEPT)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(failed("drop old operations"))
}

/// Writes an event behind the others of its operation; its number.
async fn append(tx: &mut Tx, id: &OperationId, event: &OperationEvent) -> Result<u32, StoreError> {
    let (seq,): (u32,) = sqlx::query_as(
        "SELECT coalesce(max(seq), 0) + 1 FROM operation_events WHERE operation = ?",
    )
    .bind(id.as_str())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed("number an event"))?;
    let event = OperationEvent {
        seq,
        ..event.clone()
    };
    sqlx::query("INSERT INTO operation_events (operation, seq, event) VALUES (?, ?, ?)")
        .bind(id.as_str())
        .bind(seq)
        .bind(to_json(&event)?)
        .execute(&mut **tx)
        .await
        .map_err(failed("write an event"))?;
    Ok(seq)
}

/// Ends what is under way for the object, because something else is wanted.
pub(crate) async fn supersede(tx: &mut Tx, by: &NewOperation) -> Result<(), StoreError> {
    let failure = Failure {
        step: "superseded".into(),
        cause: format!("{} of {} was asked for meanwhile", by.kind, by.target),
        next: format!("proximity operation watch {}", by.id),
        console_tail: vec![],
    };
    sqlx::query("UPDATE operations SET status = 'failed', failure = ?, finished_at = ? WHERE object = ? AND status = 'running'")
        .bind(to_json(&failure)?)
        .bind(by.at.to_string())
        .bind(&by.object)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(failed("supersede an operation"))
}

/// Ends what is under way for an object that is gone: whatever was asked of it, this is its end.
pub(crate) async fn end_with_object(
    tx: &mut Tx,
    object: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE operations SET status = 'succeeded', finished_at = ? WHERE object = ? AND status = 'running'")
        .bind(at.to_string())
        .bind(object)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(failed("end an operation"))
}

fn operation(row: &SqliteRow) -> Result<Operation, StoreError> {
    let text = |column: &'static str| {
        row.try_get::<String, _>(column)
            .map_err(failed("read an operation"))
    };
    let maybe = |column: &'static str| {
        row.try_get::<Option<String>, _>(column)
            .map_err(failed("read an operation"))
    };
    Ok(Operation {
        id: parse("read an operation", &text("id")?)?,
        kind: text("kind")?,
        target: text("target")?,
        status: from_word(&text("status")?)?,
        events: vec![],
        failure: maybe("failure")?.map(|f| from_json(&f)).transpose()?,
        created_at: text("created_at")?,
        finished_at: maybe("finished_at")?,
    })
}

impl SqliteStore {
    pub(crate) async fn insert_event(
        &self,
        id: &OperationId,
        event: &OperationEvent,
    ) -> Result<u32, StoreError> {
        let mut tx = crate::begin(&self.events).await?;
        let seq = append(&mut tx, id, event).await?;
        tx.commit().await.map_err(failed("write an event"))?;
        Ok(seq)
    }

    pub(crate) async fn insert_note(
        &self,
        new: &NewOperation,
        event: &OperationEvent,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "INSERT INTO operations (id, kind, target, object, status, created_at, finished_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT (id) DO NOTHING",
        )
        .bind(new.id.as_str())
        .bind(&new.kind)
        .bind(&new.target)
        .bind(&new.object)
        .bind(word(&OperationStatus::Succeeded)?)
        .bind(new.at.to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed("write a note"))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        append(&mut tx, &new.id, event).await?;
        drop_old(&mut tx).await?;
        tx.commit().await.map_err(failed("write a note"))?;
        Ok(true)
    }

    pub(crate) async fn end_operation(
        &self,
        id: &OperationId,
        status: OperationStatus,
        failure: Option<&Failure>,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE operations SET status = ?, failure = ?, finished_at = ? WHERE id = ? AND status = 'running'")
            .bind(word(&status)?)
            .bind(failure.map(to_json).transpose()?)
            .bind(at.to_string())
            .bind(id.as_str())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("end an operation"))
    }

    pub(crate) async fn running_operation(
        &self,
        object: &str,
    ) -> Result<Option<Operation>, StoreError> {
        let row = sqlx::query("SELECT * FROM operations WHERE object = ? AND status = 'running'")
            .bind(object)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("look for open operations"))?;
        row.as_ref().map(operation).transpose()
    }

    pub(crate) async fn one_operation(
        &self,
        id: &OperationId,
        after: u32,
    ) -> Result<Option<Operation>, StoreError> {
        // The row first, then the events: an operation read as ended has all its events.
        let row = sqlx::query("SELECT * FROM operations WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read an operation"))?;
        let Some(mut found) = row.as_ref().map(operation).transpose()? else {
            return Ok(None);
        };
        let events: Vec<(String,)> = sqlx::query_as(
            "SELECT event FROM operation_events WHERE operation = ? AND seq > ? ORDER BY seq",
        )
        .bind(id.as_str())
        .bind(after)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read an operation's events"))?;
        found.events = events
            .iter()
            .map(|(json,)| from_json(json))
            .collect::<Result<_, _>>()?;
        Ok(Some(found))
    }

    pub(crate) async fn newest_operations(&self, limit: u32) -> Result<Vec<Operation>, StoreError> {
        let rows = sqlx::query("SELECT * FROM operations ORDER BY created_at DESC, id LIMIT ?")
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list operations"))?;
        rows.iter().map(operation).collect()
    }
}
