//! Audit records as the API gives them.

use serde::{Deserialize, Serialize};

/// One record of the audit log. An action has two: its intent, and what became of it; both have the
/// same `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// Its number in the log; the first is 1.
    pub seq: u64,
    /// When it was written (RFC 3339, UTC).
    pub time: String,
    /// Joins an intent with its outcome.
    pub id: String,
    /// Who: `root`, `token:NAME`, `unidentified` where nobody was let in, or `proximity` itself.
    pub actor: String,
    /// What: `app.deploy`, `instance.exec`, `zone.up`, …
    pub action: String,
    /// To what: the name of an instance or a zone.
    pub target: String,
    /// By which channel, where a command ran.
    pub channel: Option<String>,
    /// The rest, without secrets.
    pub detail: serde_json::Value,
    /// `intent`, `ok`, `failed`, `refused`, `unknown`, or `note`.
    pub outcome: String,
    /// The exit code of a command that ran to its end.
    pub exit_code: Option<i32>,
    /// How long it took.
    pub duration_ms: Option<u64>,
    /// The hash of the record before.
    pub prev: String,
    /// The hash of this record.
    pub hash: String,
}

/// `GET /audit`: the end of the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditTail {
    /// The last matching records, the newest last.
    pub records: Vec<AuditRecord>,
    /// How many lines among those looked at are no records. If this is not 0, the log was damaged:
    /// `proximity audit verify`.
    pub unreadable: u64,
}
