//! The engine's ports made real on this machine: guests by LXC, images by mmdebstrap, bridges by
//! netlink, NAT by nftables, the gateway API and commands by `lxc-attach`.
//!
//! Only this crate (with `ssh`, `pve` and `link`) knows how a node or a guest is reached, and only
//! this crate runs programs on the node.

pub mod channel;
pub mod doctor;
pub mod gateway;
pub mod image;
pub mod lxc;
pub mod node_network;
mod program;
