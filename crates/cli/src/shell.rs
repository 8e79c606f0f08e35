//! `shell`: a terminal in an instance, with the user's login shell or a program of one's own.

use std::io::{self, IsTerminal as _};

use api::InstanceName;
use api::exec::ExecRequest;
use clap::Args;
use client::Client;

use crate::exec::start;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::session::{self, Input};

/// Becomes the user's own shell as the guest knows it; no value of ours is in it.
const LOGIN_SHELL: [&str; 3] = ["/bin/sh", "-c", r#"exec "${SHELL:-/bin/sh}" -l"#];

/// `shell`
#[derive(Debug, Args)]
#[command(
    override_usage = "proximity shell [OPTIONS] <NAME> [-- <ARGV>...]",
    after_help = "\
Examples:
  proximity shell web                             root's login shell
  proximity shell web -u www-data -- bash         another user, another program

Every key goes to the instance, Ctrl-C too. At the beginning of a line, ~. leaves: the session ends,
and with it what runs in it; ~~ types one ~.

Exit codes: the program's own; 128+N signal N ended it or this command, 130 left by ~.; of ours:
1 failed, 2 wrong use, 3 controller not reachable or lost."
)]
pub struct ShellArgs {
    /// The instance
    pub name: InstanceName,
    /// Log in as this user (name or number) [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The program and its arguments instead of the login shell
    #[arg(value_name = "ARGV", last = true)]
    pub argv: Vec<String>,
}

/// Opens the terminal and stays until it ends.
pub async fn run(client: &Client, args: ShellArgs, screen: &Screen) -> Result<Exit, Failure> {
    if !io::stdin().is_terminal() || screen.json() {
        let name = &args.name;
        return Err(Failure::usage(
            "a shell needs a terminal on standard input",
            format!("for scripts: `proximity exec {name} -- sh -c '…'`, or `-- sh < FILE`"),
        ));
    }
    let argv = if args.argv.is_empty() {
        LOGIN_SHELL.map(str::to_owned).to_vec()
    } else {
        args.argv
    };
    let request = ExecRequest {
        argv,
        user: args.user,
        ..ExecRequest::default()
    };
    let start = start(request, Input::Terminal);
    session::run(client, &args.name, &start, Input::Terminal, true, screen).await
}
