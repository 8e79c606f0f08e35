//! `appliance …`: the login of the management page, the zone's authority, operators' own sites.

use std::io::{self, IsTerminal as _, Read as _};

use api::ZoneName;
use api::gateway::{AppliancePassword, SiteView};
use clap::{Args, Subcommand};
use client::Client;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::password;
use crate::screen::Screen;
use crate::table::Table;

const SHORTEST: usize = 12;
const LONGEST: usize = 256;

/// `appliance …`
#[derive(Debug, Subcommand)]
pub enum ApplianceCommand {
    /// Set the password of the management page
    ///
    /// Asks for it twice without showing it. It never stands on a command line.
    #[command(
        after_help = "Examples:\n  proximity appliance password\n  pass show appliance | proximity appliance password --stdin"
    )]
    Password(PasswordArgs),
    /// Print the certificate of the zone's own authority, to trust on machines that open its pages
    ///
    /// It can sign for the zone's domain only.
    #[command(after_help = "\
Examples:
  proximity appliance ca > /usr/local/share/ca-certificates/proximity.crt && update-ca-certificates
  curl --cacert <(proximity appliance ca) https://web.prox.local/")]
    Ca(OfZoneArgs),
    /// List your own sites of the reverse proxy, and why one was refused
    Sites(OfZoneArgs),
}

/// `appliance ca` and `appliance sites`
#[derive(Debug, Args)]
pub struct OfZoneArgs {
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `appliance password`
#[derive(Debug, Args)]
pub struct PasswordArgs {
    /// Read it from standard input: one line, its newline left out
    #[arg(long)]
    pub stdin: bool,
}

/// Runs `appliance …`.
pub async fn run(
    client: &Client,
    command: &ApplianceCommand,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let args = match command {
        ApplianceCommand::Password(args) => args,
        ApplianceCommand::Ca(args) => {
            let authority = client.authority(args.zone.as_ref()).await?;
            return screen.result(&authority, |a| a.certificate.trim_end().to_owned());
        }
        ApplianceCommand::Sites(args) => {
            let sites = client.sites(args.zone.as_ref()).await?;
            return screen.list(&sites, "no sites of your own", sites_text);
        }
    };
    let password = if args.stdin {
        from_stdin()?
    } else if io::stdin().is_terminal() {
        asked_twice().await?
    } else {
        return Err(Failure::usage(
            "standard input is not a terminal",
            "to read the password from it, add --stdin",
        ));
    };
    check(&password)?;
    client
        .set_appliance_password(&AppliancePassword { password })
        .await?;
    if screen.json() {
        screen.document(&serde_json::json!({ "changed": true }))?;
    } else {
        screen.note("the password of the management page is set");
    }
    Ok(Exit::OK)
}

fn sites_text(sites: &[SiteView]) -> String {
    let mut table = Table::new(&["SITE", "STATE", "WHY"]);
    for site in sites {
        table.row([
            site.name.clone(),
            site.state.clone(),
            site.refused.clone().unwrap_or_default(),
        ]);
    }
    table.text()
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(4 * LONGEST as u64)
        .read_to_string(&mut text)
        .map_err(|e| Failure::local(format!("cannot read the password: {e}")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// Asks for a new password until it was given twice.
pub async fn asked_twice() -> Result<String, Failure> {
    let first = password::ask("New password: ").await?;
    check(&first)?;
    let second = password::ask("The same again: ").await?;
    if first == second {
        Ok(first)
    } else {
        Err(Failure::usage(
            "the two passwords differ",
            "try again; nothing was changed",
        ))
    }
}

fn check(password: &str) -> Result<(), Failure> {
    let length = password.chars().count();
    let what = if !(SHORTEST..=LONGEST).contains(&length) {
        format!("a password has {SHORTEST} to {LONGEST} characters, this one has {length}")
    } else if password.chars().any(char::is_control) {
        "a password must not hold control characters, newlines among them".to_owned()
    } else {
        return Ok(());
    };
    Err(Failure::usage(
        what,
        "choose another one; nothing was changed",
    ))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn passwords() {
        for (password, ok) in [
            ("", false),
            ("elevenchars", false),
            ("twelve chars", true),
            ("zwölf äöüß?!", true),
            ("with\nnewline in it", false),
            (&"x".repeat(256), true),
            (&"x".repeat(257), false),
        ] {
            assert_eq!(check(password).is_ok(), ok, "{password:?}");
        }
    }
}
