//! `operation list` and `operation watch`.

use api::OperationId;
use api::operation::Operation;
use clap::{Args, Subcommand};
use client::Client;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::follow;
use crate::guest_text;
use crate::screen::Screen;
use crate::table::Table;

/// `operation …`
#[derive(Debug, Subcommand)]
pub enum OperationCommand {
    /// List operations, the newest ones
    List,
    /// Follow an operation from its first step to its end; exit code 1 if it failed
    Watch(WatchArgs),
}

/// `operation watch`
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The operation's id, like op-0123456789abcdef
    pub id: OperationId,
}

/// Runs `operation …`.
pub async fn run(
    client: &Client,
    command: &OperationCommand,
    screen: &Screen,
) -> Result<Exit, Failure> {
    match command {
        OperationCommand::List => {
            screen.list(&client.operations().await?, "no operations yet", table)
        }
        OperationCommand::Watch(args) => {
            let operation = follow::finish(client, &args.id, screen).await?;
            screen.result(&operation, |o| {
                guest_text::line(&format!(
                    "{} of {} succeeded",
                    o.kind.replace('_', " "),
                    o.target
                ))
            })
        }
    }
}

fn table(operations: &[Operation]) -> String {
    let mut table = Table::new(&["ID", "KIND", "TARGET", "STATUS", "STARTED", "FINISHED"]);
    for operation in operations {
        table.row([
            operation.id.to_string(),
            operation.kind.clone(),
            operation.target.clone(),
            operation.status.as_str().to_owned(),
            operation.created_at.clone(),
            operation.finished_at.clone().unwrap_or_default(),
        ]);
    }
    table.text()
}
