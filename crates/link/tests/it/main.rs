//! The link against real TLS servers behind a real relay's preface, all on loopback.

mod calls;
mod files;
mod gateway;
mod hostile;
mod identities;
mod lab;
mod sessions;
mod tokens;
mod trust;
