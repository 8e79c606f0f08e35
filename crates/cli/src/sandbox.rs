//! `sandbox …`: guests for code that nobody vouches for, with a life of a stated length.

use std::time::Duration;

use api::egress::Egress;
use api::sandbox::{Sandbox, SandboxRequest};
use api::{InstanceName, ZoneName};
use clap::{Args, Subcommand};
use client::Client;

use crate::deploy::fresh_key;
use crate::exec::CommandArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::limits::LimitArgs;
use crate::progress::elapsed;
use crate::quantity;
use crate::screen::Screen;
use crate::table::{Facts, Table};

/// How long the start of a sandbox may take; its image may have to be built first.
const START: Duration = Duration::from_secs(600);

/// `sandbox …`
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Make a sandbox, run one command in it, and remove it
    #[command(
        override_usage = "proximity sandbox run [OPTIONS] -- <ARGV>...",
        after_help = "\
Examples:
  proximity sandbox run -- python3 -c 'print(6 * 7)'
  proximity sandbox run -- sh < build.sh
  proximity sandbox run --memory 1G --timeout 5m -t -- bash

The sandbox goes with the command, whatever ends it; if we can't say so any more, by its time to live.
Exit codes are those of `proximity exec`."
    )]
    Run(RunArgs),
    /// Make a sandbox and wait until commands can be run in it
    #[command(
        after_help = "Examples:\n  proximity sandbox create\n  proximity sandbox create --name lab --ttl 4h --memory 1G\n\nIt ends by itself when its time is over: `proximity sandbox extend NAME --ttl 1h` gives it more."
    )]
    Create(CreateArgs),
    /// List the sandboxes and how long they live
    List,
    /// Let a sandbox live so long from now on
    #[command(after_help = "Examples:\n  proximity sandbox extend lab --ttl 2h")]
    Extend(ExtendArgs),
    /// End sandboxes and remove everything of them
    #[command(
        after_help = "Examples:\n  proximity sandbox kill lab\n  proximity sandbox kill lab test"
    )]
    Kill(KillArgs),
}

/// What a sandbox should be.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// What it is made of, see `proximity image list` [default: debian]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// How long it lives: 30m, 4h; at most 720h [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    pub ttl: Option<Duration>,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What it may reach outside its zone: off, internet, or networks and names with commas between them
    #[arg(long, value_name = "POLICY", default_value = "internet")]
    pub egress: Egress,
}

impl SandboxArgs {
    fn request(&self, name: Option<InstanceName>) -> SandboxRequest {
        SandboxRequest {
            name: name.map(Into::into),
            image: self.image.clone(),
            ttl_s: self.ttl.map(|t| t.as_secs()),
            zone: self.zone.clone().map(Into::into),
            limits: self.limits.request(),
            egress: self.egress.clone(),
        }
    }
}

/// `sandbox run`
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    #[command(flatten)]
    pub command: CommandArgs,
}

/// `sandbox create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name [default: made of its id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<InstanceName>,
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// `sandbox extend`
#[derive(Debug, Args)]
pub struct ExtendArgs {
    /// The sandbox, by name or id
    pub name: String,
    /// From now on: 30m, 4h; at most 720h
    #[arg(long, value_name = "TIME", value_parser = quantity::duration, default_value = "1h")]
    pub ttl: Duration,
}

/// `sandbox kill`
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The sandboxes, by name or id
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Runs `sandbox …`.
pub async fn run(
    client: &Client,
    command: SandboxCommand,
    screen: &Screen,
) -> Result<Exit, Failure> {
    match command {
        SandboxCommand::Run(args) => run_once(client, args, screen).await,
        SandboxCommand::Create(args) => {
            let sandbox = create(client, &args.sandbox, args.name).await?;
            screen.result(&sandbox, created)
        }
        SandboxCommand::List => {
            let sandboxes = client.sandboxes().await?;
            let none = "no sandboxes; make one: `proximity sandbox create`";
            screen.list(&sandboxes, none, table)
        }
        SandboxCommand::Extend(args) => {
            let sandbox = client.extend_sandbox(&args.name, args.ttl).await?;
            screen.result(&sandbox, |s| {
                format!("{} lives for {} more", s.name, left(s))
            })
        }
        SandboxCommand::Kill(args) => kill(client, &args.names, screen).await,
    }
}

/// Makes a sandbox; what comes back can run commands.
pub async fn create(
    client: &Client,
    args: &SandboxArgs,
    name: Option<InstanceName>,
) -> Result<Sandbox, Failure> {
    let request = args.request(name);
    Ok(client
        .create_sandbox(&request, &fresh_key()?, START)
        .await?)
}

/// One command in a sandbox of its own.
async fn run_once(client: &Client, args: RunArgs, screen: &Screen) -> Result<Exit, Failure> {
    // What is wrong with the call is said before anything is made.
    let input = args.command.input(screen)?;
    let sandbox = create(client, &args.sandbox, None).await?;
    let ran = args
        .command
        .run(client, &sandbox.name, None, input, true, screen)
        .await;
    let gone = |e: &client::Error| matches!(e, client::Error::Problem(problem) if problem.code == "unknown_instance");
    // One whose time was over first is gone already.
    if let Err(e) = client.kill_sandbox(sandbox.name.as_str()).await
        && !gone(&e)
    {
        let left = left(&sandbox);
        screen.warn(&format!(
            "proximity: the sandbox {} could not be removed ({e}); it ends by itself after {left}",
            sandbox.name
        ));
    }
    ran
}

/// Ends sandbox after sandbox. One that can't be ended keeps none of the others; the first failure is
/// the command's.
async fn kill(client: &Client, names: &[String], screen: &Screen) -> Result<Exit, Failure> {
    let mut accepted = Vec::new();
    let mut first_failure = None;
    for name in names {
        match client.kill_sandbox(name).await {
            Ok(operation) => accepted.push(operation),
            Err(e) => {
                let failure = Failure::from(e);
                first_failure.get_or_insert(failure);
            }
        }
    }
    if let Some(failure) = first_failure {
        return Err(failure);
    }
    screen.result(&accepted, |_| {
        format!("{} on the way out", names.join(", "))
    })
}

fn left(sandbox: &Sandbox) -> String {
    elapsed(Duration::from_secs(sandbox.expires_in_s))
}

fn created(sandbox: &Sandbox) -> String {
    let facts = Facts::new()
        .fact("address", sandbox.ip)
        .fact(
            "lives",
            format!("{} (until {})", left(sandbox), sandbox.expires_at),
        )
        .fact("egress", &sandbox.egress)
        .fact("try", format!("proximity exec {} -- id", sandbox.name))
        .text(2);
    format!("{} is {}\n{facts}", sandbox.name, sandbox.status.as_str())
}

fn table(sandboxes: &[Sandbox]) -> String {
    let mut table = Table::new(&["NAME", "IMAGE", "ADDRESS", "STATUS", "LEFT"]);
    for sandbox in sandboxes {
        table.row([
            sandbox.name.to_string(),
            sandbox.image.to_string(),
            sandbox.ip.to_string(),
            sandbox.status.as_str().to_owned(),
            match sandbox.warned_in_s {
                0 => format!("{}, ends soon", left(sandbox)),
                _ => left(sandbox),
            },
        ]);
    }
    table.text()
}
