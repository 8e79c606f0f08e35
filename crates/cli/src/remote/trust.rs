//! `remote trust`: shows a host's key and pins it, after a person said yes or an expected fingerprint matched.

use clap::Args;
use serde::Serialize;
use ssh::{HostKeyProblem, Hosts};

use super::remote;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `remote trust`
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// The host
    pub vm: String,
    /// Ask nobody: pin the key if it has this fingerprint, else refuse
    #[arg(long, value_name = "SHA256:…")]
    pub fingerprint: Option<String>,
}

#[derive(Serialize)]
struct Trusted {
    vm_id: String,
    key_type: String,
    fingerprint: String,
    known_hosts: String,
    /// False if it was trusted before.
    pinned_now: bool,
}

/// Looks, asks, pins.
pub async fn run(args: &TrustArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let known_hosts = hosts.settings.known_hosts.display().to_string();
    let (remote, log) = remote(hosts, None).await?;
    let found = remote.look_at_key(&args.vm).await?;
    let shown = &found.shown;
    let trusted = |pinned_now| Trusted {
        vm_id: args.vm.clone(),
        key_type: shown.key_type.clone(),
        fingerprint: shown.fingerprint.clone(),
        known_hosts: known_hosts.clone(),
        pinned_now,
    };
    if let Some(expected) = &args.fingerprint
        && *expected != shown.fingerprint
    {
        return Err(Failure::local(format!(
            "{} shows {} ({}), which is not the fingerprint that you expect; nothing was changed",
            args.vm, shown.fingerprint, shown.key_type
        ))
        .next("find out why before you go on: somebody may stand in between"));
    }
    let told = match &found.problem {
        None => trusted(false),
        Some(HostKeyProblem::Unknown { .. }) => {
            let how = if args.fingerprint.is_some() {
                "an expected fingerprint"
            } else {
                ask(&args.vm, shown, screen)?;
                "a person"
            };
            remote.pin_key(&args.vm, &found, how).await?;
            trusted(true)
        }
        // Says what is wrong with it; it is never pinned over.
        Some(_) => {
            remote.pin_key(&args.vm, &found, "nobody").await?;
            trusted(false)
        }
    };
    log.close().await;
    screen.result(&told, |t| {
        let state = if t.pinned_now {
            "is trusted from now on"
        } else {
            "is trusted already"
        };
        format!(
            "{} {} {state} ({})",
            t.key_type, t.fingerprint, t.known_hosts
        )
    })
}

/// Only a person says yes here; there is no --yes, because nobody would have looked.
fn ask(vm: &str, shown: &ssh::ShownKey, screen: &Screen) -> Result<(), Failure> {
    screen.note(&format!(
        "{vm} shows a key that is not known yet:\n  {} {}",
        shown.key_type, shown.fingerprint
    ));
    let question = "Does the host's own console show the same fingerprint?";
    screen
        .confirm(question, false)
        .map_err(|failure| match failure {
            Failure::Usage { .. } => Failure::usage(
                format!(
                    "{vm} shows {} ({}); there is nobody to ask",
                    shown.fingerprint, shown.key_type
                ),
                format!(
                    "proximity remote trust {vm} --fingerprint with what the host's console shows"
                ),
            ),
            other => other,
        })
}
