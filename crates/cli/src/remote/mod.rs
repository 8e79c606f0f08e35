//! `remote …`: commands on hosts of the configuration's `vms`, over SSH and without a controller.
//!
//! Reads the two sections of the configuration that `ssh` knows, opens the audit log of this machine's remote
//! actions, and hands over to one module for each command.

mod exec;
mod files;
mod fleet;
mod forward;
mod keys;
mod passphrase;
mod shell;
mod streams;
mod trust;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ::audit::Redactor;
use clap::{Args, Subcommand};
use serde::Serialize;
use ssh::{Hosts, Reader, Remote, journal};

use crate::configuration;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::Screen;
use crate::table::Table;

/// `remote …`
#[derive(Debug, Args)]
pub struct RemoteArgs {
    /// Hosts of this file, as OpenSSH has it, are hosts too [default file: ~/.ssh/config]
    #[arg(long, global = true, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    ssh_config: Option<Option<PathBuf>>,
    #[command(subcommand)]
    pub command: RemoteCommand,
}

/// One of them.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Run a command on hosts
    Exec(exec::ExecArgs),
    /// Open a terminal on a host, with the user's login shell or a program
    Shell(shell::ShellArgs),
    /// Lead a port of this machine through a host
    Forward(forward::ForwardArgs),
    /// Run a shell script of this machine on a host
    ///
    /// The script is sent as it is and run by /bin/sh there (or by --shell); it reads no standard input.
    #[command(
        after_help = "Examples:\n  proximity remote script vm01 ./rotate-logs.sh --keep 7\n  proximity remote script vm01 --shell /bin/bash ./check.sh"
    )]
    Script(exec::ScriptArgs),
    /// Put a file or a directory of this machine on a host
    ///
    /// It appears in one step, after the host has read it back and its SHA-256 is right; mode and time go with it.
    /// After a cut connection the same command goes on where it stopped.
    #[command(
        after_help = "Examples:\n  proximity remote upload vm01 site.conf /etc/nginx/conf.d/site.conf\n  proximity remote upload -r vm01 ./site /srv/site"
    )]
    Upload(files::UploadArgs),
    /// Fetch a file or a directory of a host
    ///
    /// It appears in one step, after its SHA-256 has been compared with what the host reads.
    #[command(
        after_help = "Examples:\n  proximity remote download vm01 /var/log/syslog ./syslog\n  proximity remote download -r vm01 /var/log ./logs"
    )]
    Download(files::DownloadArgs),
    /// Show the hosts and whether they may be used
    Hosts,
    /// Show the key that a host has, and trust it if you say so
    ///
    /// A host whose key is not known is never used. Compare the fingerprint with the host's own, on its console:
    /// ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. With --fingerprint nobody is asked: the key is pinned if
    /// it has that fingerprint, and only then. A key that has changed is never pinned over.
    #[command(
        after_help = "Examples:\n  proximity remote trust vm01\n  proximity remote trust vm01 --fingerprint SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"
    )]
    Trust(trust::TrustArgs),
    /// Make, deploy, replace and revoke the keys that log in
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Check that nobody changed the audit log of remote actions
    ///
    /// Exit code 1 if anything is wrong with any of its files.
    Verify(VerifyArgs),
}

/// `remote verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A head that was kept elsewhere (proof.json of evidence holds one): finds missing ends and rewriting too
    #[arg(long, value_name = "SEQ:HASH")]
    head: Option<::audit::Head>,
}

/// Where evidence of an action goes.
#[derive(Debug, Args)]
pub struct EvidenceArgs {
    /// Write the result, the transcript and the records of the audit log as files into a new directory below DIR
    #[arg(long = "evidence", value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl EvidenceArgs {
    fn of(&self, remote: Remote) -> Remote {
        match &self.dir {
            Some(dir) => remote.evidence(dir),
            None => remote,
        }
    }
}

/// Flags of the commands that log in.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// A file with the passphrase of an encrypted key [default: ask on the terminal]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl RemoteCommand {
    /// Whether the low exit codes belong to a command on the far side.
    pub fn is_exec(&self) -> bool {
        matches!(self, Self::Exec(_) | Self::Script(_))
    }
}

