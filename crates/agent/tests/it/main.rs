//! The relay as its callers see it: real sockets, real TCP, an appliance in a directory.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod api;
mod files;
mod forward;
mod routes;
mod served;
