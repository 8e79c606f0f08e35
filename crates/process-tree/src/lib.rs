//! Ends every process that a command started: descendants by parent, and those that left the family
//! (`setsid`, double fork) by what they inherited: the cookie in their environment, or the mark among their
//! limits. Two quiet looks in a row end the hunt.
//!
//! ```text
//!   Guard ──kill, drop──▶ HUNTS ──▶ hunter (one thread): look at all processes once for all hunts ─┐
//!                                      ▲                signal, wait 2 ms                          │
//!                                      └──────────── until no hunt is left ◀───────────────────────┘
//! ```
//! Only ever signals through a pidfd whose process was looked at after the pidfd was opened, so a
//! number that was used again is never hit. A process that has left its family, replaced its
//! environment and set another limit is not found.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::take;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

/// How many looks before giving up: a fork bomb has to be met by the guest's process limit.
const MAX_LOOKS: u32 = 200;
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The least mark. No machine has so much memory, so a limit of that kind limits nothing.
pub const MARKED: u64 = 1 << 62;

/// The mark of a command with this cookie: a soft limit of resident memory in bytes (`RLIMIT_RSS`,
/// which Linux keeps, shows and inherits, and does not act on). A process that has it belongs to the
/// command even if its environment was cleared. None for a cookie that does not begin with 60 bits
/// as hexadecimal digits.
pub fn mark(cookie: &str) -> Option<u64> {
    let (_, value) = cookie.split_once('=')?;
    let bits = u64::from_str_radix(value.get(..15)?, 16).ok()?;
    Some(MARKED | bits)
}

/// Ends the tree when it is dropped armed: when the caller's request is gone.
pub struct Guard {
    root: Option<u32>,
    cookie: String,
    armed: bool,
}

impl Guard {
    /// Over the tree of the process `root` and of everything whose environment holds `cookie` (`NAME=VALUE`)
    /// or whose limit is its [`mark`].
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
        let (tell, gone) = oneshot::channel();
        begin(Hunt::new(self.root, take(&mut self.cookie), Some(tell)));
        if gone.await.is_err() {
            tracing::error!("the end of a process tree could not be awaited");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            begin(Hunt::new(self.root, take(&mut self.cookie), None));
        }
    }
}

/// Members of the tree by number, each with the time it started: a number that was used again has
/// another one.
type Family = HashMap<u32, u64>;

/// A tree that is being ended.
struct Hunt {
    family: Family,
    cookie: String,
    mark: Option<u64>,
    looks: u32,
    quiet: u32,
    /// Who waits for its end.
    tell: Option<oneshot::Sender<()>>,
}

impl Hunt {
    fn new(root: Option<u32>, cookie: String, tell: Option<oneshot::Sender<()>>) -> Self {
        let root = root.and_then(|pid| Some((pid, stat(pid)?.started)));
        Self {
            family: root.into_iter().collect(),
            mark: mark(&cookie),
            cookie,
            looks: 0,
            quiet: 0,
            tell,
        }
    }

    /// Ends who belongs to it among the living. True when it is over.
    fn go_on(
        &mut self,
        living: &HashMap<u32, Stat>,
        cookies: &HashMap<u32, Vec<usize>>,
        own: usize,
    ) -> bool {
        self.looks += 1;
        self.look(living, cookies, own);
        for (pid, started) in &self.family {
            end(*pid, *started);
        }
        self.quiet = if self.family.is_empty() {
            self.quiet + 1
        } else {
            0
        };
        if self.quiet < 2 && self.looks < MAX_LOOKS {
            return false;
        }
        if self.quiet < 2 {
            tracing::error!("processes of an ended command are still there");
        }
        if let Some(tell) = self.tell.take() {
            // Whoever waited may have gone.
            let _ = tell.send(());
        }
        true
    }

