//! What goes over the queue from the handles in `log` to the thread in `writer`.

use serde_json::Value;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::head::Head;
use crate::record::{Subject, Verdict};

/// Who waits for a record to be on disk.
pub(crate) type Reply = oneshot::Sender<Result<Head, Error>>;

/// Everything that the writer can be asked; names and details are redacted and bounded already.
pub(crate) enum Command {
    /// Write an intent.
    Intent {
        id: String,
        subject: Subject,
        detail: Value,
        reply: Reply,
    },
    /// Write the outcome of an open intent.
    Finish {
        id: String,
        closing: Closing,
        reply: Option<Reply>,
    },
    /// Write a refused action.
    Refused {
        id: String,
        subject: Subject,
        detail: Value,
        reply: Reply,
    },
    /// Write what came before, then end.
    Close { reply: oneshot::Sender<()> },
}

/// The outcome's part of a record.
pub(crate) struct Closing {
    pub verdict: Verdict,
    pub exit_code: Option<i32>,
    pub duration_ms: Option<u64>,
    pub channel: Option<String>,
    pub target: Option<String>,
    pub detail: Value,
}
