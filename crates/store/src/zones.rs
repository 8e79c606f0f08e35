//! Rows of zones.

use api::ZoneName;
use engine::store::{Lease, NewOperation, StoreError};
use engine::zone::{ZoneDesired, ZoneRecord};
use jiff::Timestamp;

use crate::{SqliteStore, failed, from_json, operations, parse, to_json};

impl SqliteStore {
    pub(crate) async fn all_zones(&self) -> Result<Vec<ZoneRecord>, StoreError> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT record FROM zones ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list zones"))?;
        rows.iter().map(|(json,)| from_json(json)).collect()
    }

    pub(crate) async fn one_zone(&self, name: &ZoneName) -> Result<Option<ZoneRecord>, StoreError> {
        let row: Option<(String,)> = sqlx::query_as("SELECT record FROM zones WHERE name = ?")
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read a zone"))?;
        row.map(|(json,)| from_json(&json)).transpose()
    }

    pub(crate) async fn write_zone(
        &self,
        zone: &ZoneRecord,
        operation: &NewOperation,
        with_instances: bool,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        if zone.desired == ZoneDesired::Down && !with_instances {
            let rows: Vec<(String,)> =
                sqlx::query_as("SELECT name FROM instances WHERE zone = ? ORDER BY name")
                    .bind(zone.spec.name.as_str())
                    .fetch_all(&mut *tx)
                    .await
                    .map_err(failed("list a zone's instances"))?;
            if !rows.is_empty() {
                let names = rows
                    .iter()
                    .map(|(n,)| parse("read an instance", n))
                    .collect::<Result<_, _>>()?;
                return Err(StoreError::HasInstances {
                    zone: zone.spec.name.clone(),
                    names,
                });
            }
        }
        operations::insert(&mut tx, operation).await?;
        sqlx::query("INSERT INTO zones (name, record) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record")
            .bind(zone.spec.name.as_str())
            .bind(to_json(zone)?)
            .execute(&mut *tx)
            .await
            .map_err(failed("write a zone"))?;
        tx.commit().await.map_err(failed("write a zone"))
    }

    pub(crate) async fn mark_zone(&self, name: &ZoneName, settled: bool) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE zones SET record = json_set(record, '$.settled', json(?)) WHERE name = ?",
        )
        .bind(if settled { "true" } else { "false" })
        .bind(name.as_str())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("mark a zone"))
    }

    pub(crate) async fn zone_leases(&self, name: &ZoneName) -> Result<Vec<Lease>, StoreError> {
        let row: Option<(String,)> = sqlx::query_as("SELECT leases FROM leases WHERE zone = ?")
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read leases"))?;
        Ok(row
            .map(|(json,)| from_json(&json))
            .transpose()?
            .unwrap_or_default())
    }

    pub(crate) async fn write_leases(
        &self,
        name: &ZoneName,
        leases: &[Lease],
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO leases (zone, leases) SELECT name, ?2 FROM zones WHERE name = ?1
             ON CONFLICT (zone) DO UPDATE SET leases = excluded.leases",
        )
        .bind(name.as_str())
        .bind(to_json(&leases)?)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("remember leases"))
    }

    pub(crate) async fn delete_zone(
        &self,
        name: &ZoneName,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let gone = sqlx::query(
            "DELETE FROM zones WHERE name = ? AND json_extract(record, '$.desired') = 'down'",
        )
        .bind(name.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed("forget a zone"))?
        .rows_affected()
            > 0;
        if gone {
            sqlx::query("DELETE FROM freed_addresses WHERE zone = ?")
                .bind(name.as_str())
                .execute(&mut *tx)
                .await
                .map_err(failed("forget a zone"))?;
            operations::end_with_object(&mut tx, name.as_str(), at).await?;
        }
        tx.commit().await.map_err(failed("forget a zone"))?;
        Ok(gone)
    }
}
