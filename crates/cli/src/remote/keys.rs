//! `remote keys …`: the key of each host, made, deployed, replaced, shown and revoked.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ssh::{Hosts, KeyState, KeyStatus, key_status};
use zeroize::Zeroizing;

use super::{LoginArgs, passphrase, remote};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::password;
use crate::screen::Screen;
use crate::signals::Signals;
use crate::table::Table;

/// `remote keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key for a host
    ///
    /// An ed25519 key of the host's own, mode 0600, in key_storage_path under the host's id.
    #[command(
        after_help = "Examples:\n  proximity remote keys init vm01\n  proximity remote keys init vm01 --passphrase"
    )]
    Init(InitArgs),
    /// Put a host's key into its authorized_keys, through a login that works already
    ///
    /// No other line of the file is touched, and nothing happens when the key is there. Afterwards a login with the
    /// key is tried; if it fails, the line is taken away again.
    #[command(
        after_help = "Examples:\n  proximity remote keys deploy vm01 --with-key ~/.ssh/id_ed25519\n  proximity remote keys deploy vm01                      by vms.vm01.key_file, or by an agent"
    )]
    Deploy(DeployArgs),
    /// Replace a host's key by a new one
    ///
    /// Puts the new key beside the old one, proves that it gets in, swaps them here, removes the old line, and proves
    /// that the old key gets in no more. If it is interrupted, the same command goes on where it stopped. A new key that
    /// does not get in is taken back by itself.
    #[command(
        after_help = "Examples:\n  proximity remote keys rotate vm01\n  proximity remote keys rotate vm01 --roll-back     back to the old key, from wherever it stopped"
    )]
    Rotate(RotateArgs),
    /// Show how old keys are, and what is under way
    ///
    /// Asks no host. A key older than key_rotation_days is due.
    Status(StatusArgs),
    /// Take a host's key away from the host, and prove that it gets in no more
    #[command(
        after_help = "Examples:\n  proximity remote keys revoke vm01\n  proximity remote keys revoke vm01 --delete --yes"
    )]
    Revoke(RevokeArgs),
}

/// `remote keys init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The host
    vm: String,
    /// Ask for a passphrase that protects the key
    #[arg(long, conflicts_with = "passphrase_file")]
    passphrase: bool,
    #[command(flatten)]
    login: LoginArgs,
}

/// `remote keys deploy`
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// The host
    vm: String,
    /// Log in with this private key, which the host knows already
    #[arg(long, value_name = "FILE")]
    with_key: Option<PathBuf>,
    #[command(flatten)]
    login: LoginArgs,
}

/// `remote keys rotate`
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The host
    vm: String,
    /// Take an unfinished replacement back: the old key stays
    #[arg(long)]
    roll_back: bool,
    #[command(flatten)]
    login: LoginArgs,
}

/// `remote keys status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this host
    vm: Option<String>,
}

/// `remote keys revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The host
    vm: String,
    /// Log in with this private key instead of the one that is revoked
    #[arg(long, value_name = "FILE")]
    with_key: Option<PathBuf>,
    /// Delete the private key here; otherwise it is set aside
    #[arg(long)]
    delete: bool,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    login: LoginArgs,
}

/// Runs one of them.
pub async fn run(command: KeysCommand, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    match command {
        KeysCommand::Init(args) => init(args, hosts, screen).await,
        KeysCommand::Deploy(args) => deploy(args, hosts, screen).await,
        KeysCommand::Rotate(args) => rotate(args, hosts, screen).await,
        KeysCommand::Status(args) => status(&args, &hosts, screen),
        KeysCommand::Revoke(args) => revoke(args, hosts, screen).await,
    }
}

async fn init(args: InitArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let given = match &args.login.passphrase_file {
        Some(file) => Some(passphrase::read(file)?),
        None if args.passphrase => Some(new_passphrase(&args.vm).await?),
        None => None,
    };
    if given.as_ref().is_some_and(|text| text.is_empty()) {
        return Err(Failure::usage(
            "the passphrase is empty; nothing was made",
            "give one, or none at all without --passphrase",
        ));
    }
    let (remote, log) = remote(hosts, None).await?;
    let made = remote.init_key(&args.vm, given.as_ref()).await;
    log.close().await;
    let made = made?;
    if let Some(other) = &made.overridden_by {
        screen.note(&override_note(&args.vm, other));
    }
    screen.result(&made, |made| {
        format!(
            "{}: {}\n{}\nnext: proximity remote keys deploy {}",
            made.key, made.fingerprint, made.public_key, made.vm_id
        )
    })
}

async fn new_passphrase(vm: &str) -> Result<Zeroizing<String>, Failure> {
    if !password::can_ask() {
        return Err(Failure::usage(
            "there is nobody to ask for a passphrase; nothing was made",
            "name a file: --passphrase-file FILE",
        ));
    }
    let first = password::ask(&format!("New passphrase of the key of {vm}: ")).await?;
    let first = Zeroizing::new(first);
    let second = Zeroizing::new(password::ask("The same again: ").await?);
    if *first == *second {
        Ok(first)
    } else {
        Err(Failure::local(
            "the two passphrases differ; nothing was made",
        ))
    }
}

