//! Remote execution over SSH: on hosts of the configuration's `vms`, without a controller and without an agent on
//! the far side.
//!
//! ```text
//!   Remote ─▶ hosts      who may be used
//!     ├──▶ journal       what was asked, on disk, before anything is done
//!     ├──▶ pool          connections that are kept between commands, each with a warden on the far side
//!     ├──▶ connection    reached, key checked (trust, known_hosts), logged in (identity)
//!     ├──▶ running       one command: order ▸ marker ▸ output ▸ end; supervisor ends its tree on the far side
//!     ├──▶ keys          the key of each host: made, deployed, replaced, taken away
//!     ├──▶ terminal      a person's keys and what the program shows; tunnel: ports that lead through a host
//!     ├──▶ evidence      on request, what was done as files
//!     └──▶ transfer      files: beside the target, read a second time, then renamed
//! ```
//!
//! Promises: an unknown or changed host key stops everything, and no switch says otherwise; arguments arrive as they
//! are, whatever shell the user has; a deadline ends the process tree on the host; a lost connection is an unknown
//! outcome, never success and never failure; nothing runs that is not in the audit log.
//!
//! Starts no program on this machine.

mod agent;
mod algorithms;
mod command;
mod connection;
mod error;
mod evidence;
mod hosts;
mod identity;
pub mod journal;
mod keys;
mod known_hosts;
mod pool;
mod remote;
mod running;
mod signer;
pub mod ssh_config;
mod stream;
mod supervisor;
mod syslog;
mod terminal;
mod transfer;
mod trust;
mod tunnel;
mod vm_id;
mod warden;

pub use algorithms::MIN_RSA_BITS;
pub use command::{
    Chunk, Command, ExecutionResult, Finished, Input, InvalidCommand, MAX_OUTPUT_BYTES, Output,
};
pub use error::Error;
pub use hosts::{Hosts, InvalidHosts, Reader, Settings, Vm};
pub use identity::{Passphrases, key_path};
pub use keys::{Deployed, KeyState, KeyStatus, Made, Pending, Revoked, Rotated, key_status};
pub use known_hosts::{BadLine, KnownHosts};
pub use remote::{KeyFound, Remote};
pub use syslog::syslog;
pub use terminal::{Left, Program, Shown, Typed, Window};
pub use transfer::{Progress, Transferred};
pub use trust::{HostKeyProblem, ShownKey};
pub use tunnel::{Tunnel, TunnelEvent};
pub use vm_id::VmId;
