//! `remote upload` and `remote download`: one file, with progress for people.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;
use ssh::{Error, Hosts, Progress, Transferred};

use super::{LoginArgs, remote};
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
    /// A file of this machine
    source: PathBuf,
    /// Its path on the host; what does not begin with / is below the user's home
    target: String,
    #[command(flatten)]
    login: LoginArgs,
}

/// `remote download`
#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// The host
    vm: String,
    /// A file of the host; what does not begin with / is below the user's home
    source: String,
    /// Its path on this machine
    target: PathBuf,
    #[command(flatten)]
    login: LoginArgs,
}

/// Puts a file on a host.
pub async fn upload(args: UploadArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let size = fs::metadata(&args.source).ok().map(|meta| meta.len());
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let meter = Meter::new(size, screen);
    let moving = remote.upload(&args.vm, &args.source, &args.target, counted(&meter));
    let ended = watched(moving, &meter).await;
    drop(meter);
    log.close().await;
    told(ended?, screen)
}

/// Fetches a file of a host.
pub async fn download(args: DownloadArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let meter = Meter::new(None, screen);
    let moving = remote.download(&args.vm, &args.source, &args.target, counted(&meter));
    let ended = watched(moving, &meter).await;
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
    screen.result(&moved, |moved| {
        let again = match moved.resumed_bytes {
            0 => String::new(),
            resumed => format!(", {} of them from an earlier try", bytes(resumed)),
        };
        format!(
            "{}: {}{again}, SHA-256 {}",
            moved.target,
            bytes(moved.bytes),
            moved.sha256
        )
    })
}
