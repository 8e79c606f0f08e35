//! Many of everything at once: guests, sandboxes, routes, rows. Each part prints rows of the same table; what
//! it makes it takes away again.

mod guests;
mod node;
mod routes;
mod rows;
mod sandboxes;
mod sockets;

use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::caller::Caller;
use crate::table::Table;

/// How long a pause is between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(20);

/// What `bench --load` is told: a controller with its zone up, no app in it, and `tiny` in its catalog.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadPlan {
    /// The program `proximity`.
    proximity: PathBuf,
    /// The controller's socket.
    socket: PathBuf,
    /// The controller's process.
    controller: u32,
    /// The recipe of a guest that costs next to nothing, with one page on port 80.
    tiny: String,
    /// The example `guest_app`, which answers websockets.
    guest_app: PathBuf,
    /// A directory on disk for files of the bench.
    disk: PathBuf,
}

impl LoadPlan {
    /// Reads a plan.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn caller(&self) -> anyhow::Result<Caller> {
        Caller::unix(&self.socket, "")
    }

    /// Where the zone's proxy answers.
    fn proxy(&self) -> anyhow::Result<Ipv4Addr> {
        let all: Value = get(&mut self.caller()?, "/system/infrastructure")?;
        let address = all.get("appliance_wan_ip").and_then(Value::as_str);
        Ok(address.context("the appliance has no address")?.parse()?)
    }
}

type Measure = fn(&LoadPlan, &mut Table) -> anyhow::Result<()>;

/// What is measured, in this order.
pub const PARTS: [(&str, Measure); 4] = [
    ("rows", rows::measure),
    ("routes", routes::measure),
    ("sandboxes", sandboxes::measure),
    ("guests", guests::measure),
];

/// A document of the API.
fn get<T: for<'a> Deserialize<'a>>(caller: &mut Caller, path: &str) -> anyhow::Result<T> {
    let text = caller.ok("GET", &format!("/api/v1{path}"), "")?;
    serde_json::from_slice(&text).with_context(|| format!("the answer to GET {path}"))
}

/// Deploys an app; returns when it has answered, and how long that took.
fn deploy(caller: &mut Caller, recipe: &str, name: &str) -> anyhow::Result<Duration> {
    let request = serde_json::json!({"app_id": recipe, "instance_name": name}).to_string();
    let began = Instant::now();
    let (status, answer) = caller.call("POST", "/api/v1/apps/deploy?wait=35s", &request)?;
    ensure!(
        status == 201,
        "{name} does not run: {status} {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(began.elapsed())
}

/// Several callers at once do something with each of some numbers; returns when all of it is done.
fn share(
    plan: &LoadPlan,
    callers: usize,
    numbers: Range<usize>,
    act: impl Fn(&mut Caller, usize) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Duration> {
    let next = AtomicUsize::new(numbers.start);
    let began = Instant::now();
    let call = || -> anyhow::Result<()> {
        let mut caller = plan.caller()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(());
            }
            act(&mut caller, number)?;
        }
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(call)).collect();
        callers.into_iter().try_for_each(|caller| {
            let ended = caller.join();
            ended.ok().context("a caller panicked")?
        })
    })?;
    Ok(began.elapsed())
}

/// Waits until a list of the API is empty.
fn until_empty(caller: &mut Caller, list: &str, patience: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let left: Vec<Value> = get(caller, list)?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            began.elapsed() < patience,
            "{} of {list} are left: {}",
            left.len(),
            left.first().map(Value::to_string).unwrap_or_default()
        );
        std::thread::sleep(LOOK);
    }
}

/// The mean of some times.
fn mean(times: &[Duration]) -> Duration {
    let count = u32::try_from(times.len()).unwrap_or(u32::MAX).max(1);
    times.iter().sum::<Duration>() / count
}

fn seconds(time: &Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn mib(bytes: &u64) -> String {
    format!("{:.1} MiB", *bytes as f64 / f64::from(1 << 20))
}
