//! The link against real TLS servers behind a real relay's preface, all on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod calls;
mod files;
mod gateway;
mod hostile;
mod identities;
mod inside;
mod lab;
mod sessions;
mod straight;
mod tokens;
mod trust;
mod verifier;