/// Runs one of them.
pub async fn run(
    args: RemoteArgs,
    config: Option<&Path>,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let hosts = hosts(config, args.ssh_config)?;
    match args.command {
        RemoteCommand::Exec(args) => exec::run(args, hosts, screen).await,
        RemoteCommand::Shell(args) => shell::run(args, hosts, screen).await,
        RemoteCommand::Forward(args) => forward::run(args, hosts, screen).await,
        RemoteCommand::Script(args) => exec::script(args, hosts, screen).await,
        RemoteCommand::Upload(args) => files::upload(args, hosts, screen).await,
        RemoteCommand::Download(args) => files::download(args, hosts, screen).await,
        RemoteCommand::Hosts => list(&hosts, screen),
        RemoteCommand::Trust(args) => trust::run(&args, hosts, screen).await,
        RemoteCommand::Keys(command) => keys::run(command, hosts, screen).await,
        RemoteCommand::Verify(args) => verify(&hosts, &args, screen),
    }
}

/// The hosts of the configuration, and of an ssh_config where the command line or the configuration names one.
pub fn hosts(config: Option<&Path>, ssh_config: Option<Option<PathBuf>>) -> Result<Hosts, Failure> {
    let (path, must_be_there) = configuration::path(config);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !must_be_there => String::new(),
        Err(e) => {
            let what = format!("{} can't be read: {e}", path.display());
            return Err(Failure::local(what));
        }
    };
    // Of the user's entry in passwd where HOME is not set, as for services.
    let home = std::env::home_dir();
    let ssh_config = match (ssh_config, &home) {
        (None, _) => None,
        (Some(Some(file)), _) => Some(file),
        (Some(None), Some(home)) => Some(home.join(".ssh/config")),
        (Some(None), None) => {
            return Err(Failure::usage(
                "nobody knows whose ~/.ssh/config is meant: HOME is not set",
                "name the file: --ssh-config=FILE",
            ));
        }
    };
    let user = login_name();
    let reader = Reader {
        home: home.as_deref(),
        user: user.as_deref(),
        ssh_config: ssh_config.as_deref(),
    };
    Hosts::read(&text, reader).map_err(|e| {
        let failure = Failure::local(format!("{}: {e}", path.display()));
        match e.hint {
            Some(hint) => failure.next(hint),
            None => failure,
        }
    })
}

