//! `route …`: host names of the reverse proxy and where they lead.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::entry::{RouteAuthRequest, RouteRequest, RouteSettings};
use api::gateway::RouteView;
use api::{HostName, ZoneName};
use clap::{Args, Subcommand, ValueEnum};
use client::Client;
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::forward::Target;
use crate::screen::Screen;
use crate::{appliance, gateway, quantity};

/// A secret is not longer than this with its newline.
const SECRET_MAX_BYTES: u64 = 1024;

/// `route …`
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// List them with their health
    List,
    /// Show one with its health
    Show(ShowArgs),
    /// Lead a further host name to a port of an app
    ///
    /// The name is NAME.DOMAIN of the zone, or one of a domain of your own. HTTP, WebSocket, event
    /// streams and gRPC pass. The same again changes nothing.
    #[command(after_help = "\
Examples:
  proximity route add api.prox.local web:8080
  proximity route add admin.prox.local web:9000 --auth basic --user anna
  proximity route add api.prox.local web:8080 --auth token --max-body 10M --timeout 30s
  pass show route | proximity route add x.prox.local web:80 --auth basic --user anna --secret-file -")]
    Add(SetArgs),
    /// Give a host name other settings, an app's own name too
    #[command(after_help = "\
Examples:
  proximity route set web.prox.local web:80 --redirect-https --auth basic --user anna")]
    Set(SetArgs),
    /// Remove an added host name; an app's own name is then as it was
    Rm(ShowArgs),
}

/// `route show` and `route rm`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The host name
    pub host: HostName,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// `route add` and `route set`
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The host name
    pub host: HostName,
    /// The app and its port, NAME:PORT
    #[arg(value_name = "NAME:PORT")]
    pub target: Target,
    /// Send requests by http to https
    #[arg(long)]
    pub redirect_https: bool,
    /// Let in only who knows a password or a token
    #[arg(long, value_enum)]
    pub auth: Option<AuthKind>,
    /// The name that goes with the password
    #[arg(long, value_name = "NAME", required_if_eq("auth", "basic"))]
    pub user: Option<String>,
    /// Read password or token from a file, `-` for standard input [default: ask for a password, make a token]
    #[arg(long, value_name = "FILE", requires = "auth")]
    pub secret_file: Option<PathBuf>,
    /// The largest body of a request, like 10M
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    pub max_body: Option<u64>,
    /// How long the app may take until its answer begins, like 30s
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    pub timeout: Option<Duration>,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
}

/// How a request shows that it may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuthKind {
    /// Name and password, asked for by the browser
    Basic,
    /// Authorization: Bearer TOKEN, or X-Route-Token: TOKEN
    Token,
}

/// Runs `route …`.
pub async fn run(client: &Client, command: RouteCommand, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        RouteCommand::List => gateway::routes(client, screen).await,
        RouteCommand::Show(args) => {
            let view = client.route(&args.host).await?;
            screen.result(&view, |view| {
                gateway::routes_text(std::slice::from_ref(view))
            })
        }
        RouteCommand::Add(args) => put(client, args, false, screen).await,
        RouteCommand::Set(args) => put(client, args, true, screen).await,
        RouteCommand::Rm(args) => {
            client.remove_route(args.zone.as_ref(), &args.host).await?;
            if screen.json() {
                screen.document(&json!({ "removed": args.host }))?;
            } else {
                screen.note(&format!("{} leads nowhere of its own any more", args.host));
            }
            Ok(Exit::OK)
        }
    }
}

async fn put(
    client: &Client,
    args: SetArgs,
    replace: bool,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let (auth, made) = auth(&args).await?;
    let settings = RouteSettings {
        instance: args.target.name,
        port: args.target.port.get(),
        redirect_https: args.redirect_https,
        auth,
        max_body_bytes: args.max_body,
        timeout_ms: args
            .timeout
            .map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
    };
    let zone = args.zone.as_ref();
    let view = if replace {
        client.set_route(zone, &args.host, &settings).await?
    } else {
        let host = args.host.clone();
        client
            .add_route(zone, &RouteRequest { host, settings })
            .await?
    };
    if screen.json() {
        let mut document = json!(view);
        if let (Some(token), Some(fields)) = (&made, document.as_object_mut()) {
            fields.insert("token".into(), json!(token));
        }
        screen.document(&document)?;
        return Ok(Exit::OK);
    }
    screen.note(&leads(&view));
    if let Some(token) = made {
        screen.note("the token, shown this once:");
        screen.print(&token)?;
    }
    Ok(Exit::OK)
}

fn leads(view: &RouteView) -> String {
    let (host, instance, port) = (&view.host, &view.instance, view.port);
    format!("{host} leads to {instance}:{port} ({})", view.health)
}

/// What opens the route, and the token if it was made here.
async fn auth(args: &SetArgs) -> Result<(Option<RouteAuthRequest>, Option<String>), Failure> {
    let given = args.secret_file.as_deref().map(from_file).transpose()?;
    match (args.auth, &args.user) {
        (None, None) => Ok((None, None)),
        (None | Some(AuthKind::Token), Some(_)) => Err(Failure::usage(
            "--user goes with a password only",
            "add --auth basic",
        )),
        (Some(AuthKind::Token), None) => {
            let made = match &given {
                Some(_) => None,
                None => Some(random_token()?),
            };
            let token = given.or(made.clone()).unwrap_or_default();
            Ok((Some(RouteAuthRequest::Token { token }), made))
        }
        (Some(AuthKind::Basic), user) => {
            let password = match given {
                Some(password) => password,
                None if io::stdin().is_terminal() => appliance::asked_twice().await?,
                None => {
                    return Err(Failure::usage(
                        "there is nobody to ask for a password",
                        "read it from a file: --secret-file FILE, or `-` for standard input",
                    ));
                }
            };
            let user = user.clone().unwrap_or_default();
            Ok((Some(RouteAuthRequest::Basic { user, password }), None))
        }
    }
}

fn from_file(path: &Path) -> Result<String, Failure> {
    let failed = |e: io::Error| {
        Failure::local(format!(
            "cannot read the secret from {}: {e}",
            path.display()
        ))
    };
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin()
            .lock()
            .take(SECRET_MAX_BYTES)
            .read_to_string(&mut text),
        _ => File::open(path)
            .map_err(failed)?
            .take(SECRET_MAX_BYTES)
            .read_to_string(&mut text),
    };
    read.map_err(failed)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn random_token() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::local(format!("cannot make a random token: {e}")))?;
    Ok(hex::encode(bytes))
}
