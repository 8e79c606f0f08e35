//! The far side of key management: `~/.ssh/authorized_keys` of the login's user, and proofs of who gets in.
//!
//! The file comes here, is changed here, and goes back beside the old one, which is replaced only if it is still what was
//! read. Each call makes a connection of its own: a kept one would prove nothing.

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::command::{Input, Output};
use crate::connection::Connection;
use crate::error::Error;
use crate::hosts::Vm;
use crate::identity::Offer;
use crate::remote::{Remote, wait_before};
use crate::running::Limit;
use crate::transfer::{Far, complaint};

/// How long the host may take to answer.
const ASK: Duration = Duration::from_secs(60);
/// How often a change is tried when somebody else changes the file at the same time.
const RACES: u32 = 5;
/// What [`READ`] ends with where there is no file.
const ABSENT: i32 = 4;

/// Prints the file.
const READ: &str = "f=$HOME/.ssh/authorized_keys; [ -n \"$HOME\" ] || { echo no HOME >&2; exit 1; }; \
    can_sum || { echo no sha256sum, shasum or openssl >&2; exit 1; }; \
    [ -e \"$f\" ] || exit 4; [ -f \"$f\" ] || { echo $f is no plain file >&2; exit 1; }; \
    [ $(wc -c <\"$f\") -le 1048576 ] || { echo $f is larger than 1 MiB >&2; exit 1; }; cat \"$f\"";

/// `$1` SHA-256 of the file that is to be replaced, or NONE, `$2` of the new one, which is standard input. Its mode and
/// owner stay; what is made anew is for nobody else. A link stays one. Of several who do this at once, one goes after the other; where there
/// is no `flock`, whoever comes between the last look and the renaming is not seen.
const REPLACE: &str = "d=$HOME/.ssh; f=$d/authorized_keys; umask 077; \
    [ -d \"$d\" ] || mkdir \"$d\" || exit 1; \
    [ ! -L \"$f\" ] || f=$(readlink -f \"$f\") || exit 1; \
    t=$f.proximity-$$; trap 'rm -f \"$t\"' 0; trap 'exit 1' 1 2 15; \
    if [ \"$1\" = NONE ]; then : >\"$t\"; else cp -p \"$f\" \"$t\"; fi || exit 1; \
    cat >\"$t\" || exit 1; \
    case $(sum \"$t\") in *\"$2\"*) ;; *) echo CUT; exit;; esac; \
    sync \"$t\" 2>/dev/null || sync; \
    exec 9<\"$d\"; command -v flock >/dev/null 2>&1 && flock 9; \
    if [ \"$1\" = NONE ]; then [ ! -e \"$f\" ] || { echo CHANGED; exit; }; \
    else case $(sum \"$f\") in *\"$1\"*) ;; *) echo CHANGED; exit;; esac; fi; \
    mv -f \"$t\" \"$f\" || exit 1; sync \"${f%/*}\" 2>/dev/null || sync; echo DONE";

/// Whether a key lets in.
#[derive(Debug)]
pub enum Door {
    Open,
    /// What the server says.
    Closed(Error),
}

/// Whether the host lets somebody in. Any other failure than a refused login is an error.
pub async fn knock(remote: &Remote, vm: &Vm, offer: Offer<'_>) -> Result<Door, Error> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match Connection::open_with(vm, remote.caller(), offer).await {
            // Where the key is one factor of two, it opens as much as it is meant to.
            Ok(_) | Err(Error::SecondFactor { .. }) => return Ok(Door::Open),
            Err(error @ Error::Login { .. }) => return Ok(Door::Closed(error)),
            Err(error) if error.is_passing() && attempts <= remote.hosts.settings.retry => {
                tokio::time::sleep(wait_before(attempts)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Changes the file, until it is as `change` wants it, which answers `None` for a text that needs no change. Answers
/// whether anything was changed.
pub async fn edit(
    remote: &Remote,
    vm: &Vm,
    offer: Offer<'_>,
    change: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<bool, Error> {
    let (mut attempts, mut races) = (0, 0);
    let mut changed = false;
    loop {
        // A change whose outcome nobody knows shows when the file is read again.
        let error = match edit_once(remote, vm, offer, &change).await {
            Ok(Edited::Already) => return Ok(changed),
            Ok(Edited::Done) => return Ok(true),
            Ok(Edited::Raced) if races < RACES => {
                races += 1;
                continue;
            }
            Ok(Edited::Raced) => {
                return Err(refused(
                    vm,
                    "somebody else changes it all the time".to_owned(),
                ));
            }
            Err(error) => error,
        };
        changed |= error.may_have_run();
        attempts += 1;
        let may_repeat = error.is_passing() || error.may_have_run();
        if !may_repeat || attempts > remote.hosts.settings.retry {
            return Err(error.after(changed));
        }
        tokio::time::sleep(wait_before(attempts)).await;
    }
}

enum Edited {
    Already,
    Done,
    /// Somebody else changed the file in between.
    Raced,
}

async fn edit_once(
    remote: &Remote,
    vm: &Vm,
    offer: Offer<'_>,
    change: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Edited, Error> {
    let connection = Connection::open_with(vm, remote.caller(), offer).await?;
    let far = Far {
        vm,
        connection,
        must_prove: true,
    };
    let limit = Limit::Total(ASK);
    let read = far
        .script(READ, &[] as &[&str], Input::None, Output::Collect, limit)
        .await?;
    let (text, before) = match read.exit_code {
        0 => (
            read.stdout.clone(),
            hex::encode(Sha256::digest(&read.stdout)),
        ),
        ABSENT => (Vec::new(), "NONE".to_owned()),
        _ => return Err(refused(vm, complaint(&read))),
    };
    let Some(wanted) = change(&text) else {
        return Ok(Edited::Already);
    };
    let after = hex::encode(Sha256::digest(&wanted));
    let input = Input::Bytes(Bytes::from(wanted));
    let replaced = far
        .script(REPLACE, &[&before, &after], input, Output::Collect, limit)
        .await?;
    match String::from_utf8_lossy(&replaced.stdout).trim() {
        "DONE" => Ok(Edited::Done),
        "CHANGED" | "CUT" => Ok(Edited::Raced),
        _ => Err(refused(vm, complaint(&replaced))),
    }
}

fn refused(vm: &Vm, reason: String) -> Error {
    Error::Keys {
        vm: vm.id.to_string(),
        reason: format!(
            "~{}/.ssh/authorized_keys was not changed: {reason}",
            vm.user
        ),
        hint: "look at the file and its directory on the host".to_owned(),
    }
}
