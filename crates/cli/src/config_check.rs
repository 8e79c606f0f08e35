//! `config check`: reads the configuration with all its rules and says what is wrong with it.

use std::path::{Path, PathBuf};

use clap::Args;
use engine::zone::Wan;
use serde::Serialize;

use crate::configuration;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `config check`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  proximity config check\n  proximity config check ./config.yml --json"
)]
pub struct ConfigCheckArgs {
    /// The file [default: that of --config, or /etc/proximity/config.yml]
    pub file: Option<PathBuf>,
}

/// What a sound configuration says.
#[derive(Serialize)]
struct Checked {
    ok: bool,
    file: Option<String>,
    listen: String,
    data_dir: String,
    zones: Vec<Zone>,
    recipes: Vec<String>,
}

#[derive(Serialize)]
struct Zone {
    name: String,
    node: String,
    bridge: String,
    subnet: String,
    domain: String,
    wan: String,
}

/// Checks the file; a fault in it is exit code 1 with the place and the nearest known key.
pub fn run(
    args: &ConfigCheckArgs,
    config: Option<&Path>,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let named = args.file.as_deref().or(config);
    let parsed = configuration::load(named)?;
    let catalog = configuration::catalog(&parsed)?;
    let (path, _) = configuration::path(named);
    let zone = |z: &engine::zone::ZoneSpec| Zone {
        name: z.name.to_string(),
        node: z.node.to_string(),
        bridge: z.bridge.to_string(),
        subnet: z.subnet.to_string(),
        domain: z.domain.to_string(),
        wan: match &z.wan {
            Wan::Managed { bridge, subnet } => format!("{bridge} {subnet}, managed with NAT"),
            Wan::Bridged { bridge } => format!("{bridge}, by DHCP"),
        },
    };
    let checked = Checked {
        ok: true,
        file: path.exists().then(|| path.display().to_string()),
        listen: parsed.listen.to_string(),
        data_dir: parsed.data_dir.display().to_string(),
        zones: parsed.zones.values().map(zone).collect(),
        recipes: catalog.iter().map(|r| r.id.to_string()).collect(),
    };
    screen.result(&checked, |c| {
        let mut text = match &c.file {
            Some(file) => format!("{file} is sound\n"),
            None => "no configuration file; the built-in configuration holds\n".to_owned(),
        };
        text.push_str(&format!(
            "  listen    {}\n  data      {}\n",
            c.listen, c.data_dir
        ));
        for z in &c.zones {
            text.push_str(&format!(
                "  zone      {}: {} on {} of node {}, domain {}, WAN {}\n",
                z.name, z.subnet, z.bridge, z.node, z.domain, z.wan
            ));
        }
        text.push_str(&format!("  recipes   {}\n", c.recipes.join(", ")));
        text
    })
}
