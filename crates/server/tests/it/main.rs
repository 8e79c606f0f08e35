//! The API as its callers see it: a real server on a port and a socket of its own, over a node in memory
//! and the real store.
#![cfg(test)]

mod apps;
mod audit;
mod document;
mod doors;
mod idempotency;
mod operations;
mod problems;
mod served;
mod sessions;
