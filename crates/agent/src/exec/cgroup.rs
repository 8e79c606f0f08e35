//! Control groups (cgroups(7), version 2), one for each running command, so that all of it can be ended
//! whatever it did to get away: leaving the session, the family and the environment does not leave the group.
//!
//! ```text
//!   (made) ──▶ idle ──claim──▶ command begins in it ──ends by itself──▶ empty? ─▶ idle ──1 s──▶ removed
//!                                    │                                    └ no ─▶ left, marked ──empty──▶ removed
//!                                    └──killed──▶ left ──empty──▶ removed
//! ```
//! The agent must own a place in the hierarchy: its own group, in which it may make others, of a kernel that
//! can kill a group (5.14). Otherwise, and for commands for which none can be made, there are no
//! groups and what [`process_tree`] finds is all that ends; that is logged once. No controllers are switched
//! on: the groups limit nothing, the limits of the groups above count what is in them, and the agent may stay
//! in the group above them.
//!
//! Groups are used again because making and removing one costs a tenth of running `/bin/true`. One whose
//! command was killed, or whose command left something running on purpose, is not used again.
//!
//! An agent that was killed leaves groups behind. The next one kills what is in them, since nobody waits for
//! those commands any more, but for the marked ones: what a command left running when it ended by itself
//! belongs to the guest. The mark is an attribute of the group's directory (xattr(7)), so it needs no memory
//! of the agent's; an empty group in the group would do too, but systemd removes those. Whether a directory's agent
//! lives says the lock (flock(2)) that it holds on it.
//!
//! Root in a guest can move its processes to other groups, as systemd does for scopes and sessions. Therefore
//! killing a group comes first, and process-tree's hunt after it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::mem::take;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags, flock, getxattr, openat, setxattr};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// An agent's directory, with something random behind it.
const NAME: &str = "proximity-commands-";
/// The attribute of a group whose command ended by itself and left something running.
const MARK: &str = "user.proximity.left";
/// How many empty groups are kept for the next commands.
const IDLE_MAX: usize = 64;
/// How long one is kept that no command needed.
const IDLE_KEPT: Duration = Duration::from_secs(1);
/// How many groups there may be in which something is left.
const LEFT_MAX: usize = 1024;
/// How long the end of a killed group is awaited.
const END_DEADLINE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// When groups that should be empty soon are looked at.
const SOON: Duration = Duration::from_millis(250);
/// When others are.
const LATER: Duration = Duration::from_secs(10);
/// How often a directory is made anew that another agent, starting in this moment, took for left behind.
const ATTEMPTS: usize = 8;

