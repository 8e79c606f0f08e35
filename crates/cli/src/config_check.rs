//! `config check`: reads the configuration with all its rules and says what is wrong with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use engine::zone::Wan;
use serde::Serialize;

use crate::configuration;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::remote;
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
    remote_hosts: Vec<RemoteHost>,
}

/// A host for `remote`.
#[derive(Serialize)]
struct RemoteHost {
    vm_id: String,
    /// Why it can't be used, where its ssh_config is the cause.
    refused: Option<String>,
    /// Options of an ssh_config that stand there for it and are not used.
    unused_options: Vec<String>,
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
    let hosts = remote::hosts(named, None)?;
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
        remote_hosts: remote_hosts(&hosts),
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
        for host in &c.remote_hosts {
            text.push_str(&format!("  host      {}", host.vm_id));
            if let Some(refused) = &host.refused {
                text.push_str(&format!(", refused: {}", guest_text::line(refused)));
            }
            if !host.unused_options.is_empty() {
                let unused = host.unused_options.join(", ");
                text.push_str(&format!(", not used: {}", guest_text::line(&unused)));
            }
            text.push('\n');
        }
        text
    })
}

fn remote_hosts(hosts: &ssh::Hosts) -> Vec<RemoteHost> {
    let ids: BTreeSet<&ssh::VmId> = hosts.vms.keys().chain(hosts.borrowed.keys()).collect();
    let host = |id: &ssh::VmId| {
        let borrowed = hosts.borrowed.get(id);
        let refused = borrowed.and_then(|borrowed| borrowed.refused.as_ref());
        RemoteHost {
            vm_id: id.to_string(),
            refused: refused.map(ToString::to_string),
            unused_options: borrowed
                .map(|borrowed| borrowed.unused.clone())
                .unwrap_or_default(),
        }
    };
    ids.into_iter().map(host).collect()
}
