//! Rows of API tokens and idempotency keys.

use engine::store::{IdempotencyKey, KeyClaim, StoreError};
use jiff::{SignedDuration, Timestamp};

use crate::{SqliteStore, failed};

/// How long an idempotency key is remembered.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

impl SqliteStore {
    pub(crate) async fn insert_token(
        &self,
        name: &str,
        role: &str,
        hash: &[u8; 32],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // A new token of a name ends the old one: that is how a leaked one is revoked.
        sqlx::query("DELETE FROM tokens WHERE name = ? AND hash <> ?")
            .bind(name)
            .bind(hash.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(failed("revoke a token"))?;
        sqlx::query("INSERT INTO tokens (hash, name, role, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING")
            .bind(hash.as_slice())
            .bind(name)
            .bind(role)
            .bind(at.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed("write a token"))?;
        tx.commit().await.map_err(failed("write a token"))
    }

    pub(crate) async fn find_token(
        &self,
        hash: &[u8; 32],
    ) -> Result<Option<(String, String)>, StoreError> {
        sqlx::query_as("SELECT name, role FROM tokens WHERE hash = ?")
            .bind(hash.as_slice())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("look for a token"))
    }

    pub(crate) async fn take_key(
        &self,
        key: &IdempotencyKey,
        at: Timestamp,
    ) -> Result<KeyClaim, StoreError> {
        let mut tx = self.begin().await?;
        let horizon = at.saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
        sqlx::query("DELETE FROM idempotency_keys WHERE created_at < ?")
            .bind(horizon.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed("drop old idempotency keys"))?;
        let row: Option<(Vec<u8>, Option<u16>, Option<String>)> = sqlx::query_as(
            "SELECT request, status, body FROM idempotency_keys WHERE token = ? AND key = ?",
        )
        .bind(&key.token)
        .bind(&key.key)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("look for an idempotency key"))?;
        let claim = match row {
            Some((request, _, _)) if request != key.request => KeyClaim::Mismatch,
            Some((_, Some(status), body)) => KeyClaim::Answered(status, body.unwrap_or_default()),
            Some(_) => KeyClaim::InFlight,
            None => {
                sqlx::query("INSERT INTO idempotency_keys (token, key, request, created_at) VALUES (?, ?, ?, ?)")
                    .bind(&key.token)
                    .bind(&key.key)
                    .bind(key.request.as_slice())
                    .bind(at.to_string())
                    .execute(&mut *tx)
                    .await
                    .map_err(failed("claim an idempotency key"))?;
                KeyClaim::New
            }
        };
        tx.commit()
            .await
            .map_err(failed("claim an idempotency key"))?;
        Ok(claim)
    }

    pub(crate) async fn answer_key(
        &self,
        key: &IdempotencyKey,
        answer: Option<(u16, String)>,
    ) -> Result<(), StoreError> {
        let query = match &answer {
            Some(_) => {
                "UPDATE idempotency_keys SET status = ?3, body = ?4 WHERE token = ?1 AND key = ?2"
            }
            None => {
                "DELETE FROM idempotency_keys WHERE token = ?1 AND key = ?2 AND ?3 IS NULL AND ?4 IS NULL"
            }
        };
        let (status, body) = answer.unzip();
        sqlx::query(query)
            .bind(&key.token)
            .bind(&key.key)
            .bind(status)
            .bind(body)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("settle an idempotency key"))
    }

    pub(crate) async fn answer_open_keys(
        &self,
        (status, body): (u16, String),
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE idempotency_keys SET status = ?, body = ? WHERE status IS NULL")
            .bind(status)
            .bind(body)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("settle idempotency keys"))
    }
}