/// The name of the local user, as far as the environment says.
fn login_name() -> Option<String> {
    ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// Who acts, for the audit log: whoever became root is named by `sudo`.
fn actor() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let uid = rustix::process::getuid().as_raw();
    match named {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Opens the audit log, without which nothing is done.
async fn remote(
    hosts: Hosts,
    login: Option<&LoginArgs>,
) -> Result<(Remote, ::audit::Log), Failure> {
    let settings = &hosts.settings;
    let witness = settings.syslog.clone().map(ssh::syslog);
    let log = journal::open_with(&settings.audit_dir, Redactor::default(), witness).await?;
    let remote = Remote::new(hosts, log.clone(), actor());
    let file = login.and_then(|login| login.passphrase_file.as_deref());
    match login.map_or(Ok(None), |_| passphrase::source(file))? {
        Some(passphrases) => Ok((remote.passphrases(passphrases), log)),
        None => Ok((remote, log)),
    }
}

#[derive(Serialize)]
struct Host {
    vm_id: String,
    name: String,
    address: String,
    user: String,
    role: Option<String>,
    enabled: bool,
    allowed: bool,
    key: String,
    key_exists: bool,
    /// Options of an ssh_config that stand there for it and are not used.
    unused_options: Vec<String>,
    /// Why it can't be used, where its ssh_config is the cause.
    refused: Option<String>,
}

/// An alias of an ssh_config that can't be used.
fn refused_host(id: &ssh::VmId, borrowed: &ssh::ssh_config::Borrowed) -> Option<Host> {
    let refused = borrowed.refused.as_ref()?;
    Some(Host {
        vm_id: id.to_string(),
        name: id.to_string(),
        address: String::new(),
        user: String::new(),
        role: None,
        enabled: false,
        allowed: false,
        key: String::new(),
        key_exists: false,
        unused_options: borrowed.unused.clone(),
        refused: Some(refused.to_string()),
    })
}

fn list(hosts: &Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let host = |vm: &ssh::Vm| {
        let key = ssh::key_path(vm, &hosts.settings);
        Host {
            vm_id: vm.id.to_string(),
            name: vm.name.clone(),
            address: vm.address(),
            user: vm.user.clone(),
            role: vm.role.clone(),
            enabled: vm.enabled,
            allowed: hosts.permitted(vm.id.as_str()).is_ok(),
            key_exists: key.exists(),
            key: key.display().to_string(),
            unused_options: hosts
                .borrowed
                .get(&vm.id)
                .map(|borrowed| borrowed.unused.clone())
                .unwrap_or_default(),
            refused: None,
        }
    };
    let mut all: Vec<Host> = hosts.vms.values().map(host).collect();
    let refused = hosts.borrowed.iter();
    all.extend(refused.filter_map(|(id, borrowed)| refused_host(id, borrowed)));
    for host in &all {
        if let Some(refused) = &host.refused {
            screen.note(&format!("{}: {}", host.vm_id, guest_text::line(refused)));
        }
        if !host.unused_options.is_empty() {
            let unused = host.unused_options.join(", ");
            screen.note(&format!(
                "{}: not used: {}",
                host.vm_id,
                guest_text::line(&unused)
            ));
        }
    }
    screen.list(
        &all,
        "no hosts: add some under vms in the configuration",
        |all| {
            let mut table = Table::new(&["VM", "NAME", "ADDRESS", "USER", "ROLE", "STATE", "KEY"]);
            for host in all {
                table.row([
                    host.vm_id.clone(),
                    host.name.clone(),
                    host.address.clone(),
                    host.user.clone(),
                    host.role.clone().unwrap_or_default(),
                    match (host.enabled, host.allowed) {
                        _ if host.refused.is_some() => "refused",
                        (false, _) => "disabled",
                        (true, false) => "not allowed",
                        (true, true) => "ready",
                    }
                    .to_owned(),
                    if host.key_exists {
                        host.key.clone()
                    } else {
                        String::new()
                    },
                ]);
            }
            table.text()
        },
    )
}

#[derive(Serialize)]
struct Verified {
    sound: bool,
    /// Whether one of the chains has the given head; null without one.
    head_found: Option<bool>,
    files: Vec<VerifiedFile>,
}

#[derive(Serialize)]
struct VerifiedFile {
    file: String,
    sound: bool,
    records: u64,
    head: String,
    findings: Vec<String>,
}

fn verify(hosts: &Hosts, args: &VerifyArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mut files = Vec::new();
    let mut head_found = args.head.map(|_| false);
    for file in journal::files(&hosts.settings.audit_dir)? {
        let read = |head| {
            ::audit::verify(&file, head)
                .map_err(|e| Failure::local(format!("{}: {e}", file.display())))
        };
        // A head belongs to one chain; that the others do not have it is nothing against them.
        if let Some(head) = args.head {
            let proved = matches!(read(Some(head))?.proof, ::audit::Proof::UpTo(_));
            head_found = Some(head_found == Some(true) || proved);
        }
        let report = read(None)?;
        files.push(VerifiedFile {
            file: file.display().to_string(),
            sound: report.is_sound(),
            records: report.records,
            head: report.head.to_string(),
            findings: report.findings.iter().map(ToString::to_string).collect(),
        });
    }
    let verified = Verified {
        sound: files.iter().all(|file| file.sound) && head_found != Some(false),
        head_found,
        files,
    };
    screen.result(&verified, |verified| {
        let mut text = String::new();
        if verified.head_found == Some(false) {
            text.push_str(
                "NOT SOUND: no chain has the given head; one was cut, written anew, or removed\n",
            );
        }
        for file in &verified.files {
            let state = if file.sound { "sound" } else { "NOT SOUND" };
            text.push_str(&format!(
                "{}: {state}, {} records\n",
                file.file, file.records
            ));
            for finding in &file.findings {
                text.push_str(&format!("  {}\n", guest_text::line(finding)));
            }
        }
        text
    })?;
    if verified.sound {
        Ok(Exit::OK)
    } else {
        Err(Failure::Reported(Exit::FAILED))
    }
}
