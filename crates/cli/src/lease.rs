//! `lease …`: DHCP leases, and addresses kept for machines that are no instances.

use std::net::Ipv4Addr;

use api::entry::{ReservationRequest, ReservationView};
use api::{InstanceName, MacAddr, ZoneName};
use clap::{Args, Subcommand};
use client::Client;
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::gateway;
use crate::screen::Screen;
use crate::table::Table;

/// `lease …`
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// List the leases
    List,
    /// List the addresses that are kept for machines which are no instances
    Reserved(ReservedArgs),
    /// Keep an address and a name for such a machine
    #[command(
        after_help = "Examples:\n  proximity lease reserve 02:00:00:00:00:07 10.20.0.251 printer"
    )]
    Reserve(ReserveArgs),
    /// Give a kept address back
    Release(ReleaseArgs),
}

/// `lease reserved`
#[derive(Debug, Args)]
pub struct ReservedArgs {
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `lease reserve`
#[derive(Debug, Args)]
pub struct ReserveArgs {
    /// The machine's Ethernet address
    pub mac: MacAddr,
    /// The address it gets
    pub address: Ipv4Addr,
    /// Its name in the zone's domain
    pub name: InstanceName,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `lease release`
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The machine's Ethernet address
    pub mac: MacAddr,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// Runs `lease …`.
pub async fn run(client: &Client, command: LeaseCommand, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        LeaseCommand::List => gateway::leases(client, screen).await,
        LeaseCommand::Reserved(args) => {
            let reserved = client.reservations(args.zone.as_ref()).await?;
            screen.list(&reserved, "no reservations", text)
        }
        LeaseCommand::Reserve(args) => {
            let request = ReservationRequest {
                mac: args.mac,
                address: args.address,
                name: args.name,
            };
            let view = client.reserve(args.zone.as_ref(), &request).await?;
            if screen.json() {
                screen.document(&view)?;
            } else {
                screen.note(&format!(
                    "{} is kept for {} as {}",
                    view.address, view.mac, view.name
                ));
            }
            Ok(Exit::OK)
        }
        LeaseCommand::Release(args) => {
            client.release(args.zone.as_ref(), args.mac).await?;
            if screen.json() {
                screen.document(&json!({ "released": args.mac }))?;
            } else {
                screen.note(&format!("nothing is kept for {} any more", args.mac));
            }
            Ok(Exit::OK)
        }
    }
}

fn text(reserved: &[ReservationView]) -> String {
    let mut table = Table::new(&["IP", "MAC", "NAME"]);
    for kept in reserved {
        table.row([
            kept.address.to_string(),
            kept.mac.to_string(),
            kept.name.to_string(),
        ]);
    }
    table.text()
}
