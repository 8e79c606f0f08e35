//! Rows of what people added to zones' gateways.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use api::{HostName, InstanceName, ZoneName};
use async_trait::async_trait;
use engine::gateway::entry::{Entry, EntryStore};
use engine::instance::InstanceDesired;
use engine::store::StoreError;
use engine::zone::{Wan, ZoneDesired, ZoneRecord};
use sqlx::{Sqlite, Transaction};

use crate::{SqliteStore, failed, from_json, to_json, word};

type Tx = Transaction<'static, Sqlite>;

/// More texts than this beside those that are there are forgotten.
const MOST_FORMER: usize = 256;

/// What rows were read as, by their text: most of them are the same the next time, and understanding them takes longer
/// than reading them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<Mutex<HashMap<ZoneName, HashMap<String, Entry>>>>);

impl Known {
    /// The entries of rows, one a line.
    fn entries(&self, zone: &ZoneName, rows: &str) -> Result<Vec<Entry>, StoreError> {
        let mut zones = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = zones.entry(zone.clone()).or_default();
        let mut entries = Vec::new();
        for row in rows.lines() {
            let entry = match known.get(row) {
                Some(entry) => entry.clone(),
                None => {
                    let entry: Entry = from_json(row)?;
                    known.insert(row.to_owned(), entry.clone());
                    entry
                }
            };
            entries.push(entry);
        }
        if known.len() > entries.len().saturating_add(MOST_FORMER) {
            let there: HashSet<&str> = rows.lines().collect();
            known.retain(|row, _| there.contains(row.as_str()));
        }
        Ok(entries)
    }
}

#[async_trait]
impl EntryStore for SqliteStore {
    async fn entries(&self, zone: &ZoneName) -> Result<Vec<Entry>, StoreError> {
        // As one row: each row goes from the database's thread to this one by itself, which for a thousand takes longer
        // than all the rest. A row is one line, since JSON has no raw newlines.
        let (rows,): (Option<String>,) = sqlx::query_as(
            "SELECT group_concat(entry, char(10) ORDER BY key) FROM gateway_entries WHERE zone = ?",
        )
        .bind(zone.as_str())
        .fetch_one(&self.pool)
        .await
        .map_err(failed("list the gateway's entries"))?;
        self.known.entries(zone, &rows.unwrap_or_default())
    }

    async fn entry(&self, zone: &ZoneName, key: &str) -> Result<Option<Entry>, StoreError> {
        let row: Option<(String,)> =
            sqlx::query_as("SELECT entry FROM gateway_entries WHERE zone = ? AND key = ?")
                .bind(zone.as_str())
                .bind(key)
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("read an entry of the gateway"))?;
        row.map(|(json,)| from_json(&json)).transpose()
    }

    async fn put_entry(
        &self,
        zone: &ZoneName,
        entry: &Entry,
        replace: bool,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        require_zone(&mut tx, zone).await?;
        require_instance(&mut tx, zone, entry).await?;
        require_free_name(&mut tx, zone, entry).await?;
        require_free_address(&mut tx, zone, entry).await?;
        require_free_port(&mut tx, zone, entry).await?;
        let there: Option<(String,)> =
            sqlx::query_as("SELECT entry FROM gateway_entries WHERE zone = ? AND key = ?")
                .bind(zone.as_str())
                .bind(entry.key())
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed("read an entry of the gateway"))?;
        let new = there.is_none();
        if let Some((json,)) = there {
            let there: Entry = from_json(&json)?;
            if there == *entry {
                return Ok(false);
            }
            if !replace {
                return Err(taken(entry.key(), "itself, with other settings"));
            }
        }
        sqlx::query(
            "INSERT INTO gateway_entries (zone, key, instance, name, address, entry) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (zone, key) DO UPDATE SET instance = excluded.instance, name = excluded.name,
                 address = excluded.address, entry = excluded.entry",
        )
        .bind(zone.as_str())
        .bind(entry.key())
        .bind(entry.instance().map(|id| id.as_str()))
        .bind(entry.name().map(|name| name.as_str()))
        .bind(entry.address().map(|address| address.to_string()))
        .bind(to_json(entry)?)
        .execute(&mut *tx)
        .await
        .map_err(failed("write an entry of the gateway"))?;
        tx.commit()
            .await
            .map_err(failed("write an entry of the gateway"))?;
        Ok(new)
    }

    async fn remove_entry(&self, zone: &ZoneName, key: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM gateway_entries WHERE zone = ? AND key = ?")
            .bind(zone.as_str())
            .bind(key)
            .execute(&self.pool)
            .await
            .map_err(failed("remove an entry of the gateway"))?;
        Ok(done.rows_affected() > 0)
    }
}

