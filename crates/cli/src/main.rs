//! `proximity`: the one binary. Reads the command line, hands it to the module of its noun, and
//! turns what comes back into an exit code.
//!
//! Rules that hold for every command: standard output carries the result only (with `--json`
//! exactly one JSON document, be it a result or an error); progress, questions and reasons go to
//! standard error; a reader that goes away early is no failure.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod app;
mod appliance;
mod arguments;
mod audit;
mod config_check;
mod configuration;
mod connection;
mod copy;
mod deploy;
mod dns;
mod dns_setup;
mod doctor;
mod egress;
mod ending;
mod exec;
mod exit;
mod failure;
mod follow;
mod forward;
mod gateway;
mod guest_text;
mod image;
mod lease;
mod limits;
mod node;
mod open;
mod operation;
mod orphan;
mod password;
mod port;
mod progress;
mod quantity;
mod remote;
mod route;
mod sandbox;
mod screen;
mod serve;
mod session;
mod shell;
mod signals;
mod status;
mod table;
mod terminal;
mod version;
mod zone;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::arguments::{Cli, Command, ConfigCommand};
use crate::audit::AuditCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let exit = match Cli::try_parse_from(&arguments) {
        Ok(cli) => run(cli),
        Err(error) => arguments::refuse(&error, &arguments),
    };
    ExitCode::from(exit.code())
}

fn run(cli: Cli) -> Exit {
    let screen = Screen::new(cli.globals.json, cli.globals.quiet);
    let is_exec = match &cli.command {
        Command::Exec(_) | Command::Sandbox(sandbox::SandboxCommand::Run(_)) => true,
        Command::Remote(args) => args.command.is_exec(),
        _ => false,
    };
    match dispatch(cli, &screen) {
        Ok(exit) => exit,
        Err(failure) => {
            let exit = if is_exec {
                failure.exec_exit()
            } else {
                failure.exit()
            };
            screen.failure(&failure, exit);
            exit
        }
    }
}

/// What needs no controller runs here; everything else needs the runtime and a client.
fn dispatch(cli: Cli, screen: &Screen) -> Result<Exit, Failure> {
    let globals = &cli.globals;
    match cli.command {
        Command::Serve(args) => serve::run(&args, globals.config.as_deref(), screen),
        Command::Image(command) => image::run(&command, globals.config.as_deref(), screen),
        Command::Config(ConfigCommand::Check(args)) => {
            config_check::run(&args, globals.config.as_deref(), screen)
        }
        Command::Doctor => doctor::run(globals, screen),
        Command::Node(command) => node::run(&command, globals.config.as_deref(), screen),
        Command::Audit(AuditCommand::Verify(args)) => audit::verify(&args, globals, screen),
        Command::Completions(args) => arguments::completions(&args, screen),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Failure::local(format!("cannot start: {e}")))?;
            let outcome = runtime.block_on(ask(command, globals, screen));
            // A thread that still waits for a key press must not hold the process.
            runtime.shutdown_timeout(Duration::ZERO);
            outcome
        }
    }
}

/// The commands that talk to a controller or to hosts.
async fn ask(
    command: Command,
    globals: &arguments::Globals,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let client = connection::client(globals);
    match command {
        // Needs no controller, but the runtime.
        Command::Remote(args) => remote::run(args, globals.config.as_deref(), screen).await,
        // Shows this program's version whatever the connection is like.
        Command::Version => version::run(client, screen).await,
        Command::Up(args) => zone::up(&client?, &args, screen).await,
        Command::Down(args) => zone::down(&client?, &args, screen).await,
        Command::Status => status::status(&client?, screen).await,
        Command::Infrastructure(args) => status::infrastructure(&client?, &args, screen).await,
        Command::App(command) => app::run(&client?, command, screen).await,
        Command::Sandbox(command) => sandbox::run(&client?, command, screen).await,
        Command::Exec(args) => exec::run(&client?, args, screen).await,
        Command::Shell(args) => shell::run(&client?, args, screen).await,
        Command::Cp(args) => copy::run(&client?, args, screen).await,
        Command::Forward(args) => forward::run(&client?, args, screen).await,
        Command::Open(args) => open::run(&client?, &args, screen).await,
        Command::Lease(command) => lease::run(&client?, command, screen).await,
        Command::Dns(command) => dns::run(&client?, command, screen).await,
        Command::Route(command) => route::run(&client?, command, screen).await,
        Command::Port(command) => port::run(&client?, command, screen).await,
        Command::Zone(_) => zone::list(&client?, screen).await,
        Command::Egress(command) => egress::run(&client?, &command, screen).await,
        Command::Operation(command) => operation::run(&client?, &command, screen).await,
        Command::Orphan(command) => orphan::run(&client?, &command, screen).await,
        Command::Appliance(command) => appliance::run(&client?, &command, screen).await,
        Command::Audit(AuditCommand::Tail(args)) => audit::tail(&client?, &args, screen).await,
        Command::Serve(_)
        | Command::Image(_)
        | Command::Config(_)
        | Command::Audit(AuditCommand::Verify(_))
        | Command::Doctor
        | Command::Node(_)
        | Command::Completions(_) => Err(Failure::local("this command needs no controller")),
    }
}
