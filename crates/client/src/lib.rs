//! The typed client of the controller's REST API (`/api/v1`).
//!
//! One [`Client`] speaks to one controller, over its unix socket or over HTTP. Every call has a
//! deadline and every answer a size limit; [`OperationWatch`] follows an operation to its end and
//! comes back by itself after a lost connection. Sessions, files and tunnels have connections of their
//! own and take as long as they take. A failure is one of those of [`Error`].
//!
//! Never retries a request that may have been carried out, never follows a redirect, never prints
//! the token, and sends it in plain text to this machine only.

mod calls;
mod connection;
mod egress;
mod endpoint;
mod entries;
mod error;
mod events;
mod exec;
mod files;
mod forward;
mod orphans;
mod sandboxes;
mod session;
mod sse;
mod straight;
mod stream;

pub use calls::Change;
pub use connection::Client;
pub use endpoint::{Endpoint, InvalidEndpoint, Secret};
pub use error::Error;
pub use events::{OperationWatch, Patience, Watched};
pub use exec::{STDIN_LIMIT, bytes_of, encoded};
pub use files::{Download, Sha256, Target, UploadPiece, Written};
pub use session::{SessionEvent, SessionInput, SessionOutput};
pub use straight::{Cut, Opened, StraightDownload, StraightUpload};
pub use stream::Tunnel;
