//! `remote upload` and `remote download`: a file or a directory, with progress for people.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;
use ssh::{Error, Hosts, Progress, Transferred};

use super::{EvidenceArgs, LoginArgs, remote};
use crate::copy::meter::{Meter, bytes};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::signals::Signals;

/// `remote upload`
#[derive(Debug, Args)]
pub struct UploadArgs {
    /// The host
    vm: String,
    /// A file of this machine, or with -r a directory
    source: PathBuf,
    /// Its path on the host; what does not begin with / is below the user's home
    target: String,
    /// A directory with all that is in it
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

/// `remote download`
#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// The host
    vm: String,
    /// A file of the host, or with -r a directory; what does not begin with / is below the user's home
    source: String,
    /// Its path on this machine
    target: PathBuf,
    /// A directory with all that is in it
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

/// Puts a file or a directory on a host.
pub async fn upload(args: UploadArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let meta = fs::metadata(&args.source).ok();
    if !args.recursive && meta.as_ref().is_some_and(fs::Metadata::is_dir) {
        return Err(Failure::usage(
            format!(
                "{} is a directory; nothing was transferred",
                args.source.display()
            ),
            "give -r to transfer a directory with all that is in it",
        ));
    }
    let size = meta.filter(fs::Metadata::is_file).map(|meta| meta.len());
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let remote = args.evidence.of(remote);
    let meter = Meter::new(size, screen);
    let (vm, source, target) = (&args.vm, &args.source, &args.target);
    let ended = if args.recursive {
        let moving = remote.upload_tree(vm, source, target, counted(&meter));
        watched(moving, &meter).await
    } else {
        let moving = remote.upload(vm, source, target, counted(&meter));
        watched(moving, &meter).await
    };
    drop(meter);
    log.close().await;
    told(ended?, screen)
}

/// Fetches a file or a directory of a host.
pub async fn download(args: DownloadArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let remote = args.evidence.of(remote);
    let meter = Meter::new(None, screen);
    let (vm, source, target) = (&args.vm, &args.source, &args.target);
    let ended = if args.recursive {
        let moving = remote.download_tree(vm, source, target, counted(&meter));
        watched(moving, &meter).await
    } else {
        let moving = remote.download(vm, source, target, counted(&meter));
        watched(moving, &meter).await
    };
    drop(meter);
    log.close().await;
    told(ended?, screen)
}

fn counted(meter: &Meter) -> impl Fn(Progress) + Send + Sync + 'static {
    let done = meter.counter();
    move |progress| done.store(progress.done_bytes, Ordering::Relaxed)
}

async fn watched(
    moving: impl Future<Output = Result<Transferred, Error>>,
    meter: &Meter,
) -> Result<Transferred, Failure> {
    let mut signals = Signals::new()?;
    tokio::select! {
        moved = moving => Ok(moved?),
        failure = signals.next() => Err(failure),
        never = meter.show() => match never {},
    }
}

fn told(moved: Transferred, screen: &Screen) -> Result<Exit, Failure> {
    for warning in &moved.warnings {
        screen.warn(&format!("proximity: {}: {warning}", moved.vm_id));
    }
    screen.result(&moved, |moved| {
        let again = match moved.resumed_bytes {
            0 => String::new(),
            resumed => format!(", {} of them from an earlier try", bytes(resumed)),
        };
        let count = match (moved.files, moved.directories, moved.links) {
            (1, 0, 0) => String::new(),
            (files, directories, links) => {
                format!("{files} files, {directories} directories, {links} links, ")
            }
        };
        format!(
            "{}: {count}{}{again}, SHA-256 {}",
            moved.target,
            bytes(moved.bytes),
            moved.sha256
        )
    })
}