    /// Brings the family up to date: adds who was begotten by a member, carries the cookie or has the
    /// mark, drops who is gone. Members stay when their parent is gone.
    fn look(
        &mut self,
        living: &HashMap<u32, Stat>,
        cookies: &HashMap<u32, Vec<usize>>,
        own: usize,
    ) {
        let family = &mut self.family;
        family.retain(|pid, started| living.get(pid).is_some_and(|s| s.started == *started));
        let known = living.iter().filter(|(pid, stat)| {
            let carries = cookies.get(pid).is_some_and(|hunts| hunts.contains(&own));
            carries || self.mark == Some(stat.limit)
        });
        family.extend(known.map(|(pid, stat)| (*pid, stat.started)));
        loop {
            let before = family.len();
            for (pid, s) in living {
                if family.contains_key(&s.parent) {
                    family.insert(*pid, s.started);
                }
            }
            if family.len() == before {
                return;
            }
        }
    }
}

/// What the hunter has to do.
struct Hunts {
    /// Not begun yet.
    new: Vec<Hunt>,
    /// How many the hunter is at.
    begun: usize,
    /// Whether there is a hunter.
    hunter: bool,
}

static HUNTS: Mutex<Hunts> = Mutex::new(Hunts {
    new: Vec::new(),
    begun: 0,
    hunter: false,
});

/// Told when hunts come, and when none is left.
static CHANGED: Condvar = Condvar::new();

fn hunts() -> MutexGuard<'static, Hunts> {
    HUNTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that hunts, unless it is there. Without it the first hunt does; but by then there may
/// be no room for one more thread, and the hunt holds up whoever began it.
pub fn start_hunter() -> io::Result<()> {
    ensure(&mut hunts())
}

fn ensure(hunts: &mut Hunts) -> io::Result<()> {
    if !hunts.hunter {
        let thread = std::thread::Builder::new().name("hunter".into());
        thread.spawn(hunt_for_ever)?;
        hunts.hunter = true;
    }
    Ok(())
}

fn begin(hunt: Hunt) {
    let mut hunts = hunts();
    match ensure(&mut hunts) {
        Ok(()) => {
            hunts.new.push(hunt);
            CHANGED.notify_all();
        }
        Err(error) => {
            drop(hunts);
            tracing::warn!(%error, "no thread for the end of a process tree");
            let mut hunt = vec![hunt];
            while !hunt.is_empty() {
                go_on(&mut hunt);
            }
        }
    }
}

fn hunt_for_ever() {
    let mut begun = Vec::new();
    loop {
        {
            let mut hunts = hunts();
            while hunts.new.is_empty() && begun.is_empty() {
                hunts.begun = 0;
                CHANGED.notify_all();
                hunts = CHANGED.wait(hunts).unwrap_or_else(PoisonError::into_inner);
            }
            begun.append(&mut hunts.new);
            hunts.begun = begun.len();
        }
        go_on(&mut begun);
    }
}

