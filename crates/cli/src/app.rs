//! `app …`: the catalog, and what can be done to an app once it is there. `deploy` has its own
//! module.

use std::io::Write as _;

use api::app::{App, RecipeSummary};
use api::{InstanceName, RecipeId};
use clap::{Args, Subcommand};
use client::{Change, Client};

use crate::deploy::{self, DeployArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::follow;
use crate::guest_text;
use crate::screen::Screen;
use crate::table::{Facts, Table};

/// `app …`
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// List what can be deployed, or show one recipe with its parameters
    Catalog(CatalogArgs),
    /// Deploy an app and wait until it answers
    Deploy(DeployArgs),
    /// List the apps
    List,
    /// Show one app
    Show(NameArgs),
    /// Delete apps and their data
    #[command(
        after_help = "Examples:\n  proximity app delete web\n  proximity app delete web db --yes"
    )]
    Delete(DeleteArgs),
    /// Start an app that is stopped
    Start(NameArgs),
    /// Stop an app
    Stop(NameArgs),
    /// Stop an app and start it again
    Restart(NameArgs),
    /// Print the last lines of an app's log
    #[command(
        after_help = "Examples:\n  proximity app logs web\n  proximity app logs web -n 1000 | grep error"
    )]
    Logs(LogsArgs),
}

/// `app catalog`
#[derive(Debug, Args)]
pub struct CatalogArgs {
    /// Show this recipe only
    pub recipe: Option<RecipeId>,
}

/// Commands about one app.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The app
    pub name: InstanceName,
}

