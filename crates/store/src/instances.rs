//! Rows of instances and the addresses they hold.

use std::net::Ipv4Addr;

use api::egress::Egress;
use api::{InstanceId, InstanceName};
use engine::address::{Freed, choose};
use engine::instance::{InstanceDesired, InstanceRecord};
use engine::store::{NewOperation, StoreError};
use engine::zone::{ZoneDesired, ZoneRecord};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::{SqliteStore, entries, failed, from_json, from_word, operations, parse, to_json, word};

fn record(row: &SqliteRow) -> Result<InstanceRecord, StoreError> {
    let text = |column: &'static str| {
        row.try_get::<String, _>(column)
            .map_err(failed("read an instance"))
    };
    let flag = |column: &'static str| {
        row.try_get::<bool, _>(column)
            .map_err(failed("read an instance"))
    };
    let failure: Option<String> = row.try_get("failure").map_err(failed("read an instance"))?;
    Ok(InstanceRecord {
        id: parse("read an instance", &text("id")?)?,
        name: parse("read an instance", &text("name")?)?,
        zone: parse("read an instance", &text("zone")?)?,
        address: parse("read an instance", &text("address")?)?,
        spec: from_json(&text("spec")?)?,
        egress: from_json(&text("egress")?)?,
        desired: from_word(&text("desired")?)?,
        status: from_word(&text("status")?)?,
        published: flag("published")?,
        routed: flag("routed")?,
        restart: flag("restart")?,
        failure: failure.map(|f| from_json(&f)).transpose()?,
        created_at: parse("read an instance", &text("created_at")?)?,
        expires_at: row
            .try_get::<Option<String>, _>("expires_at")
            .map_err(failed("read an instance"))?
            .map(|t| parse("read an instance", &t))
            .transpose()?,
    })
}

impl SqliteStore {
    pub(crate) async fn all_instances(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM instances ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list instances"))?;
        rows.iter().map(record).collect()
    }

    pub(crate) async fn instance_by(
        &self,
        column: &'static str,
        value: &str,
    ) -> Result<Option<InstanceRecord>, StoreError> {
        let query = match column {
            "id" => "SELECT * FROM instances WHERE id = ?",
            _ => "SELECT * FROM instances WHERE name = ?",
        };
        let row = sqlx::query(query)
            .bind(value)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read an instance"))?;
        row.as_ref().map(record).transpose()
    }

    pub(crate) async fn instance_and_zone(
        &self,
        name: &InstanceName,
    ) -> Result<Option<(InstanceRecord, ZoneRecord)>, StoreError> {
        let row = sqlx::query(
            "SELECT instances.*, zones.record AS zone_record
             FROM instances JOIN zones ON zones.name = instances.zone WHERE instances.name = ?",
        )
        .bind(name.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("read an instance"))?;
        let Some(row) = row else {
            return Ok(None);
        };
        let zone: String = row
            .try_get("zone_record")
            .map_err(failed("read an instance"))?;
        Ok(Some((record(&row)?, from_json(&zone)?)))
    }

    pub(crate) async fn insert_instance(
        &self,
        new: &InstanceRecord,
        range: (Ipv4Addr, Ipv4Addr),
        operation: &NewOperation,
    ) -> Result<InstanceRecord, StoreError> {
        let mut tx = self.begin().await?;
        let taken: Option<(String,)> = sqlx::query_as("SELECT id FROM instances WHERE name = ?")
            .bind(new.name.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("reserve a name"))?;
        if taken.is_some() {
            return Err(StoreError::NameTaken(new.name.clone()));
        }
        require_zone_up(&mut tx, &new.zone).await?;
        entries::refuse_taken_name(&mut tx, &new.zone, &new.name).await?;
        let address = reserve_address(&mut tx, new, range, operation.at).await?;
        let record = InstanceRecord {
            address,
            ..new.clone()
        };
        sqlx::query(
            "INSERT INTO instances (id, name, zone, address, spec, desired, status, published, routed, restart, failure, created_at, expires_at, egress)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(record.id.as_str())
        .bind(record.name.as_str())
        .bind(record.zone.as_str())
        .bind(record.address.to_string())
        .bind(to_json(&record.spec)?)
        .bind(word(&record.desired)?)
        .bind(word(&record.status)?)
        .bind(record.published)
        .bind(record.routed)
        .bind(record.restart)
        .bind(record.failure.as_ref().map(to_json).transpose()?)
        .bind(record.created_at.to_string())
        .bind(record.expires_at.map(|t| t.to_string()))
        .bind(to_json(&record.egress)?)
        .execute(&mut *tx)
        .await
        .map_err(failed("write an instance"))?;
        operations::insert(&mut tx, operation).await?;
        tx.commit().await.map_err(failed("write an instance"))?;
        Ok(record)
    }

    pub(crate) async fn change_instance(
        &self,
        record: &InstanceRecord,
        operation: &NewOperation,
        supersede: bool,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        if supersede {
            operations::supersede(&mut tx, operation).await?;
        }
        operations::insert(&mut tx, operation).await?;
        write_desire(&mut tx, record).await?;
        tx.commit().await.map_err(failed("change an instance"))
    }

    pub(crate) async fn expire_instance(
        &self,
        record: &InstanceRecord,
        operation: &NewOperation,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        // In one transaction: whoever moved the end before this was told that it holds.
        let due: Option<(String,)> = sqlx::query_as(
            "SELECT id FROM instances WHERE id = ? AND expires_at = ? AND desired <> ?",
        )
        .bind(record.id.as_str())
        .bind(record.expires_at.map(|t| t.to_string()))
        .bind(word(&InstanceDesired::Deleted)?)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("look whether a life is over"))?;
        if due.is_none() {
            return Ok(false);
        }
        operations::supersede(&mut tx, operation).await?;
        operations::insert(&mut tx, operation).await?;
        write_desire(&mut tx, record).await?;
        tx.commit()
            .await
            .map_err(failed("end an instance's life"))?;
        Ok(true)
    }

