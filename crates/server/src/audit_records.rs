//! `/audit`: the end of the audit log, as it stands in the file. Says nothing of its chain; `proximity
//! audit verify` does, where the file is.

use ::audit::{Filter, Record};
use api::Problem;
use api::audit::{AuditRecord, AuditTail};
use axum::extract::State as Extract;
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::State;
use crate::answer::{Failed, Params};

/// How many records there are when nothing is said.
const USUAL: usize = 100;
/// The most records in one answer.
const MOST: usize = 1000;

pub(crate) fn routes() -> Router<State> {
    Router::new().route("/audit", get(list))
}

/// Which records.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Only about this instance or zone.
    target: Option<String>,
    /// Only at this time (RFC 3339) or later.
    since: Option<String>,
    /// Only before this time (RFC 3339).
    until: Option<String>,
    /// How many at most, counted from the newest; 100 when left out, at most 1000.
    limit: Option<usize>,
}

/// The last records of the audit log, the newest last.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(Asked), responses(
    (status = 200, body = AuditTail), (status = 400, body = Problem), (status = 500, body = Problem)))]
pub(crate) async fn list(
    Extract(state): Extract<State>,
    Params(asked): Params<Asked>,
) -> Result<Json<AuditTail>, Failed> {
    let limit = asked.limit.unwrap_or(USUAL);
    if !(1..=MOST).contains(&limit) {
        let detail = format!("limit: {limit} is out of range");
        return Err(Problem::new(400, "bad_query", detail)
            .hint(format!("1 to {MOST}"))
            .into());
    }
    let filter = Filter {
        target: asked.target,
        id: None,
        since: time("since", asked.since).map_err(|problem| *problem)?,
        until: time("until", asked.until).map_err(|problem| *problem)?,
    };
    let path = state.audit.path().to_owned();
    let read = tokio::task::spawn_blocking(move || ::audit::tail(path, &filter, limit)).await;
    let tail = match read {
        Ok(Ok(tail)) => tail,
        Ok(Err(e)) => return Err(unreadable(&e)),
        Err(e) => return Err(unreadable(&e)),
    };
    Ok(Json(AuditTail {
        records: tail.records.into_iter().map(shown).collect(),
        unreadable: tail.unreadable,
    }))
}

fn time(key: &str, text: Option<String>) -> Result<Option<Timestamp>, Box<Problem>> {
    let Some(text) = text else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let detail = format!("{key}: {text:?} is not a time");
        let problem = Problem::new(400, "bad_query", detail);
        Box::new(problem.hint("write it like 2026-01-02T03:04:05Z"))
    })
}

fn unreadable(e: &dyn std::fmt::Display) -> Failed {
    tracing::error!("the audit log can't be read: {e}");
    Problem::new(500, "audit_unreadable", e.to_string())
        .hint("look at it on the controller's machine: proximity audit verify")
        .into()
}

fn shown(record: Record) -> AuditRecord {
    AuditRecord {
        seq: record.seq,
        time: format!("{:.6}", record.time),
        id: record.id,
        actor: record.actor,
        action: record.action,
        target: record.target,
        channel: record.channel,
        detail: record.detail,
        outcome: record.outcome.as_str().into(),
        exit_code: record.exit_code,
        duration_ms: record.duration_ms,
        prev: record.prev.to_string(),
        hash: record.hash.to_string(),
    }
}