/// Refuses a new instance whose name in its zone's domain belongs to an entry.
pub(crate) async fn refuse_taken_name(
    tx: &mut Tx,
    zone: &ZoneName,
    name: &InstanceName,
) -> Result<(), StoreError> {
    let record = zone_record(tx, zone).await?;
    let Some(record) = record else {
        return Ok(());
    };
    let host = HostName::in_domain(name, &record.spec.domain);
    match entry_named(tx, zone, &host).await? {
        Some(key) => Err(taken(format!("the name {host}"), &key)),
        None => Ok(()),
    }
}

/// Addresses that entries keep, which no new instance gets.
pub(crate) async fn kept_addresses(
    tx: &mut Tx,
    zone: &ZoneName,
) -> Result<Vec<(String,)>, StoreError> {
    sqlx::query_as("SELECT address FROM gateway_entries WHERE zone = ? AND address IS NOT NULL")
        .bind(zone.as_str())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed("list reserved addresses"))
}

fn taken(what: impl Into<String>, by: &str) -> StoreError {
    StoreError::Taken {
        what: what.into(),
        by: by.to_owned(),
    }
}

async fn zone_record(tx: &mut Tx, zone: &ZoneName) -> Result<Option<ZoneRecord>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as("SELECT record FROM zones WHERE name = ?")
        .bind(zone.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("read a zone"))?;
    row.map(|(json,)| from_json(&json)).transpose()
}

async fn require_zone(tx: &mut Tx, zone: &ZoneName) -> Result<(), StoreError> {
    match zone_record(tx, zone).await? {
        Some(record) if record.desired == ZoneDesired::Up => Ok(()),
        _ => Err(StoreError::ZoneDown(zone.clone())),
    }
}

async fn require_instance(tx: &mut Tx, zone: &ZoneName, entry: &Entry) -> Result<(), StoreError> {
    let Some(id) = entry.instance() else {
        return Ok(());
    };
    let found: Option<(String,)> =
        sqlx::query_as("SELECT id FROM instances WHERE id = ? AND zone = ? AND desired <> ?")
            .bind(id.as_str())
            .bind(zone.as_str())
            .bind(word(&InstanceDesired::Deleted)?)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed("read an instance"))?;
    match found {
        Some(_) => Ok(()),
        None => Err(StoreError::Missing(format!("instance {id} any more"))),
    }
}

async fn entry_named(
    tx: &mut Tx,
    zone: &ZoneName,
    name: &HostName,
) -> Result<Option<String>, StoreError> {
    let row: Option<(String,)> =
        sqlx::query_as("SELECT key FROM gateway_entries WHERE zone = ? AND name = ?")
            .bind(zone.as_str())
            .bind(name.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed("look for a name"))?;
    Ok(row.map(|(key,)| key))
}

/// An app's own name is free for a route to that app, which takes the place of the built-in one.
async fn require_free_name(tx: &mut Tx, zone: &ZoneName, entry: &Entry) -> Result<(), StoreError> {
    let Some(name) = entry.name() else {
        return Ok(());
    };
    if let Some(key) = entry_named(tx, zone, name).await?
        && key != entry.key()
    {
        return Err(taken(format!("the name {name}"), &key));
    }
    let Some(record) = zone_record(tx, zone).await? else {
        return Ok(());
    };
    let label = name.as_str().strip_suffix(record.spec.domain.as_str());
    let Some(label) = label.and_then(|rest| rest.strip_suffix('.')) else {
        return Ok(());
    };
    let owner: Option<(String,)> =
        sqlx::query_as("SELECT id FROM instances WHERE zone = ? AND name = ?")
            .bind(zone.as_str())
            .bind(label)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed("look for a name"))?;
    match owner {
        Some((id,)) => match entry {
            Entry::Route(route) if route.instance.as_str() == id => Ok(()),
            _ => Err(taken(
                format!("the name {name}"),
                &format!("instance {label}"),
            )),
        },
        None => Ok(()),
    }
}

