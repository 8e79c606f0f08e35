//! `orphan …`: guests that carry our mark and stand in no record.

use api::InstanceId;
use api::status::Orphan;
use clap::{Args, Subcommand};
use client::Client;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;

/// `orphan …`
#[derive(Debug, Subcommand)]
pub enum OrphanCommand {
    /// List guests that carry Proximity's mark and stand in no record
    List,
    /// Stop orphans and remove all of them, disks included
    ///
    /// What stands in a record is refused, and so is what does not carry Proximity's mark.
    #[command(after_help = "Examples:\n  proximity orphan remove i-0123456789abcdef --yes")]
    Remove(RemoveArgs),
}

/// `orphan remove`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The orphans, by id
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<InstanceId>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Runs `orphan …`.
pub async fn run(
    client: &Client,
    command: &OrphanCommand,
    screen: &Screen,
) -> Result<Exit, Failure> {
    match command {
        OrphanCommand::List => {
            let orphans = client.orphans().await?;
            let none = "no orphans: every guest with Proximity's mark stands in a record";
            screen.list(&orphans, none, table)
        }
        OrphanCommand::Remove(args) => remove(client, args, screen).await,
    }
}

/// Removes orphan after orphan. One that can't be removed keeps none of the others; the first failure is the
/// command's.
async fn remove(client: &Client, args: &RemoveArgs, screen: &Screen) -> Result<Exit, Failure> {
    let ids: Vec<&str> = args.ids.iter().map(InstanceId::as_str).collect();
    let question = format!("Remove {} with all data?", ids.join(", "));
    screen.confirm(&question, args.yes)?;
    let mut gone = Vec::new();
    let mut first_failure = None;
    for id in ids {
        match client.remove_orphan(id).await {
            Ok(orphan) => gone.push(orphan),
            Err(error) => {
                first_failure.get_or_insert(Failure::from(error));
            }
        }
    }
    match first_failure {
        Some(failure) => Err(failure),
        None => screen.result(&gone, |gone| {
            let ids: Vec<&str> = gone.iter().map(|o| o.id.as_str()).collect();
            format!("{} removed", ids.join(", "))
        }),
    }
}

/// One row an orphan.
fn table(orphans: &[Orphan]) -> String {
    let mut table = Table::new(&["ID", "NAME", "KIND", "ZONE", "STATE"]);
    for orphan in orphans {
        table.row([
            orphan.id.to_string(),
            orphan.name.clone().unwrap_or_default(),
            orphan.kind.clone().unwrap_or_default(),
            orphan.zone.clone().unwrap_or_default(),
            orphan.state.clone(),
        ]);
    }
    table.text()
}
