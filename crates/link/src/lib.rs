//! The controller's end of the way into guests: who guests and relays are (certificates), what may be
//! asked of them (tokens), and connections to them through their zone's relay.
//!
//! ```text
//!  Link ── pool ── TLS to the guest ── tunnel through the relay (relay) ── TCP to the appliance
//!    │                │
//!    └ token          └ identity: the guests' authority, the instance's id as the name
//! ```
//! Every peer is taken for hostile: what it sends is bounded in size and time, and what it says about
//! itself counts for itself only. Nothing is sent twice when it may have been carried out the first
//! time; see [`LinkError::may_have_run`].

mod call;
mod connection;
mod error;
mod exec;
mod files;
mod forward;
mod gateway;
pub mod identity;
mod key_file;
mod link;
mod pool;
pub mod relay;
mod session;
mod straight;
pub mod token;

pub use error::LinkError;
pub use files::{Download, FilePart, FileParts, Upload, Written};
pub use forward::Duplex;
pub use identity::{Authority, IdentityError, Kind, bundle_is_due};
pub use link::{Link, Locate, Peer};
pub use session::{AgentSession, SessionInput, SessionOutput};
pub use straight::{StraightDownload, StraightUpload};
