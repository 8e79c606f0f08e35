//! Who runs, and where: seen from the machine, which sees every process of every host. Marks in command
//! lines and environments are random, so that tests beside this one are never taken for it.

use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use super::controller::Controller;

/// Which process list shows a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The machine's alone: the testbed's own end of a command.
    Machine,
    /// The node's.
    Node,
    /// A guest's.
    Guest,
}

/// Where a mark can stand.
#[derive(Debug, Clone, Copy)]
pub enum Where {
    CommandLine,
    Environment,
}

/// A process that carries a mark.
#[derive(Debug)]
pub struct Marked {
    pub pid: u32,
    pub place: Place,
}

impl Marked {
    pub fn kill(&self) {
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap()).unwrap();
        // It may have ended in this moment.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// A word that stands nowhere else.
pub fn mark(what: &str) -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    format!("{what}-{:016x}", u64::from_be_bytes(bytes))
}

/// Every living process that carries the mark there.
pub fn marked(controller: &Controller, mark: &str, there: Where) -> Vec<Marked> {
    let file = match there {
        Where::CommandLine => "cmdline",
        Where::Environment => "environ",
    };
    let node = namespace(&controller.pid().to_string());
    let machine = namespace("self");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read(entry.path().join(file)).ok()?;
            let found = text
                .windows(mark.len())
                .any(|window| window == mark.as_bytes());
            let lives = namespace(&pid.to_string()).filter(|_| found)?;
            let place = match Some(lives) {
                lives if lives == machine => Place::Machine,
                lives if lives == node => Place::Node,
                _ => Place::Guest,
            };
            Some(Marked { pid, place })
        })
        .collect()
}

/// Those of them that a guest's process list shows.
pub fn in_guests(controller: &Controller, mark: &str) -> Vec<Marked> {
    let mut all = marked(controller, mark, Where::CommandLine);
    all.retain(|process| process.place == Place::Guest);
    all
}

fn namespace(pid: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}
