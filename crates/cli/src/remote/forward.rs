//! `remote forward`: a port of this machine that leads through a host.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use clap::Args;
use serde_json::json;
use ssh::{Hosts, Tunnel, TunnelEvent};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{LoginArgs, remote};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::Screen;
use crate::signals::Signals;

/// Events that wait to be told.
const QUEUE: usize = 16;

/// `remote forward`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  proximity remote forward vm01 5432                    127.0.0.1:5432 here is 127.0.0.1:5432 there
  proximity remote forward vm01 8080:intranet.lan:80    what the host reaches
  proximity remote forward vm01 0:127.0.0.1:80 --json   any free port, for a script

Listens on this machine's loopback unless LISTEN says otherwise, and runs until Ctrl-C. Eight connections at
a time; further ones wait.")]
pub struct ForwardArgs {
    /// The host
    vm: String,
    /// [LISTEN:]PORT[:HOST:PORT]; HOST as the host sees it, 127.0.0.1 where none is named
    #[arg(value_name = "[LISTEN:]PORT[:HOST:PORT]")]
    ports: Ports,
    #[command(flatten)]
    login: LoginArgs,
}

/// Where it begins, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    listen: IpAddr,
    port: u16,
    to: Tunnel,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "write it like 8080, 8080:intranet.lan:80 or 127.0.0.2:8080:[fd00::1]:80";
        let parts = parts(text);
        let (listen, port, to) = match parts.as_slice() {
            [port] => (None, port, None),
            [listen, port] => (Some(listen), port, None),
            [port, host, to] => (None, port, Some((host, to))),
            [listen, port, host, to] => (Some(listen), port, Some((host, to))),
            _ => return Err(form().to_owned()),
        };
        let number = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| format!("{text:?} is no port; {}", form()))
        };
        let listen = match listen.map(|text| text.as_str()) {
            None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text
                .parse()
                .map_err(|_| format!("{text:?} is no address of this machine; {}", form()))?,
        };
        let port = number(port)?;
        let (host, to) = match to {
            Some((host, to)) => (host.clone(), number(to)?),
            None => ("127.0.0.1".to_owned(), port),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(legal) {
            return Err(format!("{host:?} is no host; {}", form()));
        }
        if to == 0 {
            return Err(
                "0 is no port to lead to; write 0:127.0.0.1:PORT for a free one here".to_owned(),
            );
        }
        Ok(Self {
            listen,
            port,
            to: Tunnel { host, port: to },
        })
    }
}

/// What stands between colons; an address in brackets is one part.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut inside = false;
    for c in text.chars() {
        match c {
            '[' if !inside => inside = true,
            ']' if inside => inside = false,
            ':' if !inside => parts.push(String::new()),
            c => {
                if let Some(part) = parts.last_mut() {
                    part.push(c);
                }
            }
        }
    }
    parts
}

/// Listens and leads connections until a signal ends it.
pub async fn run(args: ForwardArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let at = (args.ports.listen, args.ports.port);
    let listener = TcpListener::bind(at).await.map_err(|e| {
        Failure::local(format!("cannot listen on {}:{}: {e}", at.0, at.1))
            .next("write 0:HOST:PORT to take a free port")
    })?;
    let local = listener
        .local_addr()
        .map_err(|e| Failure::local(format!("cannot read the port: {e}")))?;
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let (events, mut happened) = mpsc::channel(QUEUE);
    let mut forward = Box::pin(remote.forward(&args.vm, &args.ports.to, listener, events));
    let ended = loop {
        tokio::select! {
            ended = &mut forward => match ended {
                Ok(never) => match never {},
                Err(error) => break Err(Failure::from(error)),
            },
            event = happened.recv() => match event {
                Some(event) => tell(&event, &args, &local, screen)?,
                None => std::future::pending().await,
            },
            failure = signals.next() => break match failure {
                // The way in which it is meant to end.
                Failure::Interrupted { .. } => Ok(Exit::OK),
                failure => Err(failure),
            },
        }
    };
    // Its end goes into the log when it is dropped.
    drop(forward);
    log.close().await;
    ended
}

fn tell(
    event: &TunnelEvent,
    args: &ForwardArgs,
    local: &std::net::SocketAddr,
    screen: &Screen,
) -> Result<(), Failure> {
    let (vm, to) = (&args.vm, &args.ports.to);
    match event {
        TunnelEvent::Open if screen.json() => screen.document(&json!({
            "vm_id": vm, "host": to.host, "port": to.port,
            "listen": local.ip().to_string(), "local_port": local.port(),
        }))?,
        TunnelEvent::Open => {
            screen.print(&format!(
                "{}:{} as {vm} sees it is on {local}",
                to.host, to.port
            ))?;
            if !local.ip().is_loopback() {
                screen.warn("proximity: other machines that reach this address can use it too");
            }
            screen.note("Ctrl-C ends it");
        }
        TunnelEvent::Failed(error) => {
            let why = guest_text::line(&error.to_string());
            screen.warn(&format!("proximity: a connection was not led on: {why}"));
        }
        TunnelEvent::NotAccepted(error) => {
            screen.warn(&format!(
                "proximity: a connection was not accepted: {error}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_outside_in() {
        let check = |text: &str, expect: Option<(&str, u16, &str, u16)>| {
            let ports = text.parse::<Ports>().ok();
            let ports = ports.map(|p| (p.listen.to_string(), p.port, p.to.host, p.to.port));
            let expect = expect.map(|(l, p, h, t)| (l.to_owned(), p, h.to_owned(), t));
            assert_eq!(ports, expect, "{text}");
        };
        check("80", Some(("127.0.0.1", 80, "127.0.0.1", 80)));
        check("0:db.lan:5432", Some(("127.0.0.1", 0, "db.lan", 5432)));
        check("0.0.0.0:80", Some(("0.0.0.0", 80, "127.0.0.1", 80)));
        check("[::1]:80:[fd00::1]:81", Some(("::1", 80, "fd00::1", 81)));
        check("localhost:80:a:81", Some(("127.0.0.1", 80, "a", 81)));
        for bad in [
            "",
            "0",
            "80:a:0",
            "x",
            "80:a b:1",
            "1:2:3:4:5",
            "70000",
            "a:80",
            "80::81",
        ] {
            check(bad, None);
        }
    }
}
