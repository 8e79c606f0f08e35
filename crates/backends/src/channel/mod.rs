//! Channels: the ways by which a command reaches a guest from here.

mod agent;
mod lxc_attach;

pub use agent::AgentChannel;
pub use lxc_attach::LxcAttach;
pub use process_tree::await_hunts;
