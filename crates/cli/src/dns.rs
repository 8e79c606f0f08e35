//! `dns …`: names that the zones' DNS answers.

use std::net::Ipv4Addr;

use api::entry::RecordRequest;
use api::{HostName, InstanceName, ZoneName};
use clap::{Args, Subcommand};
use client::Client;
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::{dns_setup, gateway};

/// `dns …`
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// List the names
    List,
    /// Add a name for an address or an app
    #[command(after_help = "\
Examples:
  proximity dns add nas.prox.local 192.168.1.5
  proximity dns add db.prox.local postgres         the address of the app postgres, whatever it is by then")]
    Add(AddArgs),
    /// Remove an added name
    Rm(RmArgs),
    /// Print the lines by which other machines resolve the zone's names and reach its addresses
    ///
    /// For systemd-resolved, NetworkManager and dnsmasq, macOS and Windows. Changes nothing.
    Setup(SetupArgs),
}

/// `dns setup`
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `dns add`
#[derive(Debug, Args)]
pub struct AddArgs {
    /// NAME.DOMAIN of the zone
    pub name: HostName,
    /// An IPv4 address, or the name of an app
    #[arg(value_name = "ADDRESS|APP")]
    pub target: String,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `dns rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The name
    pub name: HostName,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// Runs `dns …`.
pub async fn run(client: &Client, command: DnsCommand, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        DnsCommand::List => gateway::dns(client, screen).await,
        DnsCommand::Add(args) => {
            let request = request(&args)?;
            client.add_record(args.zone.as_ref(), &request).await?;
            if screen.json() {
                screen.document(&request)?;
            } else {
                screen.note(&format!("{} stands for {}", args.name, args.target));
            }
            Ok(Exit::OK)
        }
        DnsCommand::Setup(args) => {
            let facts = client.infrastructure(args.zone.as_ref()).await?;
            dns_setup::run(&facts, screen)
        }
        DnsCommand::Rm(args) => {
            client.remove_record(args.zone.as_ref(), &args.name).await?;
            if screen.json() {
                screen.document(&json!({ "removed": args.name }))?;
            } else {
                screen.note(&format!("{} is gone", args.name));
            }
            Ok(Exit::OK)
        }
    }
}

fn request(args: &AddArgs) -> Result<RecordRequest, Failure> {
    let address: Option<Ipv4Addr> = args.target.parse().ok();
    let instance: Option<InstanceName> = match address {
        Some(_) => None,
        None => Some(args.target.parse().map_err(|_| {
            Failure::usage(
                format!(
                    "{:?} is neither an IPv4 address nor an app's name",
                    args.target
                ),
                "proximity dns add --help",
            )
        })?),
    };
    Ok(RecordRequest {
        name: args.name.clone(),
        address,
        instance,
    })
}
