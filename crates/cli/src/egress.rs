//! `egress show` and `egress set`: what an instance may reach outside its zone.

use api::InstanceName;
use api::egress::{Egress, EgressView};
use clap::{Args, Subcommand};
use client::Client;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;

/// `egress …`
#[derive(Debug, Subcommand)]
pub enum EgressCommand {
    /// Show the policy of an instance, and what it refused in the last hour
    Show(EgressShowArgs),
    /// Change the policy of an instance while it runs
    ///
    /// It holds when the command returns, and connections that it does not allow are cut.
    #[command(after_help = "\
Policies:
  internet            every public address (the default)
  off                 nothing outside the zone; DNS answers the zone's names only
  example.com,*.example.org,8.8.8.0/24
                      these names, names below one, and networks; other names are not even asked for

Examples:
  proximity egress set web off
  proximity egress set lab api.example.com,*.example.org")]
    Set(EgressSetArgs),
}

/// `egress show`
#[derive(Debug, Args)]
pub struct EgressShowArgs {
    /// The app or sandbox
    pub name: InstanceName,
}

/// `egress set`
#[derive(Debug, Args)]
pub struct EgressSetArgs {
    /// The app or sandbox
    pub name: InstanceName,
    /// off, internet, or networks and names with commas between them
    #[arg(value_name = "POLICY")]
    pub policy: Egress,
}

/// Runs `egress …`.
pub async fn run(
    client: &Client,
    command: &EgressCommand,
    screen: &Screen,
) -> Result<Exit, Failure> {
    match command {
        EgressCommand::Show(args) => {
            let view = client.egress(args.name.as_str()).await?;
            screen.result(&view, |view| shown(&args.name, view))
        }
        EgressCommand::Set(args) => {
            let view = client.set_egress(args.name.as_str(), &args.policy).await?;
            screen.result(&view, |view| {
                format!("{} may reach: {}", args.name, view.egress)
            })
        }
    }
}

fn shown(name: &InstanceName, view: &EgressView) -> String {
    let policy = format!("{name} may reach: {}", view.egress);
    if view.refused.is_empty() {
        return format!("{policy}\nnothing was refused in the last hour");
    }
    let mut table = Table::new(&["REFUSED", "TIMES"]);
    for refused in &view.refused {
        table.row([refused.what.clone(), refused.times.to_string()]);
    }
    format!("{policy}\n{}", table.text())
}
