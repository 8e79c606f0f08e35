//! `proximity-agent`: the part of Proximity that runs inside guests, on the appliance and on nodes.
//!
//! The library holds what the binary's subcommands do, so that tests can run it without processes.
//! [`relay`] is the daemon on the appliance, [`gateway`] is what it does to the appliance, and
//! [`client`] is how the controller talks to it from inside. Nothing here knows which backend the
//! machine around it belongs to.

pub mod attach;
pub mod client;
pub mod durable;
pub mod files;
pub mod forward;
pub mod gateway;
pub mod log;
pub mod probe;
pub mod relay;

/// The version of this agent as it reports it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
