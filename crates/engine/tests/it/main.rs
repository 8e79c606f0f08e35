//! The engine from outside.
#![cfg(test)]

mod deletion;
mod deploys;
mod docs;
mod power;
mod restarts;
mod ruled;
mod zones;