/// Why there are no control groups for commands.
#[derive(Debug, thiserror::Error)]
pub enum NoGroups {
    /// The kernel shows no hierarchy of version 2 in which this process is.
    #[error("no cgroup v2 hierarchy with this process in it is mounted")]
    NotMounted,
    /// The process's own group is not its to divide, or can't be killed.
    #[error("the control group {path} can't be used: {cause}")]
    NotOurs {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// The groups of the commands of this agent.
pub struct Groups {
    base: PathBuf,
    /// Locked, so that other agents see that this one lives.
    _directory: File,
    state: Mutex<State>,
    changed: Arc<Notify>,
    unusable: AtomicBool,
    told: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The last one is the next to be used.
    idle: Vec<Room>,
    /// How many of these no command has needed since then.
    spare: (usize, Option<Instant>),
    left: Vec<Left>,
    made: u64,
    /// Directories of agents that are gone, with groups in them that are not empty yet; locked.
    inherited: Vec<File>,
}

/// A group's directory.
struct Room {
    path: PathBuf,
    directory: File,
    events: File,
}

/// A group in which something may still run, or another agent's directory.
struct Left {
    path: PathBuf,
    /// On purpose.
    marked: bool,
}

/// A group with one command in it.
pub struct Group {
    groups: Arc<Groups>,
    room: Option<Room>,
    killed: bool,
}

impl Groups {
    /// Below the group in which this process is.
    pub fn of_this_process() -> Result<Self, NoGroups> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let own = own_directory(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        Self::below(&own.ok_or(NoGroups::NotMounted)?)
    }

    /// Below this group, given as its directory. Kills what agents that are gone have left there, but for what
    /// was left on purpose.
    pub fn below(own: &Path) -> Result<Self, NoGroups> {
        let not_ours = |path: PathBuf| move |cause| NoGroups::NotOurs { path, cause };
        let (left, inherited) = sweep(own);
        let (base, directory) = make_base(own).map_err(not_ours(own.to_owned()))?;
        for (of, file) in [(&*base, "cgroup.kill"), (own, "cgroup.procs")] {
            let path = of.join(file);
            let opened = File::options().write(true).open(&path);
            if let Err(cause) = opened {
                // Nothing is in it.
                let _ = fs::remove_dir(&base);
                return Err(not_ours(path)(cause));
            }
        }
        let groups = Self {
            base,
            _directory: directory,
            state: Mutex::new(State {
                left,
                inherited,
                ..State::default()
            }),
            changed: Arc::default(),
            unusable: AtomicBool::new(false),
            told: AtomicBool::new(false),
        };
        groups.changed.notify_one();
        Ok(groups)
    }

    /// Removes groups that are needed no more, for as long as there are `groups`.
    pub async fn keep(groups: Weak<Self>, changed: Arc<Notify>) {
        let mut next = Next::Never;
        loop {
            match next {
                Next::Never => changed.notified().await,
                Next::Later => drop(timeout(LATER, changed.notified()).await),
                Next::Soon => {}
            }
            sleep(SOON).await;
            let Some(groups) = groups.upgrade() else {
                return;
            };
            next = groups.tidy();
        }
    }

    /// Told when there may be something for [`Self::keep`] to do.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// A group for a command; none when none can be made.
    pub fn claim(self: &Arc<Self>) -> Option<Group> {
        if self.unusable.load(Ordering::Relaxed) {
            return None;
        }
        let name = {
            let mut state = self.state();
            if let Some(room) = state.idle.pop() {
                state.spare.0 = state.spare.0.min(state.idle.len());
                return Some(self.group(room));
            }
            if state.left.len() >= LEFT_MAX {
                self.tell(&"too many commands left something running");
                return None;
            }
            state.made += 1;
            state.made.to_string()
        };
        match Room::make(self.base.join(name)) {
            Ok(room) => Some(self.group(room)),
            Err(error) => {
                self.tell(&error);
                None
            }
        }
    }

    fn group(self: &Arc<Self>, room: Room) -> Group {
        Group {
            groups: self.clone(),
            room: Some(room),
            killed: false,
        }
    }

    /// Removes what is not in use.
    pub fn clear(&self) {
        self.state().spare = (IDLE_MAX, None);
        self.tidy();
    }

    /// Removes what was idle for long enough and what is empty by now.
    fn tidy(&self) -> Next {
        let (idle, mut left) = {
            let mut state = self.state();
            (state.take_spare(), take(&mut state.left))
        };
        left.extend(idle.into_iter().map(|room| Left {
            path: room.path,
            marked: false,
        }));
        left.retain(|group| !remove(&group.path));
        let mut state = self.state();
        state.left.append(&mut left);
        if state.left.is_empty() {
            state.inherited.clear();
        }
        if !state.idle.is_empty() || state.left.iter().any(|group| !group.marked) {
            Next::Soon
        } else if state.left.is_empty() {
            Next::Never
        } else {
            Next::Later
        }
    }

    /// No command gets a group again if the kernel says that it never will.
    fn note(&self, cause: &io::Error) {
        let never = [Errno::NOSYS, Errno::PERM, Errno::ACCESS, Errno::INVAL];
        if Errno::from_io_error(cause).is_some_and(|errno| never.contains(&errno)) {
            self.unusable.store(true, Ordering::Relaxed);
        }
        self.tell(cause);
    }

    fn tell(&self, cause: &dyn std::fmt::Display) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%cause, "a command runs without a control group of its own");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_spare(&mut self) -> Vec<Room> {
        let (spare, since) = self.spare;
        if since.is_some_and(|since| since.elapsed() < IDLE_KEPT) {
            return Vec::new();
        }
        let taken = self.idle.drain(..spare.min(self.idle.len())).collect();
        self.spare = (self.idle.len(), Some(Instant::now()));
        taken
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.clear();
        // What is busy stays, and with it this.
        let _ = fs::remove_dir(&self.base);
        self.changed.notify_one();
    }
}

/// When there is something to remove again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// When something changes.
    Never,
    /// When what is left running on purpose ends.
    Later,
    /// As soon as what was killed is gone, or what is idle was so for long enough.
    Soon,
}