fn override_note(vm: &str, other: &str) -> String {
    format!(
        "vms.{vm}.key_file names {other}, which is used instead; remove that line when the new key is deployed"
    )
}

async fn deploy(args: DeployArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let deployed = tokio::select! {
        deployed = remote.deploy_key(&args.vm, args.with_key.as_deref()) => deployed.map_err(Failure::from),
        failure = signals.next() => Err(failure),
    };
    log.close().await;
    let deployed = deployed?;
    if let Some(other) = &deployed.overridden_by {
        screen.note(&override_note(&args.vm, other));
    }
    screen.result(&deployed, |told| {
        let state = if told.added {
            "gets in from now on"
        } else {
            "gets in already"
        };
        format!(
            "{}: {} {state} as {}",
            told.vm_id, told.fingerprint, told.user
        )
    })
}

async fn rotate(args: RotateArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let rotated = tokio::select! {
        rotated = remote.rotate_key(&args.vm, args.roll_back) => rotated.map_err(Failure::from),
        failure = signals.next() => Err(failure),
    };
    log.close().await;
    screen.result(&rotated?, |told| {
        let mut text = if told.rolled_back {
            format!("{}: {} gets in as before", told.vm_id, told.fingerprint)
        } else {
            format!("{}: {} gets in from now on", told.vm_id, told.fingerprint)
        };
        if let Some(refused) = &told.refused {
            text.push_str(&format!("\n{refused} is refused"));
        }
        if let Some(step) = told.resumed_at {
            text.push_str(&format!("\n(an earlier call had stopped at {step})"));
        }
        text
    })
}

async fn revoke(args: RevokeArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let question = format!(
        "Revoke the key of {}? Nothing can be run there with it afterwards.",
        args.vm
    );
    screen.confirm(&question, args.yes)?;
    let mut signals = Signals::new()?;
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let revoked = tokio::select! {
        revoked = remote.revoke_key(&args.vm, args.with_key.as_deref(), args.delete) => revoked.map_err(Failure::from),
        failure = signals.next() => Err(failure),
    };
    log.close().await;
    let revoked = revoked?;
    if revoked.line_removed.is_none() {
        screen.note(
            "the host refused the key already, so its authorized_keys was not looked at (--with-key FILE does)",
        );
    }
    screen.result(&revoked, |told| {
        let kept = match &told.kept {
            Some(path) => format!("the private key is set aside as {path}"),
            None => "the private key is deleted".to_owned(),
        };
        format!("{}: {} is refused; {kept}", told.vm_id, told.fingerprint)
    })
}

fn status(args: &StatusArgs, hosts: &Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let mut all = key_status(hosts);
    if let Some(vm) = &args.vm {
        all.retain(|status| status.vm_id == *vm);
        if all.is_empty() {
            return Err(Failure::usage(
                format!("there is no host {vm}"),
                "see: proximity remote hosts",
            ));
        }
    }
    screen.list(
        &all,
        "no hosts: add some under vms in the configuration",
        |all| {
            let mut table = Table::new(&["VM", "STATE", "AGE", "KIND", "FINGERPRINT", "REMARK"]);
            for status in all {
                table.row([
                    status.vm_id.clone(),
                    word(status).to_owned(),
                    status
                        .age_days
                        .map(|age| format!("{age} of {} d", status.rotation_days))
                        .unwrap_or_default(),
                    status.key_type.clone().unwrap_or_default(),
                    status.fingerprint.clone().unwrap_or_default(),
                    remark(status),
                ]);
            }
            table.text()
        },
    )
}

fn word(status: &KeyStatus) -> &'static str {
    match status.state {
        KeyState::Missing => "none",
        KeyState::Unusable => "UNUSABLE",
        KeyState::Pending => "PENDING",
        KeyState::Due => "DUE",
        KeyState::Good => "good",
    }
}

fn remark(status: &KeyStatus) -> String {
    let vm = &status.vm_id;
    if let Some(problem) = &status.problem {
        return problem.clone();
    }
    if let Some(pending) = &status.pending {
        let way = if pending.rolling_back {
            "being taken back"
        } else {
            "being replaced"
        };
        return format!(
            "{way} since {}, next is {}: proximity remote keys rotate {vm}",
            pending.began, pending.step
        );
    }
    match (&status.state, &status.certificate_expires) {
        (KeyState::Due, _) => format!("proximity remote keys rotate {vm}"),
        (KeyState::Missing, _) => format!("proximity remote keys init {vm}"),
        (_, Some(end)) => format!("its certificate ends {end}"),
        _ => String::new(),
    }
}
