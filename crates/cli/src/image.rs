//! `image list` and `image build`: golden images on this machine. They need no controller.

use std::path::Path;

use backends::image::ImageStore;
use clap::{Args, Subcommand};
use engine::image::{ImageSpec, Images};
use serde::Serialize;

use crate::configuration;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;

/// `image …`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images that the appliance and the recipes need, and others in the cache
    List,
    /// Build images, or take them from the cache where nothing changed
    Build(BuildArgs),
}

/// `image build`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  proximity image build nginx\n  proximity image build --all")]
pub struct BuildArgs {
    /// Recipes whose image to build, or `appliance`
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    pub images: Vec<String>,
    /// Every image that the catalog and the appliance need
    #[arg(long, conflicts_with = "images")]
    pub all: bool,
}

/// An image that something needs, or that is in the cache.
#[derive(Serialize)]
struct Row {
    digest: String,
    used_by: Vec<String>,
    cached: bool,
    size_bytes: Option<u64>,
}

/// What can be built, by the name it is asked for.
struct Needed {
    name: String,
    spec: ImageSpec,
}

/// Runs `image …`. Called without a runtime: it makes its own.
pub fn run(
    command: &ImageCommand,
    config: Option<&Path>,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let config = configuration::load(config)?;
    let catalog = configuration::catalog(&config)?;
    let store = ImageStore::new(&config.image_dir);
    let appliances = engine::zone::appliance_images(config.zones.values())
        .into_iter()
        .map(|(name, spec)| Needed { name, spec });
    let recipes = catalog.iter().map(|r| Needed {
        name: r.id.to_string(),
        spec: r.image.clone(),
    });
    let sandboxes = catalog.sandboxes().map(|s| Needed {
        name: format!("sandbox/{}", s.id),
        spec: s.image.clone(),
    });
    let needed: Vec<Needed> = appliances.chain(recipes).chain(sandboxes).collect();
    match command {
        ImageCommand::List => list(&store, &needed, screen),
        ImageCommand::Build(args) => {
            let chosen = choose(args, needed)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Failure::local(format!("cannot start: {e}")))?;
            runtime.block_on(build(&store, &chosen, screen))
        }
    }
}

fn choose(args: &BuildArgs, needed: Vec<Needed>) -> Result<Vec<Needed>, Failure> {
    if args.all {
        return Ok(needed);
    }
    if let Some(unknown) = args
        .images
        .iter()
        .find(|i| !needed.iter().any(|n| n.name == **i))
    {
        let names: Vec<&str> = needed.iter().map(|n| n.name.as_str()).collect();
        return Err(Failure::usage(
            format!("there is no image {unknown:?}"),
            format!("images that can be built: {}", names.join(", ")),
        ));
    }
    Ok(needed
        .into_iter()
        .filter(|n| args.images.contains(&n.name))
        .collect())
}

async fn build(store: &ImageStore, chosen: &[Needed], screen: &Screen) -> Result<Exit, Failure> {
    let mut done: Vec<Row> = Vec::new();
    for image in chosen {
        let digest = image.spec.digest();
        if store.cached(&digest).await {
            screen.note(&format!(
                "{}: image {digest:.12} is in the cache",
                image.name
            ));
        } else {
            let told = |line: String| screen.note(&format!("{}: {line}", image.name));
            store.ensure(&image.spec, &told).await.map_err(|e| {
                let failure = Failure::local(e.to_string());
                match e.hint {
                    Some(hint) => failure.next(hint),
                    None => failure,
                }
            })?;
        }
        match done.iter_mut().find(|r| r.digest == digest.as_str()) {
            Some(row) => row.used_by.push(image.name.clone()),
            None => done.push(Row {
                digest: digest.to_string(),
                used_by: vec![image.name.clone()],
                cached: true,
                size_bytes: None,
            }),
        }
    }
    screen.result(&done, |rows| {
        rows.iter()
            .map(|r| format!("{:.12}  {}\n", r.digest, r.used_by.join(", ")))
            .collect()
    })
}

fn list(store: &ImageStore, needed: &[Needed], screen: &Screen) -> Result<Exit, Failure> {
    let cached = store.list();
    let mut rows: Vec<Row> = Vec::new();
    for image in needed {
        let digest = image.spec.digest();
        if let Some(row) = rows.iter_mut().find(|r| r.digest == digest.as_str()) {
            row.used_by.push(image.name.clone());
            continue;
        }
        let found = cached.iter().find(|c| c.digest == digest);
        rows.push(Row {
            cached: found.is_some(),
            size_bytes: found.map(|c| c.size_bytes),
            used_by: vec![image.name.clone()],
            digest: digest.to_string(),
        });
    }
    for other in &cached {
        if !rows.iter().any(|r| r.digest == other.digest.as_str()) {
            rows.push(Row {
                digest: other.digest.to_string(),
                used_by: vec![],
                cached: true,
                size_bytes: Some(other.size_bytes),
            });
        }
    }
    screen.list(&rows, "no image is needed", rows_text)
}

fn rows_text(rows: &[Row]) -> String {
    let mut table = Table::new(&["DIGEST", "USED BY", "CACHED", "SIZE"]);
    for row in rows {
        let size = row.size_bytes.map(|b| format!("{} MiB", b >> 20));
        table.row([
            format!("{:.12}", row.digest),
            if row.used_by.is_empty() {
                "no recipe".into()
            } else {
                row.used_by.join(", ")
            },
            if row.cached { "yes" } else { "no" }.into(),
            size.unwrap_or_default(),
        ]);
    }
    table.text()
}
