//! Virtual hypervisor hosts: one process tree each in namespaces of its own, in which bridges, containers
//! and firewalls are made without touching the machine's own network.
//!
//! ```no_run
//! # fn main() -> Result<(), testbed::Error> {
//! let mut host = testbed::Host::start(testbed::HostOptions::default())?;
//! let links = host.run(["ip", "-brief", "link"])?;
//! let port_on_this_machine = host.forward(([192, 168, 50, 20], 80).into())?;
//! # drop((links, port_on_this_machine)); Ok(())
//! # }
//! ```
//! The value owns the host: dropped, or with its process gone in whatever way, the host ends and leaves
//! nothing. Hosts never share state but the image cache `/var/cache/proximity`, and never reach each
//! other, the machine's network or anything beyond it. The processes behind a host are in [`role`].

mod cgroup;
mod command;
mod enter;
mod error;
mod forward;
mod host;
mod init;
mod keeper;
mod launch;
mod machine;
mod mounts;
mod name;
pub mod network;
mod program;
mod registry;
mod sweep;

pub use command::{Shown, run_in_host};
pub use enter::Entry;
pub use error::{Error, Result};
pub use forward::{Forward, MOST_CONNECTIONS};
pub use host::{Host, HostOptions, reboot, remove, state_dir};
pub use name::HostName;
pub use program::require_root;
pub use registry::{Process, Record};
pub use sweep::sweep;

/// Where the directories of hosts are unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/proximity-testbed";
/// The variable that names another directory.
pub const STATE_DIR_VARIABLE: &str = "PROXIMITY_TESTBED_STATE";

/// What the processes of a host do; for the `testbed` binary alone, which is all of them in turn.
pub mod role {
    pub use crate::enter::{daemon, detached, foreground};
    pub use crate::forward::{detach as detach_forward, note_self as note_forward};
    pub use crate::init::run as init;
    pub use crate::keeper::{Spec, keep};
    pub use crate::launch::launch;
    pub use crate::machine::{Role as Machine, run as machine};
}
