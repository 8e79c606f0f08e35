//! `app deploy`: makes the request of flags and files, sends it once, and watches it to the end.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use api::app::{App, DeployRequest};
use api::egress::Egress;
use api::{InstanceName, RecipeId, ZoneName};
use clap::Args;
use client::Client;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::follow;
use crate::limits::LimitArgs;
use crate::screen::Screen;
use crate::table::Facts;

/// Largest file for `--set-file`: parameters are settings, not data.
const VALUE_LIMIT: u64 = 1 << 20;

/// `app deploy`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  proximity app deploy nginx
  proximity app deploy nginx web --memory 256M --cpu 0.5
  proximity app deploy nginx web --set-file index=./index.html
  proximity app deploy nginx web --resume       go on where a failed deploy stopped")]
pub struct DeployArgs {
    /// The recipe, see `proximity app catalog`
    pub recipe: RecipeId,
    /// The app's name [default: made of the recipe's]
    pub name: Option<InstanceName>,
    /// A parameter of the recipe; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// A parameter whose value stands in a file (`-`: standard input); keeps secrets off the
    /// command line
    #[arg(long, value_name = "KEY=FILE", value_parser = pair)]
    pub set_file: Vec<(String, String)>,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What it may reach outside its zone: off, internet, or networks and names with commas between them
    #[arg(long, value_name = "POLICY", default_value = "internet")]
    pub egress: Egress,
    /// The zone [default: the only or the default one]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<ZoneName>,
    /// Go on with the deploy of NAME that failed, from the step that failed
    #[arg(long, requires = "name")]
    pub resume: bool,
    /// Print the operation's id and do not wait
    #[arg(long)]
    pub no_wait: bool,
}

/// Deploys an app.
pub async fn run(client: &Client, args: DeployArgs, screen: &Screen) -> Result<Exit, Failure> {
    let no_wait = args.no_wait;
    let request = request(args)?;
    let accepted = client.deploy(&request, Some(&fresh_key()?)).await?;
    if no_wait {
        return screen.result(&accepted, |a| {
            format!(
                "{} {}",
                crate::guest_text::line(a.name.as_str()),
                a.operation_id
            )
        });
    }
    follow::finish(client, &accepted.operation_id, screen).await?;
    let app = client.app(&accepted.name).await?;
    screen.result(&app, deployed)
}

fn deployed(app: &App) -> String {
    let facts = Facts::new()
        .fact("url", &app.url)
        .fact("address", format!("{} port {}", app.ip, app.port))
        .fact("try", format!("proximity exec {} -- id", app.name))
        .text(2);
    format!("{} is {}\n{facts}", app.name, app.status.as_str())
}

fn request(args: DeployArgs) -> Result<DeployRequest, Failure> {
    let mut config = BTreeMap::new();
    let files = args.set_file.into_iter().map(|(key, path)| {
        let value = value_of(&path)?;
        Ok::<_, Failure>((key, value))
    });
    for pair in args.set.into_iter().map(Ok).chain(files) {
        let (key, value) = pair?;
        if config.contains_key(&key) {
            return Err(Failure::usage(
                format!("the parameter {key:?} is given twice"),
                "leave one of them out",
            ));
        }
        config.insert(key, value);
    }
    Ok(DeployRequest {
        app_id: args.recipe.into(),
        instance_name: args.name.map(Into::into),
        zone: args.zone.map(Into::into),
        config,
        limits: args.limits.request(),
        egress: args.egress,
        resume: args.resume,
    })
}

fn value_of(path: &str) -> Result<String, Failure> {
    let failed = |why: String| Failure::Usage {
        what: format!("cannot take the value from {path:?}: {why}"),
        hint: None,
    };
    let mut text = String::new();
    let read = if path == "-" {
        std::io::stdin()
            .take(VALUE_LIMIT + 1)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(PathBuf::from(path))
            .and_then(|file| file.take(VALUE_LIMIT + 1).read_to_string(&mut text))
    };
    match read {
        Err(e) => Err(failed(e.to_string())),
        Ok(_) if text.len() as u64 > VALUE_LIMIT => {
            Err(failed("it is larger than 1 MiB".to_owned()))
        }
        Ok(_) => Ok(text),
    }
}

/// A key that makes the request safe to see twice.
pub fn fresh_key() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::local(format!("the system gives no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
}

/// `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let check = |text: &str, key: &str, value: &str| {
            assert_eq!(pair(text), Ok((key.to_owned(), value.to_owned())));
        };
        check("a=b", "a", "b");
        check("a=", "a", "");
        check("a=b=c", "a", "b=c");
        assert!(pair("a").is_err());
        assert!(pair("=b").is_err());
    }
}
