//! A log in a directory of its own, with a clock that counts.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use audit::{Entry, Error, Filter, Log, Options, Outcome, Record};
use jiff::Timestamp;
use tempfile::TempDir;

/// A directory with the path of a log in it.
pub struct Place {
    pub dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    pub fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    pub fn records(&self) -> Vec<Record> {
        audit::records(self.path(), Filter::default())
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    pub async fn open(&self) -> Result<Log, Error> {
        Log::open(self.path(), ticking()).await
    }

    /// A log with `pairs` finished intents in it, closed again.
    pub async fn filled(pairs: u64) -> Self {
        let place = Self::new();
        let log = place.open().await.unwrap();
        for n in 0..pairs {
            let intent = log.intent(exec(&format!("app{n}"))).await.unwrap();
            intent.finish(Outcome::exited(0)).await.unwrap();
        }
        log.close().await;
        place
    }
}

/// One second a record, from 2026-01-02T03:04:05.000006Z on.
pub fn ticking() -> Options {
    let seconds = AtomicI64::new(0);
    let begin: Timestamp = "2026-01-02T03:04:05.000006Z".parse().unwrap();
    Options {
        clock: Arc::new(move || {
            begin + jiff::SignedDuration::from_secs(seconds.fetch_add(1, Ordering::Relaxed))
        }),
        ..Options::default()
    }
}

pub fn exec(target: &str) -> Entry {
    Entry::new("alice", "instance.exec", target)
        .channel("agent")
        .detail(serde_json::json!({"argv": ["id", "-u"]}))
}

pub fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}
