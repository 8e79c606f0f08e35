//! The command line: every command, flag and help text, and what is said when it is wrong.
//!
//! Parses into checked values (names, durations, quantities); does nothing else.

use std::ffi::OsString;
use std::path::PathBuf;

use api::{InstanceName, ZoneName};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::{
    app, appliance, audit, config_check, copy, dns, egress, exec, forward, image, lease, node,
    operation, orphan, port, remote, route, sandbox, serve, shell,
};

/// Turns machines you own into a private cloud of isolated apps.
#[derive(Debug, Parser)]
#[command(
    name = "proximity",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  proximity doctor                        what this machine lacks, and the command that mends it
  proximity serve                         run the controller
  proximity up                            bring the network up
  proximity app deploy nginx web          an app in it
  proximity exec web -- nginx -v          a command in the app
  proximity shell web                     a terminal in it
  proximity cp index.html web:/srv/       a file into it

Exit codes: 0 success, 1 failed, 2 wrong use, 3 controller not reachable; `exec` passes the
command's own code on, see `proximity exec --help`.

Environment:
  PROXIMITY_URL    the controller's URL; without it, the unix socket in its data directory (root)
  PROXIMITY_TOKEN  the bearer token that goes with it
  NO_COLOR         plain ASCII"
)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub struct Globals {
    /// The controller, https://HOST:PORT or unix:/PATH [env: PROXIMITY_URL]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub url: Option<String>,
    /// The configuration file [default: /etc/proximity/config.yml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub config: Option<PathBuf>,
    /// Print one JSON document instead of tables and progress
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print results and errors only
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller
    Serve(serve::ServeArgs),
    /// Bring the configured zones up and wait until they are well
    #[command(after_help = "Examples:\n  proximity up\n  proximity up default --json")]
    Up(UpArgs),
    /// Take down everything of ours in the zones
    ///
    /// Refused while instances exist; the refusal lists them. --with-instances deletes them too.
    #[command(after_help = "Examples:\n  proximity down\n  proximity down --with-instances --yes")]
    Down(DownArgs),
    /// Show what runs and what drifts
    Status,
    /// Show what this machine lacks, and the command that mends it
    ///
    /// Looks at this machine only and changes nothing. Exit code 1 if something is lacking.
    Doctor,
    /// Show the facts of a zone, read from its appliance just now
    Infrastructure(InfrastructureArgs),
    /// Deploy and manage apps
    #[command(subcommand)]
    App(app::AppCommand),
    /// Sandboxes: guests for a while, for code that nobody vouches for
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// Run a command in an instance
    Exec(exec::ExecArgs),
    /// Open a terminal in an instance
    Shell(shell::ShellArgs),
    /// Copy a file to or from an instance
    Cp(copy::CopyArgs),
    /// Lead a port of this machine to a port of an instance
    Forward(forward::ForwardArgs),
    /// Print an app's URL, and open it in the browser where there is one
    Open(OpenArgs),
    /// What an instance may reach outside its zone, and what it was refused
    #[command(subcommand)]
    Egress(egress::EgressCommand),
    /// DHCP leases
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Names that the zones' DNS answers
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Routes of the reverse proxy
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// Published ports: ports of a zone's outside that lead to apps
    #[command(subcommand)]
    Port(port::PortCommand),
    /// Zones
    #[command(subcommand)]
    Zone(ListCommand),
    /// Commands on hosts of the configuration's vms, over SSH and without a controller
    Remote(remote::RemoteArgs),
    /// This machine as a node
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Images on this machine
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Operations: what runs, what ran, and how it went
    #[command(subcommand)]
    Operation(operation::OperationCommand),
    /// Guests that carry Proximity's mark and stand in no record
    #[command(subcommand)]
    Orphan(orphan::OrphanCommand),
    /// The zone's gateway guest
    #[command(subcommand)]
    Appliance(appliance::ApplianceCommand),
    /// The audit log: who did what, and that nobody changed it
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the versions of this program and of the controller
    Version,
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  proximity completions bash > /etc/bash_completion.d/proximity\n  proximity completions zsh > ~/.zfunc/_proximity"
    )]
    Completions(CompletionsArgs),
}

/// For nouns that can only be listed so far.
#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// List them
    List,
}

/// `config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration file and print what it comes to
    Check(config_check::ConfigCheckArgs),
}

/// `up`
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Zones [default: all]
    #[arg(value_name = "ZONE")]
    pub zones: Vec<ZoneName>,
}

/// `down`
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Zones [default: all]
    #[arg(value_name = "ZONE")]
    pub zones: Vec<ZoneName>,
    /// Delete the zones' instances too
    #[arg(long)]
    pub with_instances: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `infrastructure`
#[derive(Debug, Args)]
pub struct InfrastructureArgs {
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `open`
#[derive(Debug, Args)]
pub struct OpenArgs {
    /// The app
    pub name: InstanceName,
    /// Print the URL only
    #[arg(long)]
    pub print: bool,
}

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Prints the completion script.
pub fn completions(args: &CompletionsArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "proximity", &mut script);
    screen.bytes(&script)?;
    Ok(Exit::OK)
}

/// Shows help, or what is wrong with the command line.
pub fn refuse(error: &clap::Error, arguments: &[OsString]) -> Exit {
    // A reader that went away is no failure.
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::OK;
    }
    let exit = if is_exec(arguments) {
        // The low codes belong to the command in the guest.
        Exit::NOTHING_RAN
    } else {
        Exit::WRONG_USE
    };
    let mut ours = arguments.iter().take_while(|a| *a != "--");
    if ours.any(|a| a == "--json") {
        let text = error.render().to_string();
        let (what, hint) = text.split_once("\n\n").unwrap_or((&text, ""));
        let what = what.strip_prefix("error: ").unwrap_or(what);
        let failure = Failure::usage(what, hint.trim_end());
        let _ = Screen::new(true, true).document(&failure.document(exit));
    }
    exit
}

/// Whether a command line that could not be parsed was meant for `exec`, `sandbox run`, `remote exec` or `remote
/// script`: its first words that are neither flags nor a global flag's value.
fn is_exec(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().skip(1).map(|a| a.to_string_lossy());
    let mut noun: Option<String> = None;
    while let Some(word) = words.next() {
        match word.as_ref() {
            "--url" | "--config" => drop(words.next()),
            flag if flag.starts_with('-') => {}
            word @ ("sandbox" | "remote") if noun.is_none() => noun = Some(word.to_owned()),
            word => {
                return match noun.as_deref() {
                    Some("sandbox") => word == "run",
                    Some(_) => matches!(word, "exec" | "script"),
                    None => word == "exec",
                };
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exec_is_recognized_in_a_wrong_command_line() {
        let check = |line: &str, yes: bool| {
            let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
            assert_eq!(is_exec(&words), yes, "{line}");
        };
        check("proximity exec --bad", true);
        check("proximity --json --url http://x exec", true);
        check("proximity --url exec app list", false);
        check("proximity app exec", false);
        check("proximity --bad", false);
        check("proximity sandbox run --bad", true);
        check("proximity sandbox exec", false);
        check("proximity remote exec --bad", true);
        check("proximity remote script --bad", true);
        check("proximity remote hosts --bad", false);
    }
}
