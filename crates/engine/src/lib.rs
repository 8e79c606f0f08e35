//! The domain: what zones and instances are, what to do so that they become what is wanted, and
//! the controller that does it through ports.
//!
//! Nothing here knows how a node or a guest is reached; `backends` does. Nothing here formats HTTP;
//! `server` does.

pub mod address;
pub mod catalog;
pub mod channel;
pub mod config;
pub mod controller;
pub mod error;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
pub mod gateway;
pub mod image;
pub mod instance;
pub mod operation;
pub mod ports;
pub mod store;
pub mod zone;

pub use config::Config;
pub use controller::Controller;
pub use error::Error;
