//! REST wire types, and the ids and names that every other crate uses. No I/O.
//!
//! The types are the contract with users and scripts: a change here is a change of the API.

pub mod app;
pub mod audit;
pub mod egress;
pub mod entry;
pub mod exec;
pub mod file;
pub mod gateway;
pub mod names;
pub mod operation;
pub mod problem;
pub mod sandbox;
pub mod session;
pub mod status;

pub use names::{
    Domain, HostName, ImageDigest, ImageName, InstanceId, InstanceName, InterfaceName, InvalidName,
    MacAddr, NodeName, OperationId, RecipeId, ZoneName,
};
pub use problem::Problem;