    pub(crate) async fn update_progress(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        // `published` and `routed` say what is or may be in the gateway, whoever wants what by now;
        // status, restart and failure belong to the desire that this progress was made for.
        let desired = word(&record.desired)?;
        sqlx::query(
            "UPDATE instances SET published = ?1, routed = ?2,
                 status  = CASE WHEN desired = ?3 THEN ?4 ELSE status END,
                 restart = CASE WHEN desired = ?3 THEN ?5 ELSE restart END,
                 failure = CASE WHEN desired = ?3 THEN ?6 ELSE failure END
             WHERE id = ?7",
        )
        .bind(record.published)
        .bind(record.routed)
        .bind(desired)
        .bind(word(&record.status)?)
        .bind(record.restart)
        .bind(record.failure.as_ref().map(to_json).transpose()?)
        .bind(record.id.as_str())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("save an instance's progress"))
    }

    pub(crate) async fn update_expiry(
        &self,
        id: &InstanceId,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE instances SET expires_at = ? WHERE id = ? AND desired <> ?")
            .bind(at.to_string())
            .bind(id.as_str())
            .bind(word(&InstanceDesired::Deleted)?)
            .execute(&self.pool)
            .await
            .map_err(failed("extend an instance's life"))?;
        Ok(done.rows_affected() == 1)
    }

    pub(crate) async fn update_egress(
        &self,
        id: &InstanceId,
        egress: &Egress,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE instances SET egress = ? WHERE id = ? AND desired <> ?")
            .bind(to_json(egress)?)
            .bind(id.as_str())
            .bind(word(&InstanceDesired::Deleted)?)
            .execute(&self.pool)
            .await
            .map_err(failed("change an instance's egress policy"))?;
        Ok(done.rows_affected() == 1)
    }

    pub(crate) async fn delete_instance(
        &self,
        id: &InstanceId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        operations::end_with_object(&mut tx, id.as_str(), at).await?;
        sqlx::query(
            "INSERT INTO freed_addresses (zone, address, freed_at) SELECT zone, address, ? FROM instances WHERE id = ?
             ON CONFLICT (zone, address) DO UPDATE SET freed_at = excluded.freed_at",
        )
        .bind(at.to_string())
        .bind(id.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed("free an address"))?;
        sqlx::query("DELETE FROM instances WHERE id = ?")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed("forget an instance"))?;
        tx.commit().await.map_err(failed("forget an instance"))
    }
}

/// Writes what is wanted of an existing instance.
async fn write_desire(
    tx: &mut sqlx::Transaction<'static, sqlx::Sqlite>,
    record: &InstanceRecord,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE instances SET desired = ?, status = ?, restart = ?, failure = ? WHERE id = ?",
    )
    .bind(word(&record.desired)?)
    .bind(word(&record.status)?)
    .bind(record.restart)
    .bind(record.failure.as_ref().map(to_json).transpose()?)
    .bind(record.id.as_str())
    .execute(&mut **tx)
    .await
    .map_err(failed("change an instance"))?;
    match done.rows_affected() {
        0 => Err(StoreError::Missing(format!("instance {}", record.name))),
        _ => Ok(()),
    }
}

/// In the same transaction as the reservation: a zone that is on its way down takes nobody in.
async fn require_zone_up(
    tx: &mut sqlx::Transaction<'static, sqlx::Sqlite>,
    zone: &api::ZoneName,
) -> Result<(), StoreError> {
    let row: Option<(String,)> = sqlx::query_as("SELECT record FROM zones WHERE name = ?")
        .bind(zone.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("read a zone"))?;
    let record: Option<ZoneRecord> = row.map(|(json,)| from_json(&json)).transpose()?;
    match record {
        Some(record) if record.desired == ZoneDesired::Up => Ok(()),
        _ => Err(StoreError::ZoneDown(zone.clone())),
    }
}

async fn reserve_address(
    tx: &mut sqlx::Transaction<'static, sqlx::Sqlite>,
    new: &InstanceRecord,
    range: (Ipv4Addr, Ipv4Addr),
    now: Timestamp,
) -> Result<Ipv4Addr, StoreError> {
    let mut used: Vec<(String,)> = sqlx::query_as("SELECT address FROM instances WHERE zone = ?")
        .bind(new.zone.as_str())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("list addresses"))?;
    used.extend(entries::kept_addresses(tx, &new.zone).await?);
    let freed: Vec<(String, String)> =
        sqlx::query_as("SELECT address, freed_at FROM freed_addresses WHERE zone = ?")
            .bind(new.zone.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(failed("list freed addresses"))?;
    let used = used
        .iter()
        .map(|(a,)| parse("read an address", a))
        .collect::<Result<Vec<Ipv4Addr>, _>>()?;
    let freed = freed
        .iter()
        .map(|(a, t)| {
            Ok(Freed {
                address: parse("read an address", a)?,
                at: parse("read a time", t)?,
            })
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    choose(range, &used, &freed, now).ok_or_else(|| StoreError::NoAddress(new.zone.clone()))
}
