//! Measures the agent and the way to it beside others who do the same, in one run, and prints a table:
//! `bench PLAN [PART…]`, parts being `agent`, `exec`, `create` and `copy`. Meant to be started by
//! `scripts/bench-link` in a virtual host, where the peers of the [plan](plan::Plan) run.
//!
//! `bench --load PLAN [PART…]` measures what [many of everything](load) cost, parts being `rows`, `routes`,
//! `sandboxes` and `guests`; `scripts/bench-load` starts it.
//!
//! Exit code 0 when every goal is met that could be measured, 1 when one is not, 2 when it failed itself.

mod agent;
mod caller;
mod controller;
mod copy;
mod load;
mod peer;
mod plan;
mod table;
mod timing;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;

use crate::load::LoadPlan;
use crate::plan::Plan;
use crate::table::Table;

type Measure = fn(&Plan, &mut Table) -> anyhow::Result<()>;

/// What is measured, and whether the relay can be on the way.
const PARTS: [(&str, bool, Measure); 4] = [
    ("agent", false, |plan, table| {
        agent::measure(&plan.agent, &plan.memory, table)
    }),
    ("exec", true, controller::exec),
    ("create", true, controller::create),
    ("copy", true, copy::measure),
];

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(missed) => {
            println!("{missed} goals are not met");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> anyhow::Result<usize> {
    let mut arguments = std::env::args().skip(1).peekable();
    let loads = arguments.next_if_eq("--load").is_some();
    let plan: PathBuf = arguments.next().context("say which plan")?.into();
    let wanted: Vec<String> = arguments.collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| part == name);
    let mut table = Table::default();
    println!("load at the beginning: {}", load_average()?);
    let mut broken = Vec::new();
    let mut measured = |name: &str, measure: &mut dyn FnMut(&mut Table) -> anyhow::Result<()>| {
        let began = Instant::now();
        if let Err(error) = measure(&mut table) {
            broken.push(format!("{name} broke off: {error:#}"));
        }
        eprintln!("bench: {name}: {:.1} s", began.elapsed().as_secs_f64());
    };
    if loads {
        let plan = LoadPlan::read(&plan)?;
        for (name, measure) in load::PARTS.into_iter().filter(|(name, _)| is_wanted(name)) {
            measured(name, &mut |table| measure(&plan, table));
        }
    } else {
        let plan = Plan::read(&plan)?;
        let possible = |relayed: bool| relayed || !plan.through_relay;
        for (name, relayed, measure) in PARTS {
            if possible(relayed) && is_wanted(name) {
                measured(name, &mut |table| measure(&plan, table));
            }
        }
    }
    println!("load at the end: {}", load_average()?);
    println!("times are medians, in parentheses 90th and 99th percentile and how many\n");
    println!("{table}");
    anyhow::ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(table.missed())
}

fn load_average() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("read the load")?;
    let words: Vec<&str> = text.split(' ').take(3).collect();
    Ok(words.join(" "))
}
