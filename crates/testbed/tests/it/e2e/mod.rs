//! End to end: the real programs on virtual hosts, from the command line to a page that a guest serves.
//!
//! Each test owns a host and all that is in it, so that tests run beside each other. Nothing is faked: the
//! controller, the agent and the images are those that people run. What is claimed about a guest's world
//! is tried from inside a guest, what is claimed about the node is read from the node.
//!
//! [`controller`] is the host with the controller on it, [`facts`] what is there to be left unchanged,
//! [`guest`] what a guest can reach, [`processes`] who runs and who can see it, [`agreement`] whether all that
//! tells of guests tells the same.

mod acme;
mod agreement;
mod apps;
mod channels;
mod claimed;
mod closed;
mod controller;
mod crash;
mod delete;
mod down;
mod edge;
mod egress;
mod exec;
mod exec_end;
mod facts;
mod failed;
mod files;
mod floods;
mod forgery;
mod guest;
mod half_done;
mod identity;
mod install;
mod isolation;
mod lacking;
mod many;
mod openrc;
mod power;
mod probe;
mod processes;
mod programs;
mod refused;
mod repair;
mod sandbox;
mod session;
mod terminal;
mod up;
mod walk;
mod wan;
mod ways;

/// The static agent that goes into guests.
pub use programs::agent as agent_binary;

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition that costs more to look at than a variable.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A moment in `0..most`, other at every run: when a crash hits is not for a test to choose.
fn some_moment(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).unwrap();
    most.mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}
