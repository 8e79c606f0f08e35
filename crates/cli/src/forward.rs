//! `forward`: a port of this machine's loopback that leads to a port of an instance.
//!
//! Listens on 127.0.0.1 only: whoever may use this machine's loopback may use the port. Each connection
//! gets a tunnel of its own through the controller; one that fails says why and harms no other.

use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use api::InstanceName;
use clap::Args;
use client::Client;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::Screen;
use crate::signals::Signals;

/// Connections at a time; the instance takes no more either. Further ones wait in the system's queue.
const CONNECTIONS: usize = 256;
const BUFFER_BYTES: usize = 64 << 10;

/// `forward`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  proximity forward web:80                        127.0.0.1:80 if it is free, else another port
  proximity forward db:5432 15432                 127.0.0.1:15432, or nothing
  proximity forward web:80 --json                 the port for a script, then it goes on

Listens on this machine's loopback only and runs until Ctrl-C. In the instance the port may be open
on its own loopback only.")]
pub struct ForwardArgs {
    /// The instance and its port, NAME:PORT
    #[arg(value_name = "NAME:PORT")]
    pub target: Target,
    /// The port on this machine; 0 for any [default: the same, else any]
    #[arg(value_name = "LOCAL")]
    pub local: Option<u16>,
}

/// A port of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The instance.
    pub name: InstanceName,
    /// The port in it.
    pub port: NonZeroU16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = text
            .split_once(':')
            .ok_or("write it like NAME:PORT, web:80")?;
        Ok(Self {
            name: name.parse().map_err(|e| format!("{e}"))?,
            port: port
                .parse()
                .map_err(|_| format!("{port:?} is no port: 1 to 65535"))?,
        })
    }
}

/// Listens and leads connections until a signal ends it.
pub async fn run(client: &Client, args: ForwardArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    // Better now than with the first connection.
    client.health().await?;
    let port = args.target.port.get();
    let listener = listen(port, args.local).await?;
    let local = listener
        .local_addr()
        .map_err(|e| Failure::local(format!("cannot read the port: {e}")))?;
    let name = &args.target.name;
    let url = format!("http://{local}");
    if screen.json() {
        screen.document(&json!({
            "name": name, "port": port, "local_port": local.port(), "url": url,
        }))?;
    } else {
        screen.print(&format!("{name}:{port} is on {local}, for a browser {url}"))?;
        screen.note("Ctrl-C ends it");
    }
    tokio::select! {
        never = accept(client, &args.target, &listener, screen) => match never {},
        failure = signals.next() => match failure {
            // The way in which it is meant to end.
            Failure::Interrupted { .. } => Ok(Exit::OK),
            failure => Err(failure),
        },
    }
}

async fn listen(port: u16, local: Option<u16>) -> Result<TcpListener, Failure> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let bound = match local {
        Some(local @ 1..) => bind(local).await,
        Some(0) => bind(0).await,
        None => match bind(port).await {
            Err(_) => bind(0).await,
            bound => bound,
        },
    };
    bound.map_err(|e| {
        let wanted = local.unwrap_or(0);
        Failure::local(format!("cannot listen on 127.0.0.1:{wanted}: {e}"))
            .next("leave LOCAL out to take a free port")
    })
}

async fn accept(
    client: &Client,
    target: &Target,
    listener: &TcpListener,
    screen: &Screen,
) -> std::convert::Infallible {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            // It is never closed.
            std::future::pending().await
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let lead = lead(client.clone(), target.clone(), stream, *screen, permit);
                tokio::spawn(lead);
            }
            Err(error) => {
                screen.warn(&format!(
                    "proximity: a connection was not accepted: {error}"
                ));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn lead(
    client: Client,
    target: Target,
    mut near: TcpStream,
    screen: Screen,
    permit: OwnedSemaphorePermit,
) {
    // Only a delay, if it can't be set.
    let _ = near.set_nodelay(true);
    match client.forward(&target.name, target.port.get()).await {
        Ok(mut far) => {
            // How a connection ends is between its two ends.
            let _: io::Result<_> = tokio::io::copy_bidirectional_with_sizes(
                &mut near,
                &mut far,
                BUFFER_BYTES,
                BUFFER_BYTES,
            )
            .await;
        }
        Err(error) => {
            let why = guest_text::line(&error.to_string());
            screen.warn(&format!("proximity: a connection was not led on: {why}"));
        }
    }
    drop(permit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let check = |text: &str, ok: bool| assert_eq!(text.parse::<Target>().is_ok(), ok, "{text}");
        check("web:80", true);
        check("web:65535", true);
        for bad in [
            "web",
            "web:",
            "web:0",
            "web:65536",
            "web:http",
            ":80",
            "We_b:80",
            "web:80:80",
        ] {
            check(bad, false);
        }
    }
}
