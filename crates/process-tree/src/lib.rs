//! Ends every process that a command started: descendants by parent, and those that left the family
//! (`setsid`, double fork) by the cookie in their environment. Two quiet looks in a row end the hunt.
//!
//! Only ever signals through a pidfd whose process was looked at after the pidfd was opened, so a
//! number that was used again is never hit.

use std::collections::HashMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How many looks before giving up: a fork bomb has to be met by the guest's process limit.
const MAX_LOOKS: u32 = 200;

/// Ends the tree when it is dropped armed: when the caller's request is gone.
pub struct Guard {
    root: Option<u32>,
    cookie: String,
    armed: bool,
}

impl Guard {
    /// Over the tree of the process `root` and of everything whose environment holds `cookie` (`NAME=VALUE`).
    pub fn new(root: Option<u32>, cookie: String) -> Self {
        Self {
            root,
            cookie,
            armed: true,
        }
    }

    /// The command ended by itself; what it left running on purpose is its own business.
    pub fn disarm(mut self) {
        self.armed = false;
    }

    /// Ends the tree now and waits until it is gone.
    pub async fn kill(mut self) {
        self.armed = false;
        let (root, cookie) = (self.root, self.cookie.clone());
        let hunted = tokio::task::spawn_blocking(move || hunt(root, &cookie)).await;
        if hunted.is_err() {
            tracing::error!("the end of a process tree could not be awaited");
        }
    }
}

/// Hunts that nobody waits for yet.
static HUNTS: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            let (root, cookie) = (self.root, std::mem::take(&mut self.cookie));
            // A thread, not a task: the runtime itself may be on its way out.
            let thread = std::thread::spawn(move || hunt(root, &cookie));
            let mut hunts = HUNTS.lock().unwrap_or_else(PoisonError::into_inner);
            hunts.retain(|h| !h.is_finished());
            hunts.push(thread);
        }
    }
}

/// Waits for every hunt that began: a process that ends before they do leaves commands running.
pub fn await_hunts() {
    let hunts = std::mem::take(&mut *HUNTS.lock().unwrap_or_else(PoisonError::into_inner));
    for hunt in hunts {
        if hunt.join().is_err() {
            tracing::error!("the end of a process tree could not be awaited");
        }
    }
}

/// Members of the tree by number, each with the time it started: a number that was used again has
/// another one.
type Family = HashMap<u32, u64>;

fn hunt(root: Option<u32>, cookie: &str) {
    let mut family: Family = root
        .and_then(|pid| Some((pid, stat(pid)?.started)))
        .into_iter()
        .collect();
    let mut quiet = 0;
    for _ in 0..MAX_LOOKS {
        look(&mut family, cookie);
        if family.is_empty() {
            quiet += 1;
            if quiet == 2 {
                return;
            }
        } else {
            quiet = 0;
        }
        for (pid, started) in &family {
            end(*pid, *started);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    tracing::error!("processes of an ended command are still there");
}

/// Brings the family up to date: adds who was begotten by a member or carries the cookie, drops who
/// is gone. Members stay when their parent is gone.
fn look(family: &mut Family, cookie: &str) {
    let living: HashMap<u32, Stat> = processes()
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    family.retain(|pid, started| living.get(pid).is_some_and(|s| s.started == *started));
    let cookies = living.iter().filter(|(pid, _)| has_cookie(**pid, cookie));
    family.extend(cookies.map(|(pid, s)| (*pid, s.started)));
    loop {
        let before = family.len();
        for (pid, s) in &living {
            if family.contains_key(&s.parent) {
                family.insert(*pid, s.started);
            }
        }
        if family.len() == before {
            return;
        }
    }
}

fn end(pid: u32, started: u64) {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(handle) = pidfd_open(number, PidfdFlags::empty()) else {
        return;
    };
    // Looked at after the handle was taken: the handle can't come to mean another process any more.
    if stat(pid).is_some_and(|s| s.started == started) {
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// What the kernel says of a process that is not a zombie.
struct Stat {
    parent: u32,
    /// Clock ticks since boot.
    started: u64,
}

/// Reads fields 3, 4 and 22 of `/proc/PID/stat` (proc(5)).
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the rest begins after the last one.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Stat { parent, started })
}

fn has_cookie(pid: u32, cookie: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == cookie.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    fn with_cookie(cookie: &str) -> Vec<u32> {
        processes()
            .filter(|p| stat(*p).is_some() && has_cookie(*p, cookie))
            .collect()
    }

    #[tokio::test]
    async fn children_that_left_the_family_end_too() {
        let value = format!("test-{}", std::process::id());
        let cookie = format!("PROXIMITY_TEST_COOKIE={value}");
        let mut child = Command::new("sh")
            .args([
                "-c",
                "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000 & echo go; exec sleep 1000",
            ])
            .env("PROXIMITY_TEST_COOKIE", &value)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while with_cookie(&cookie).len() < 5 && began.elapsed() < Duration::from_secs(10) {
            tokio::task::yield_now().await;
        }
        assert!(with_cookie(&cookie).len() >= 5);
        Guard::new(Some(child.id()), cookie.clone()).kill().await;
        assert_eq!(with_cookie(&cookie), Vec::<u32>::new());
        child.wait().unwrap();
    }
}
