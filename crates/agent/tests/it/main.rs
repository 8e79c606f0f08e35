//! Agent and relay as their callers see them: real sockets, real TLS, an appliance in a directory.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod api;
mod authority;
mod caller;
mod door;
mod exec;
mod files;
mod flood;
mod forward;
mod front;
mod groups;
mod guest_commands;
mod init;
mod routes;
mod served;
mod session;
mod trust;
mod tunnel;
