//! `port …`: ports of a zone's outside that lead to apps.

use std::num::NonZeroU16;

use api::ZoneName;
use api::entry::{PortRequest, PortView, Protocol};
use clap::{Args, Subcommand};
use client::Client;
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::forward::Target;
use crate::screen::Screen;
use crate::table::Table;

/// `port …`
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// List the published ports
    List(ListArgs),
    /// Lead a port of the zone's outside to a port of an app
    ///
    /// The port is open on the appliance's WAN address. With a managed WAN it is open on every address
    /// of the node too, for who comes from elsewhere.
    #[command(after_help = "\
Examples:
  proximity port publish db:5432
  proximity port publish db:5432 --listen 15432
  proximity port publish game:27015 --udp")]
    Publish(PublishArgs),
    /// Close a published port
    #[command(
        after_help = "Examples:\n  proximity port unpublish 15432\n  proximity port unpublish 27015 --udp"
    )]
    Unpublish(UnpublishArgs),
}

/// `port list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `port publish`
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The app and its port, NAME:PORT
    #[arg(value_name = "NAME:PORT")]
    pub target: Target,
    /// The port outside [default: the same]
    #[arg(long, value_name = "PORT")]
    pub listen: Option<NonZeroU16>,
    /// UDP instead of TCP
    #[arg(long)]
    pub udp: bool,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `port unpublish`
#[derive(Debug, Args)]
pub struct UnpublishArgs {
    /// The port outside
    #[arg(value_name = "PORT")]
    pub listen: NonZeroU16,
    /// UDP instead of TCP
    #[arg(long)]
    pub udp: bool,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// Runs `port …`.
pub async fn run(client: &Client, command: PortCommand, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        PortCommand::List(args) => {
            let ports = client.published_ports(args.zone.as_ref()).await?;
            screen.list(&ports, "no published ports", text)
        }
        PortCommand::Publish(args) => {
            let request = PortRequest {
                instance: args.target.name,
                port: args.target.port.get(),
                protocol: protocol(args.udp),
                listen: args.listen.map(NonZeroU16::get),
            };
            let view = client.publish_port(args.zone.as_ref(), &request).await?;
            if screen.json() {
                screen.document(&view)?;
            } else {
                screen.note(&format!(
                    "{} port {} leads to {}:{}",
                    view.protocol, view.listen, view.instance, view.port
                ));
            }
            Ok(Exit::OK)
        }
        PortCommand::Unpublish(args) => {
            let (protocol, listen) = (protocol(args.udp), args.listen.get());
            client
                .unpublish_port(args.zone.as_ref(), protocol, listen)
                .await?;
            if screen.json() {
                screen.document(&json!({ "protocol": protocol, "listen": listen }))?;
            } else {
                screen.note(&format!("{protocol} port {listen} is closed"));
            }
            Ok(Exit::OK)
        }
    }
}

fn protocol(udp: bool) -> Protocol {
    match udp {
        true => Protocol::Udp,
        false => Protocol::Tcp,
    }
}

fn text(ports: &[PortView]) -> String {
    let mut table = Table::new(&["PROTOCOL", "LISTEN", "INSTANCE", "PORT"]);
    for port in ports {
        table.row([
            port.protocol.to_string(),
            port.listen.to_string(),
            port.instance.to_string(),
            port.port.to_string(),
        ]);
    }
    table.text()
}
