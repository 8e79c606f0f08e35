//! The command line of the testbed: virtual hypervisor hosts, and the processes they are made of.
//!
//! Owns no state: it parses, calls the library, and turns errors into one line and an exit code.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use testbed::role::{self, Machine, Spec};
use testbed::{Entry, Forward, HostName, HostOptions, Record, Shown};

/// Exit code when the testbed itself fails, as env(1) and its kin have it.
const FAILED: u8 = 125;

/// Virtual hypervisor hosts: run anything beside bridges, containers, a LAN and an internet of its own.
///
/// Every host has: bridge vmbr0 with the node at 192.168.50.10/24; a router at 192.168.50.1 with DHCP, DNS
/// and an internet that serves HTTP and DNS at 8.8.8.8 and 1.1.1.1; a LAN machine at 192.168.50.20 with
/// HTTP; something on the node's port 8006. No packet leaves the host.
#[derive(Debug, Parser)]
#[command(name = "testbed")]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start a host, run a command in it, end the host.
    ///
    /// The exit code is the command's, 128 + N after signal N, 125 when the testbed itself failed.
    Host(HostArgs),
    /// Run another command in a running host.
    Enter(EnterArgs),
    /// Show the running hosts.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// End a host and remove every trace of it.
    Rm {
        /// The host's name.
        name: HostName,
    },
    /// End everything in a host and start it again over the same disk.
    Reboot {
        /// The host's name.
        name: HostName,
    },
    /// Make a port of a host reachable on this machine's loopback; prints the address when it listens.
    Forward(ForwardArgs),
    /// Remove what dead hosts left; prints their names.
    Sweep(StateArgs),
    #[command(hide = true)]
    HostKeeper(Spec),
    #[command(hide = true)]
    HostLaunch {
        #[arg(long)]
        inside: bool,
        #[command(flatten)]
        spec: Spec,
    },
    #[command(hide = true)]
    HostInit(Spec),
    #[command(hide = true)]
    HostMachine { role: Machine },
    #[command(hide = true)]
    HostDaemon {
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct StateArgs {
    /// The directory that holds one directory for each host.
    #[arg(long, value_name = "DIR", env = testbed::STATE_DIR_VARIABLE, default_value = testbed::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
struct HostArgs {
    /// The host's name, also its host name inside; random by default.
    #[arg(long)]
    name: Option<HostName>,
    /// Leave the host running after the command; then the command may be left out.
    #[arg(long)]
    keep: bool,
    /// Leave port 8006 of the node free.
    #[arg(long)]
    without_node_service: bool,
    /// Say on stderr what is done and how long it took.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    state: StateArgs,
    /// The command and its arguments.
    #[arg(last = true, value_name = "CMD", required_unless_present = "keep")]
    argv: Vec<OsString>,
}

#[derive(Debug, Args)]
struct EnterArgs {
    /// The host's name.
    name: HostName,
    /// A variable for the command, beside those of the caller.
    #[arg(long, value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Run it in the background, in a session of its own; prints its pid on the machine.
    #[arg(long, requires = "log")]
    detach: bool,
    /// The file to which a detached command's output is appended.
    #[arg(long, value_name = "FILE", requires = "detach")]
    log: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, value_name = "CMD", required = true)]
    argv: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ForwardArgs {
    /// The host's name.
    name: HostName,
    /// A loopback address of this machine, as 127.0.0.1:8080; port 0 takes a free one.
    listen: SocketAddr,
    /// An address as the host sees it, as 10.20.0.2:80.
    target: SocketAddr,
    /// Go on in the background until the host ends; prints the address and the pid.
    #[arg(long)]
    detach: bool,
    #[arg(long, hide = true, conflicts_with = "detach")]
    as_daemon: bool,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    if name.is_empty() {
        Err("the name is empty".to_owned())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().action) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(action: Action) -> anyhow::Result<u8> {
    testbed::require_root()?;
    match action {
        Action::Host(args) => return host(args),
        Action::Enter(args) => return enter(args),
        Action::List { json } => list(json)?,
        Action::Rm { name } => testbed::remove(&name)?,
        Action::Reboot { name } => drop(testbed::reboot(&name)?),
        Action::Forward(args) => forward(&args)?,
        Action::Sweep(args) => {
            for name in testbed::sweep(&args.state_dir)? {
                println!("{name}");
            }
        }
        Action::HostKeeper(spec) => role::keep(&spec)?,
        Action::HostLaunch { spec, inside } => match role::launch(&spec, inside)? {},
        Action::HostInit(spec) => match role::init(&spec)? {},
        Action::HostMachine { role } => role::machine(role)?,
        Action::HostDaemon { argv } => match role::daemon(&argv)? {},
    }
    Ok(0)
}

fn host(args: HostArgs) -> anyhow::Result<u8> {
    let options = HostOptions {
        name: args.name,
        state_dir: Some(args.state.state_dir),
        keep: args.keep,
        without_node_service: args.without_node_service,
    };
    let shown = if args.verbose {
        Shown::Steps
    } else {
        Shown::Quiet
    };
    Ok(testbed::run_in_host(options, &args.argv, shown)?)
}

fn enter(args: EnterArgs) -> anyhow::Result<u8> {
    let record = Record::find(&args.name)?;
    let entry = Entry {
        argv: args.argv,
        env: args.env,
    };
    match args.log {
        Some(log) => {
            println!("{}", role::detached(&record, &entry, &log)?);
            Ok(0)
        }
        None => Ok(role::foreground(&record, &entry)?),
    }
}

fn list(json: bool) -> anyhow::Result<()> {
    let records = Record::all()?;
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&records).context("encode the list")?
        );
        return Ok(());
    }
    println!("{:<20} {:>8} {:<6} STATE", "NAME", "PID", "KEPT");
    for record in records {
        let kept = if record.keep { "yes" } else { "no" };
        println!(
            "{:<20} {:>8} {kept:<6} {}",
            record.name.as_str(),
            record.init.pid,
            record.state.display()
        );
    }
    Ok(())
}

fn forward(args: &ForwardArgs) -> anyhow::Result<()> {
    let record = Record::find(&args.name)?;
    if args.detach {
        let (listen, pid) = role::detach_forward(&record, args.listen, args.target)?;
        println!("{listen} {pid}");
        return Ok(());
    }
    let forward = match Forward::start(&record, args.listen, args.target) {
        // The starter reads one line, whatever it says.
        Err(error) if args.as_daemon => {
            println!("{:#}", anyhow::Error::from(error));
            return Ok(());
        }
        started => started?,
    };
    if args.as_daemon {
        role::note_forward(&record)?;
        println!("{} {}", forward.listen(), std::process::id());
    } else {
        println!("{}", forward.listen());
    }
    forward.wait();
    Ok(())
}
