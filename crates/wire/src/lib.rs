//! The agent protocol: what the controller and the agent in a guest say to each other. No I/O.
//!
//! Messages travel as JSON. Unknown fields are refused on the way to the agent (an old agent must
//! not half-apply a newer state) and tolerated on the way back.

pub mod agent;
pub mod attach;
pub mod family;
pub mod gateway;
pub mod identity;
pub mod tunnel;
