//! `proximity-agent`: the part of Proximity that runs inside guests, on the appliance and on nodes.
//!
//! The library holds what the binary's subcommands do, so that tests can run it without processes.
//! [`guest`] is the daemon in a guest. [`relay`] is the daemon on the appliance, [`gateway`] is what it
//! does to the appliance, and [`client`] is how the controller talks to it from inside. Both daemons
//! know callers by [`trust`] and take them in by [`door`]. Nothing here knows which backend the
//! machine around it belongs to.

pub mod account;
pub mod answer;
pub mod attach;
pub mod client;
pub mod dns_message;
pub mod door;
pub mod durable;
pub mod exec;
pub mod files;
pub mod forward;
pub mod gateway;
pub mod guest;
pub mod init;
pub mod log;
pub mod probe;
pub mod relay;
pub mod trust;
pub mod upgrade;

/// The version of this agent as it reports it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
