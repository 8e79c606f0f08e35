//! `node`: what a machine is told before it runs guests, and untold afterwards.

use std::path::Path;

use backends::node_network::{self, interfaces};
use clap::{Args, Subcommand};
use interfaces::Done;
use serde::Serialize;

use crate::configuration;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `node …`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Name the zones' bridges in /etc/network/interfaces, so that nothing else manages them
    ///
    /// One block between marked lines; the rest of the file stays as it is. The running network is not
    /// touched: bridges are made by `proximity up`. A machine without that file needs nothing.
    #[command(
        after_help = "Examples:\n  proximity node prepare\n  proximity node prepare --undo     take the block out again"
    )]
    Prepare(PrepareArgs),
}

/// `node prepare`
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Take out what was written
    #[arg(long)]
    undo: bool,
}

#[derive(Serialize)]
struct Prepared {
    file: &'static str,
    changed: bool,
    bridges: Vec<String>,
}

/// Runs one of them, on this machine and without a controller.
pub fn run(command: &NodeCommand, config: Option<&Path>, screen: &Screen) -> Result<Exit, Failure> {
    let NodeCommand::Prepare(args) = command;
    let bridges = if args.undo {
        Vec::new()
    } else {
        let zones = configuration::load(config)?.zones;
        let networks: Vec<_> = zones.values().map(|zone| zone.node_network()).collect();
        node_network::bridges(&networks)
    };
    let done = interfaces::prepare(Path::new(interfaces::FILE), &bridges).map_err(|error| {
        let failure = Failure::local(error.to_string());
        match error.hint {
            Some(hint) => failure.next(hint),
            None => failure,
        }
    })?;
    let prepared = Prepared {
        file: interfaces::FILE,
        changed: matches!(done, Done::Written | Done::Removed),
        bridges: bridges.iter().map(ToString::to_string).collect(),
    };
    screen.result(&prepared, |p| match done {
        Done::Written => format!("{} names {}", p.file, p.bridges.join(" and ")),
        Done::Removed => format!("{} is as it was before", p.file),
        Done::Nothing => format!("{} is as it should be", p.file),
        Done::NoFile => format!("there is no {}; nothing to do", p.file),
    })
}