/// `app delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The apps
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<InstanceName>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `app logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The app
    pub name: InstanceName,
    /// How many lines
    #[arg(short = 'n', long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub lines: u32,
    /// Go on as lines come (comes later)
    #[arg(short, long)]
    pub follow: bool,
}

/// Runs `app …`.
pub async fn run(client: &Client, command: AppCommand, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        AppCommand::Catalog(args) => catalog(client, &args, screen).await,
        AppCommand::Deploy(args) => deploy::run(client, args, screen).await,
        AppCommand::List => {
            let apps = client.apps().await?;
            let none = "no apps yet; deploy one: `proximity app deploy nginx`";
            screen.list(&apps, none, apps_text)
        }
        AppCommand::Show(args) => {
            let app = client.app(&args.name).await?;
            screen.result(&app, app_text)
        }
        AppCommand::Delete(args) => delete(client, &args, screen).await,
        AppCommand::Start(args) => change(client, &args.name, Change::Start, screen).await,
        AppCommand::Stop(args) => change(client, &args.name, Change::Stop, screen).await,
        AppCommand::Restart(args) => change(client, &args.name, Change::Restart, screen).await,
        AppCommand::Logs(args) => logs(client, &args, screen).await,
    }
}

async fn catalog(client: &Client, args: &CatalogArgs, screen: &Screen) -> Result<Exit, Failure> {
    if let Some(id) = &args.recipe {
        let recipe = client.recipe(id).await?;
        return screen.result(&recipe, recipe_text);
    }
    let recipes = client.catalog().await?;
    screen.list(&recipes, "the catalog is empty", recipes_text)
}

async fn change(
    client: &Client,
    name: &InstanceName,
    change: Change,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let accepted = client.change_app(name, change).await?;
    let done = match change {
        Change::Start => "is running",
        Change::Stop => "is stopped",
        Change::Restart => "is running again",
    };
    follow::finish_with_line(client, &accepted.operation_id, name, done, screen).await
}

/// Deletes app after app. One that fails keeps none of the others; the first failure is the
/// command's.
async fn delete(client: &Client, args: &DeleteArgs, screen: &Screen) -> Result<Exit, Failure> {
    let names: Vec<&str> = args.names.iter().map(InstanceName::as_str).collect();
    let question = format!("Delete {} with all data?", names.join(", "));
    screen.confirm(&question, args.yes)?;
    let mut gone = Vec::new();
    let mut first_failure = None;
    for name in &args.names {
        let outcome = match client.delete_app(name).await {
            Ok(accepted) => follow::follow(client, &accepted.operation_id, screen).await,
            Err(error) => Err(error.into()),
        };
        let failure = match outcome {
            Ok(operation) if operation.status == api::operation::OperationStatus::Succeeded => {
                if !screen.json() {
                    screen.print(&format!("{name} is deleted"))?;
                }
                gone.push(operation);
                continue;
            }
            Ok(operation) => {
                follow::report(&operation, screen);
                gone.push(operation);
                Failure::Reported(Exit::FAILED)
            }
            Err(failure @ Failure::Call(client::Error::Problem(_))) => failure,
            Err(failure) => return Err(failure),
        };
        match &first_failure {
            None => first_failure = Some(failure),
            Some(_) if !failure.is_silent() => {
                screen.warn(&format!(
                    "error: {name}: {}",
                    guest_text::line(&failure.to_string())
                ));
            }
            Some(_) => {}
        }
    }
    match first_failure {
        None | Some(Failure::Reported(_)) if screen.json() => screen.document(&gone)?,
        _ => {}
    }
    first_failure.map_or(Ok(Exit::OK), Err)
}

async fn logs(client: &Client, args: &LogsArgs, screen: &Screen) -> Result<Exit, Failure> {
    if args.follow {
        return Err(Failure::usage(
            "`app logs -f` comes in a later version",
            format!("print the last lines: `proximity app logs {}`", args.name),
        ));
    }
    let log = client.app_logs(&args.name, args.lines).await?;
    if screen.json() {
        let lines: Vec<_> = String::from_utf8_lossy(&log)
            .lines()
            .map(str::to_owned)
            .collect();
        screen.document(&serde_json::json!({ "name": args.name, "lines": lines }))?;
    } else if screen.out().terminal {
        let mut safe = guest_text::lines(&String::from_utf8_lossy(&log)).into_bytes();
        if !safe.is_empty() && !safe.ends_with(b"\n") {
            let _ = safe.write_all(b"\n");
        }
        screen.bytes(&safe)?;
    } else {
        // A file or a program gets what the guest wrote.
        screen.bytes(&log)?;
    }
    Ok(Exit::OK)
}

fn apps_text(apps: &[App]) -> String {
    let mut table = Table::new(&["NAME", "APP", "ZONE", "STATUS", "IP", "URL", "CREATED"]);
    for app in apps {
        table.row([
            app.name.to_string(),
            app.app_id.to_string(),
            app.zone.to_string(),
            app.status.as_str().to_owned(),
            app.ip.to_string(),
            app.url.clone(),
            app.created_at.clone(),
        ]);
    }
    table.text()
}

/// One app in full.
pub fn app_text(app: &App) -> String {
    let limits = &app.limits;
    let disk = limits.disk_gb.map(|gb| format!(", {gb} GiB disk"));
    let limits = format!(
        "{} cores, {} MiB memory, {} processes{}",
        f64::from(limits.cpu_millis) / 1000.0,
        limits.memory_mb,
        limits.pids,
        disk.unwrap_or_default()
    );
    let text = Facts::new()
        .fact("name", &app.name)
        .fact("status", app.status.as_str())
        .fact("url", &app.url)
        .fact("app", &app.app_id)
        .fact("zone", &app.zone)
        .fact("address", format!("{} port {}", app.ip, app.port))
        .fact("mac", app.mac)
        .fact(
            "vmid",
            app.vmid.map(|id| id.to_string()).unwrap_or_default(),
        )
        .fact("limits", limits)
        .fact("egress", &app.egress)
        .fact("image", &app.image)
        .fact("id", &app.id)
        .fact("created", &app.created_at)
        .text(0);
    match &app.failure {
        None => text,
        Some(failure) => format!("{text}\n\nfailed:\n{}", follow::told(failure)),
    }
}

fn recipes_text(recipes: &[RecipeSummary]) -> String {
    let mut table = Table::new(&["ID", "TITLE", "PORT", "MEMORY", "IMAGE", "DESCRIPTION"]);
    for recipe in recipes {
        table.row([
            recipe.id.to_string(),
            recipe.title.clone(),
            recipe.port.to_string(),
            format!("{} MiB", recipe.limits.memory_mb),
            if recipe.image_cached {
                "ready"
            } else {
                "to build"
            }
            .to_owned(),
            recipe.description.clone(),
        ]);
    }
    table.text()
}

fn recipe_text(recipe: &RecipeSummary) -> String {
    let mut text = Facts::new()
        .fact("id", &recipe.id)
        .fact("title", &recipe.title)
        .fact("description", &recipe.description)
        .fact("port", recipe.port)
        .fact("memory", format!("{} MiB", recipe.limits.memory_mb))
        .fact("image", &recipe.image)
        .fact("cached", if recipe.image_cached { "yes" } else { "no" })
        .text(0);
    if !recipe.parameters.is_empty() {
        let mut table = Table::new(&["PARAMETER", "REQUIRED", "DESCRIPTION"]);
        for parameter in &recipe.parameters {
            table.row([
                parameter.name.clone(),
                if parameter.required { "yes" } else { "no" }.to_owned(),
                parameter.description.clone(),
            ]);
        }
        text.push_str("\n\n");
        text.push_str(&table.text());
    }
    text
}