impl Group {
    /// For making a process in it.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.room.as_ref().map(|room| room.directory.as_fd())
    }

    /// No process could be made in it.
    pub fn give_up(mut self, cause: &io::Error) {
        self.killed = true;
        self.groups.note(cause);
    }

    /// Kills all that is in it, and all that these begin meanwhile.
    pub fn kill(&mut self) {
        self.killed = true;
        if let Some(Err(error)) = self.room.as_ref().map(Room::kill) {
            tracing::error!(%error, "a control group could not be killed");
        }
    }

    /// Kills it and waits until nothing is in it.
    pub async fn end(mut self) {
        self.kill();
        let until = Instant::now() + END_DEADLINE;
        while self.room.as_ref().is_some_and(|room| !room.is_empty()) {
            if Instant::now() > until {
                tracing::error!("processes of a killed control group are still there");
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(room) = self.room.take() else { return };
        let is_empty = room.is_empty();
        let marked = !self.killed && !is_empty;
        if marked && let Err(error) = mark(&room.path) {
            tracing::warn!(%error, "what a command left running would not outlive the agent's own end");
        }
        {
            let mut state = self.groups.state();
            if !self.killed && is_empty && state.idle.len() < IDLE_MAX {
                state.idle.push(room);
            } else if !(is_empty && remove(&room.path)) {
                let path = room.path;
                state.left.push(Left { path, marked });
            }
        }
        self.groups.changed.notify_one();
    }
}

impl Room {
    fn make(path: PathBuf) -> io::Result<Self> {
        make_directory(&path)?;
        Ok(Self {
            directory: File::open(&path)?,
            events: File::open(path.join(EVENTS))?,
            path,
        })
    }

    fn is_empty(&self) -> bool {
        let mut text = [0; 64];
        let read = self.events.read_at(&mut text, 0).unwrap_or_default();
        says_empty(text.get(..read).unwrap_or_default())
    }

    fn kill(&self) -> io::Result<()> {
        kill(&self.directory)
    }
}

const EVENTS: &str = "cgroup.events";

fn says_empty(events: &[u8]) -> bool {
    events.split(|b| *b == b'\n').any(|l| l == b"populated 0")
}

fn kill(group: impl AsFd) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(group, "cgroup.kill", flags, Mode::empty())?;
    File::from(file).write_all(b"1")
}

/// For the agent alone, so that no other user can take its lock.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn mark(group: &Path) -> Result<(), Errno> {
    setxattr(group, MARK, b"1", XattrFlags::empty())
}

fn is_marked(group: &Path) -> bool {
    let mut value = [0; 8];
    getxattr(group, MARK, &mut value).is_ok()
}

/// Whether there is no such group any more.
fn remove(group: &Path) -> bool {
    match fs::read(group.join(EVENTS)) {
        Ok(events) if !says_empty(&events) => return false,
        // It has no such file when it is gone, which is seen below.
        _ => {}
    }
    match fs::remove_dir(group) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Makes this agent's directory and locks it.
fn make_base(own: &Path) -> io::Result<(PathBuf, File)> {
    for _ in 0..ATTEMPTS {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let base = own.join(format!("{NAME}{}", hex::encode(random)));
        make_directory(&base)?;
        let locked = File::open(&base).ok().filter(lock);
        // Whoever locked it first removes it.
        if let Some(directory) = locked
            && base.exists()
        {
            return Ok((base, directory));
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

fn lock(directory: &File) -> bool {
    flock(directory, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Kills what agents that are gone have left, and tells what has to be removed when it is empty.
fn sweep(own: &Path) -> (Vec<Left>, Vec<File>) {
    let (mut left, mut inherited) = (Vec::new(), Vec::new());
    for base in directories(own) {
        let name = base.file_name().unwrap_or_default();
        let is_agents = name.to_str().is_some_and(|name| name.starts_with(NAME));
        let Some(directory) = File::open(&base).ok().filter(|d| is_agents && lock(d)) else {
            continue;
        };
        let mut is_left = false;
        for path in directories(&base) {
            let marked = is_marked(&path);
            if !marked && let Err(error) = File::open(&path).and_then(kill) {
                tracing::warn!(%error, "a command of an earlier agent could not be ended");
            }
            is_left |= marked;
            left.push(Left { path, marked });
        }
        left.push(Left {
            path: base,
            marked: is_left,
        });
        inherited.push(directory);
    }
    left.retain(|group| !remove(&group.path));
    (left, inherited)
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let directories = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// Where the group of a process is, by its `/proc/PID/cgroup` and `/proc/PID/mountinfo` (proc(5)).
fn own_directory(cgroup: &str, mounts: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let is_v2 = kind.split(' ').next() == Some("cgroup2");
        let below = Path::new(own).strip_prefix(root).ok().filter(|_| is_v2)?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_every_kind_of_mount() {
        let check = |cgroup: &str, mount: &str, expected: Option<&str>| {
            let mounts = format!("23 1 0:21 / /proc rw - proc proc rw\n{mount}\n");
            let found = own_directory(cgroup, &mounts);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{mount}");
        };
        let unified = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw";
        check("0::/\n", unified, Some("/sys/fs/cgroup"));
        let service = "12:pids:/x\n0::/system.slice/proximity-agent.service\n";
        let at = "/sys/fs/cgroup/system.slice/proximity-agent.service";
        check(service, unified, Some(at));
        // A container without a namespace of groups: its own part of the hierarchy is mounted.
        let part = "41 31 0:38 /lxc/web /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let below = Some("/sys/fs/cgroup/unified/a");
        check("0::/lxc/web/a\n", part, below);
        check("0::/elsewhere\n", part, None);
        check("4:memory:/\n", unified, None);
        let old = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        check("0::/\n", old, None);
    }
}
