//! The crate as its users see it: one binary, one module a noun.

#![expect(
    clippy::unwrap_used,
    reason = "test support may fail by panicking; clippy knows only test functions"
)]

mod crash;
mod history;
mod log;
mod redact;
mod rotation;
mod support;
mod verify;