/// One look for all hunts; those that are over are dropped.
fn go_on(hunts: &mut Vec<Hunt>) {
    let living: HashMap<u32, Stat> = processes()
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let mut wanted: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (own, hunt) in hunts.iter().enumerate() {
        wanted.entry(hunt.cookie.as_bytes()).or_default().push(own);
    }
    let carriers = living.keys().filter_map(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let carried = environment.split(|b| *b == 0).filter_map(|v| wanted.get(v));
        Some((*pid, carried.flatten().copied().collect::<Vec<_>>()))
    });
    let cookies: HashMap<u32, Vec<usize>> = carriers.collect();
    let mut own = 0;
    hunts.retain_mut(|hunt| {
        let over = hunt.go_on(&living, &cookies, own);
        own += 1;
        !over
    });
    if !hunts.is_empty() {
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits for every hunt that began: a process that ends before they do leaves commands running.
pub fn await_hunts() {
    let mut hunts = hunts();
    while hunts.is_busy() {
        hunts = CHANGED.wait(hunts).unwrap_or_else(PoisonError::into_inner);
    }
}

/// The same, not past `until`. False when there are hunts still.
pub fn await_hunts_until(until: Instant) -> bool {
    let mut hunts = hunts();
    while hunts.is_busy() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let waited = CHANGED.wait_timeout(hunts, left);
        (hunts, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
    true
}

impl Hunts {
    fn is_busy(&self) -> bool {
        self.begun > 0 || !self.new.is_empty()
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
    /// Soft limit of resident memory, in bytes.
    limit: u64,
}

/// Reads fields 3, 4, 22 and 25 of `/proc/PID/stat` (proc(5)).
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the rest begins after the last one.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    let limit = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Stat {
        parent,
        started,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn with_cookie(cookie: &str) -> Vec<u32> {
        let has = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|b| *b == 0)
                .any(|v| v == cookie.as_bytes())
        };
        processes()
            .filter(|p| stat(*p).is_some() && has(p))
            .collect()
    }

    fn with_mark(mark: u64) -> Vec<u32> {
        processes()
            .filter(|p| stat(*p).is_some_and(|s| s.limit == mark))
            .collect()
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn shell(line: &str, value: &str) -> Child {
        let mut command = Command::new("sh");
        command
            .args(["-c", line])
            .env("PROXIMITY_TEST_COOKIE", value);
        command.spawn().unwrap()
    }

    #[tokio::test]
    async fn children_that_left_the_family_end_too() {
        let value = format!("test-{}", std::process::id());
        let cookie = format!("PROXIMITY_TEST_COOKIE={value}");
        let line = "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000 & exec sleep 1000";
        let mut child = shell(line, &value);
        eventually("all run", || with_cookie(&cookie).len() >= 5).await;
        Guard::new(Some(child.id()), cookie.clone()).kill().await;
        assert_eq!(with_cookie(&cookie), Vec::<u32>::new());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn who_cleared_its_environment_is_known_by_its_limit() {
        let cookie = format!(
            "PROXIMITY_TEST_COOKIE={:032x}",
            0xabc << 96 | u128::from(std::process::id()) << 68
        );
        let mark = mark(&cookie).unwrap();
        // prlimit sets the limit that the agent sets; the root of the tree is not told.
        let line = format!("prlimit --rss={mark}: sh -c '(setsid env -i sleep 1000 &)'");
        shell(&line, "").wait().unwrap();
        eventually("it runs", || with_mark(mark).len() == 1).await;
        Guard::new(None, cookie).kill().await;
        assert_eq!(with_mark(mark), Vec::<u32>::new());
    }

    #[tokio::test]
    async fn many_hunts_share_one_thread() {
        start_hunter().unwrap();
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let value = |i: u32| format!("many-{}-{i}", std::process::id());
        let cookie = |i: u32| format!("PROXIMITY_TEST_COOKIE={}", value(i));
        let mut children: Vec<Child> = (0..20).map(|i| shell("sleep 1000; :", &value(i))).collect();
        // Another one, with a cookie of its own, is not hunted.
        let mut spared = shell("exec sleep 1000", &value(20));
        eventually("all run", || {
            (0..20).all(|i| with_cookie(&cookie(i)).len() == 2)
        })
        .await;
        for (i, child) in (0..).zip(&children) {
            drop(Guard::new(Some(child.id()), cookie(i)));
        }
        assert!(
            threads() <= before,
            "{} threads, {before} before",
            threads()
        );
        assert!(!await_hunts_until(Instant::now()));
        assert!(await_hunts_until(Instant::now() + Duration::from_secs(30)));
        await_hunts();
        assert!((0..20).all(|i| with_cookie(&cookie(i)).is_empty()));
        for child in &mut children {
            child.wait().unwrap();
        }
        assert!(spared.try_wait().unwrap().is_none());
        spared.kill().unwrap();
        spared.wait().unwrap();
    }

    #[test]
    fn marks_limit_nothing_and_need_a_random_cookie() {
        let marked = |cookie| mark(cookie);
        assert_eq!(
            marked("A=0123456789abcdef"),
            Some(MARKED | 0x0012_3456_789a_bcde)
        );
        assert_eq!(
            marked("A=fffffffffffffffffff"),
            Some(MARKED | ((1 << 60) - 1))
        );
        assert_eq!(
            (
                marked("A=short"),
                marked("no value"),
                marked("A=not-hexadecimal-1")
            ),
            (None, None, None)
        );
    }
}
