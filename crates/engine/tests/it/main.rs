//! The engine from outside.
#![cfg(test)]

mod deletion;
mod deploys;
mod docs;
mod egress;
mod entries;
mod identities;
mod power;
mod restarts;
mod ruled;
mod sandboxes;
mod zones;
