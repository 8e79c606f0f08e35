//! Commands in control groups of their own: in a group that the test makes on this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use agent::exec::Groups;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::guest_commands::{Caller, Guest, connect, eventually, guest, guest_with, lives};

/// A group of this machine's, with all that is in it.
struct Place(PathBuf);

impl Place {
    /// None, said aloud, where groups can't be made and killed.
    fn make() -> Option<Self> {
        let place = Self::of_cgroup2();
        if place.is_none() {
            println!("SKIPPED: no cgroup v2 hierarchy here in which this test may make groups");
        }
        place
    }

    fn of_cgroup2() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (at, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(at))
        })?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let name = format!("proximity-test-{:016x}", u64::from_ne_bytes(random));
        let place = Self(mount.join(name));
        fs::create_dir(&place.0).ok()?;
        place.0.join("cgroup.kill").exists().then_some(place)
    }

    fn groups(&self) -> Groups {
        Groups::below(&self.0).unwrap()
    }

    /// All groups of commands.
    fn all(&self) -> Vec<PathBuf> {
        let agents = directories(&self.0).into_iter();
        agents.flat_map(|agent| directories(&agent)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..1000 {
            remove(&self.0);
            if !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn remove(group: &Path) {
    for child in directories(group) {
        remove(&child);
    }
    let _ = fs::remove_dir(group);
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let directories = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// A line that leaves a process which has gone as far as it can: another session, another parent, an
/// empty environment, another limit. Its number will be in the file.
fn leave(file: &Path) -> String {
    let file = file.display();
    let away = format!("echo $$ >{file}.new; mv {file}.new {file}; exec sleep 1000");
    format!(
        "(ulimit -S -m unlimited; exec env -i setsid -f setsid -f sh -c '{away}' >/dev/null 2>&1)"
    )
}

fn number(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned())
}

fn end(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// A command that runs on beside what it left, on a connection of its own.
struct Running {
    call: tokio::task::JoinHandle<()>,
    away: String,
}

async fn run(mut caller: Caller, file: PathBuf) -> Running {
    let line = format!("{}; sleep 1000", leave(&file));
    let body = json!({ "command": line }).to_string().into_bytes();
    let call = tokio::spawn(async move {
        let _ = caller.post(body, "application/json").await;
    });
    eventually("it runs", || number(&file).is_some()).await;
    let away = number(&file).unwrap();
    assert!(lives(&away));
    Running { call, away }
}

async fn run_in(guest: &Guest, name: &str) -> Running {
    run(guest.connect().await, guest.root.path().join(name)).await
}

#[tokio::test]
async fn whoever_goes_as_far_as_it_can_ends_with_the_command() {
    let Some(place) = Place::make() else { return };
    let guest = guest_with(Some(place.groups())).await;
    // The caller hangs up.
    let running = run_in(&guest, "hung-up").await;
    running.call.abort();
    eventually("it ends", || !lives(&running.away)).await;
    // The deadline passes; on a busy machine not before the process is there.
    let mut timeout_ms = 1000;
    let (result, away) = loop {
        let file = guest.root.path().join(format!("late-{timeout_ms}"));
        let line = format!("{}; sleep 1000", leave(&file));
        let late = json!({ "command": line, "timeout_ms": timeout_ms });
        let result = guest.exec(late).await;
        if let Some(away) = number(&file) {
            break (result, away);
        }
        timeout_ms *= 2;
    };
    assert!(result.timed_out);
    assert!(!lives(&away), "it is gone when the answer comes");
    guest.idle().await;
    eventually("no group is left", || place.all().is_empty()).await;
}

#[tokio::test]
async fn without_groups_only_such_a_process_escapes() {
    let guest = guest().await;
    let running = run_in(&guest, "escaped").await;
    running.call.abort();
    guest.idle().await;
    // The hunt for it is over when that for another one, which came later, is.
    let other = json!({ "argv": ["sleep", "1000"], "timeout_ms": 100 });
    assert!(guest.exec(other).await.timed_out);
    assert!(lives(&running.away));
    end(&running.away);
}

#[tokio::test]
async fn what_is_left_on_purpose_stays_and_keeps_its_group() {
    let Some(place) = Place::make() else { return };
    let guest = guest_with(Some(place.groups())).await;
    let file = guest.root.path().join("left");
    let result = guest.sh(&leave(&file)).await;
    assert_eq!(result.exit_code, Some(0), "{}", result.stderr);
    eventually("it runs", || number(&file).is_some()).await;
    let away = number(&file).unwrap();
    // Those of others come and go, used again in between.
    for _ in 0..100 {
        assert_eq!(guest.sh("exit 3").await.exit_code, Some(3));
    }
    eventually("its group alone is left", || place.all().len() == 1).await;
    assert!(lives(&away));
    end(&away);
    eventually("no group is left", || place.all().is_empty()).await;
}

#[tokio::test]
async fn many_at_a_time_have_groups_of_their_own() {
    let Some(place) = Place::make() else { return };
    let guest = guest_with(Some(place.groups())).await;
    let calls = (0..100).map(|n| {
        let guest = &guest;
        async move {
            let result = guest.sh("grep ^0:: /proc/self/cgroup; exit 4").await;
            assert_eq!(result.exit_code, Some(4), "{n}: {}", result.stderr);
            let group = result.stdout.trim().to_owned();
            assert!(group.contains("/proximity-commands-"), "{n}: {group}");
        }
    });
    futures::future::join_all(calls).await;
    eventually("no group is left", || place.all().is_empty()).await;
    drop(guest);
}

#[tokio::test]
async fn an_agent_that_stops_ends_what_its_callers_wait_for() {
    let Some(place) = Place::make() else { return };
    for groups in [Some(place.groups()), None] {
        let grouped = groups.is_some();
        let guest = guest_with(groups).await;
        let left = guest.root.path().join("left");
        assert_eq!(guest.sh(&leave(&left)).await.exit_code, Some(0));
        eventually("it runs", || number(&left).is_some()).await;
        let left = number(&left).unwrap();
        let running = run_in(&guest, "running").await;
        assert!(guest.processes.stop(Duration::from_secs(30)).await);
        assert_eq!(lives(&running.away), !grouped);
        assert!(lives(&left), "what a command left on purpose stays");
        let (status, code) = guest.connect().await.refused(r#"{"argv":["true"]}"#).await;
        assert_eq!((status, code.as_str()), (503, "nothing_ran"));
        end(&left);
        if !grouped {
            end(&running.away);
        }
    }
    eventually("no group is left", || place.all().is_empty()).await;
}

#[tokio::test]
async fn the_next_agent_ends_what_the_last_one_could_not() {
    let Some(place) = Place::make() else { return };
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join("agent.sock");
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "groups::agent"])
        .env("TEST_PLACE", &place.0)
        .env("TEST_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("serving")));
    let left = root.path().join("left");
    let result = connect(&socket).await.exec(&command(&leave(&left))).await;
    assert_eq!(result.exit_code, Some(0));
    eventually("it runs", || number(&left).is_some()).await;
    let left = number(&left).unwrap();
    let running = run(connect(&socket).await, root.path().join("running")).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(lives(&running.away) && lives(&left));

    let next = guest_with(Some(place.groups())).await;
    eventually("it ends", || !lives(&running.away)).await;
    eventually("one group is left", || place.all().len() == 1).await;
    assert!(lives(&left), "what a command left on purpose stays");
    assert_eq!(next.sh("exit 5").await.exit_code, Some(5));
    end(&left);
    eventually("only the agent's own directory is left", || {
        directories(&place.0).len() == 1 && place.all().is_empty()
    })
    .await;
}

fn command(line: &str) -> Value {
    json!({ "command": line })
}

#[tokio::test]
#[ignore = "a child of the_next_agent_ends_what_the_last_one_could_not"]
async fn agent() {
    let of = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let groups = Groups::below(&of("TEST_PLACE")).unwrap();
    let processes = agent::exec::Processes::start(Some(groups)).unwrap();
    let listener = UnixListener::bind(of("TEST_SOCKET")).unwrap();
    println!("serving");
    axum::serve(listener, agent::exec::router(processes))
        .await
        .unwrap();
}
