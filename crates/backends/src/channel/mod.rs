//! Channels: the ways by which a command reaches a guest from here.

mod lxc_attach;

pub use lxc_attach::LxcAttach;
pub use process_tree::await_hunts;