async fn require_free_address(
    tx: &mut Tx,
    zone: &ZoneName,
    entry: &Entry,
) -> Result<(), StoreError> {
    let Some(address) = entry.address() else {
        return Ok(());
    };
    let holder = holder_of(tx, zone, address, &entry.key()).await?;
    match holder {
        Some(by) => Err(taken(format!("the address {address}"), &by)),
        None => Ok(()),
    }
}

/// Zones with a managed WAN open their published ports on their node, where each port leads to one of them.
async fn require_free_port(tx: &mut Tx, zone: &ZoneName, entry: &Entry) -> Result<(), StoreError> {
    let Entry::Port(port) = entry else {
        return Ok(());
    };
    let managed = |z: &ZoneRecord| matches!(z.spec.wan, Wan::Managed { .. });
    let Some(own) = zone_record(tx, zone).await?.filter(managed) else {
        return Ok(());
    };
    let others: Vec<(String,)> = sqlx::query_as(
        "SELECT record FROM zones WHERE name IN (SELECT zone FROM gateway_entries WHERE key = ?1 AND zone <> ?2)",
    )
    .bind(entry.key())
    .bind(zone.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(failed("look for a published port"))?;
    for (json,) in others {
        let other: ZoneRecord = from_json(&json)?;
        if managed(&other) && other.spec.node == own.spec.node {
            let what = format!("{} port {} of the node", port.protocol, port.listen);
            return Err(taken(what, &format!("zone {}", other.spec.name)));
        }
    }
    Ok(())
}

async fn holder_of(
    tx: &mut Tx,
    zone: &ZoneName,
    address: Ipv4Addr,
    except: &str,
) -> Result<Option<String>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as(
        "SELECT 'instance ' || name FROM instances WHERE zone = ?1 AND address = ?2
         UNION ALL SELECT key FROM gateway_entries WHERE zone = ?1 AND address = ?2 AND key <> ?3",
    )
    .bind(zone.as_str())
    .bind(address.to_string())
    .bind(except)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("look for an address"))?;
    Ok(row.map(|(holder,)| holder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::gateway::entry::RouteEntry;

    #[test]
    fn rows_are_read_as_they_are_now_and_former_ones_are_forgotten() {
        let row = |host: u16, port: u16| {
            let route = RouteEntry {
                host: format!("r{host}.prox.local").parse().unwrap(),
                instance: api::InstanceId::from_bytes([1; 8]),
                port,
                policy: Default::default(),
            };
            to_json(&Entry::Route(route)).unwrap()
        };
        let (known, zone) = (Known::default(), "default".parse().unwrap());
        let ports = |rows: &[String]| -> Vec<u16> {
            let entries = known.entries(&zone, &rows.join("\n")).unwrap();
            let port = |entry: &Entry| match entry {
                Entry::Route(route) => route.port,
                other => panic!("{other:?}"),
            };
            entries.iter().map(port).collect()
        };
        assert_eq!(ports(&[]), [0; 0]);
        assert_eq!(ports(&[row(1, 80), row(2, 80)]), [80, 80]);
        assert_eq!(ports(&[row(1, 81), row(2, 80)]), [81, 80]);
        for port in 1..1000 {
            assert_eq!(ports(&[row(1, port)]), [port]);
        }
        let kept = known.0.lock().unwrap()[&zone].len();
        assert!(kept <= MOST_FORMER + 2, "{kept}");
        assert!(known.entries(&zone, "{").is_err());
    }
}
