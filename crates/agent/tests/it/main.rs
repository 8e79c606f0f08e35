//! The agent as its callers see it: real sockets, real TCP, real processes, an appliance in a directory.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod api;
mod exec;
mod guest_commands;
mod init;
mod routes;
mod session;
