//! The keys that log in, one for each host: made here, put on the host, replaced, and taken away again.
//!
//! ```text
//!   init ─▶ deploy (through an existing login) ─▶ rotate, every key_rotation_days ─▶ … ─▶ revoke
//! ```
//! Owns the files of a host's key ([`files`]) and our lines in the host's `authorized_keys` ([`host`], [`authorized`]);
//! touches no other line. What is claimed is proved by logins: a deployed key gets in, a removed one does not.
//! Everything is in the audit log; [`rotation`] can be cut anywhere.

mod authorized;
mod files;
mod host;
mod make;
mod rotation;
mod status;

#[cfg(debug_assertions)]
mod fault_points;
#[cfg(not(debug_assertions))]
mod fault_points {
    //! Nothing holds a release build.
    pub async fn passed(_point: &str) {}
}

use std::fs;
use std::path::Path;

use audit::Outcome;
use jiff::Timestamp;
use russh::keys::{HashAlg, PublicKey};
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::hosts::Vm;
use crate::identity::{self, Offer};
use crate::remote::{Remote, outcome_of};
use files::Files;
use host::Door;

pub use rotation::Rotated;
pub use status::{KeyState, KeyStatus, Pending, key_status};

/// A key that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Made {
    /// The host's id.
    pub vm_id: String,
    /// The private key's file, mode 0600.
    pub key: String,
    /// The line for `authorized_keys`.
    pub public_key: String,
    /// SHA-256 of the public key.
    pub fingerprint: String,
    /// Whether a passphrase protects it.
    pub encrypted: bool,
    /// Another file that `vms.ID.key_file` names, which is used instead.
    pub overridden_by: Option<String>,
}

/// A key that lets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deployed {
    /// The host's id.
    pub vm_id: String,
    /// The user that it lets in.
    pub user: String,
    /// SHA-256 of the public key.
    pub fingerprint: String,
    /// False if the host knew it before.
    pub added: bool,
    /// Another file that `vms.ID.key_file` names, which is used instead.
    pub overridden_by: Option<String>,
}

/// A key that lets nobody in any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// The host's id.
    pub vm_id: String,
    /// SHA-256 of the public key.
    pub fingerprint: String,
    /// Whether a line of it was found on the host and removed; `None` if the key was refused already and nothing else let
    /// us look.
    pub line_removed: Option<bool>,
    /// Where the private key lies now; `None` if it was deleted.
    pub kept: Option<String>,
}

impl Remote {
    /// Makes a host's key: ed25519, for its owner only. Refused where one is.
    pub async fn init_key(
        &self,
        id: &str,
        passphrase: Option<&Zeroizing<String>>,
    ) -> Result<Made, Error> {
        const ACTION: &str = "remote.keys.init";
        let vm = self.permitted(id, ACTION, &Value::Null).await?;
        let files = Files::of(vm, &self.hosts.settings);
        let _held = files.hold()?;
        let path = files.current();
        if path.exists() {
            return Err(keys_error(
                vm,
                format!("it has a key already: {}", path.display()),
                &format!("replace it: proximity remote keys rotate {id}"),
            ));
        }
        if id.ends_with(".pub") {
            let reason = "the key of a host whose id ends in .pub would be taken for a public key";
            return Err(keys_error(vm, reason.to_owned(), "call the host otherwise"));
        }
        let fresh = make::make(vm, passphrase)?;
        let fingerprint = fingerprint(&fresh.public);
        let detail = json!({"key": path.display().to_string(), "fingerprint": fingerprint,
            "encrypted": passphrase.is_some()});
        let writing = async {
            files.write_public(&fresh.public)?;
            files.write_private(&path, &fresh.private)
        };
        self.recorded(vm, ACTION, detail, writing).await?;
        Ok(Made {
            vm_id: id.to_owned(),
            key: path.display().to_string(),
            public_key: fresh.public.to_openssh().unwrap_or_default(),
            fingerprint,
            encrypted: passphrase.is_some(),
            overridden_by: overridden(vm, &files),
        })
    }

    /// Puts the public half of a host's key into the `authorized_keys` of the login's user, through an existing login:
    /// the key file `with`, else what is configured, else an agent. Proves that the key lets in; takes the line away
    /// again if it does not.
    pub async fn deploy_key(&self, id: &str, with: Option<&Path>) -> Result<Deployed, Error> {
        const ACTION: &str = "remote.keys.deploy";
        let detail = json!({"through": with.map(|path| path.display().to_string())});
        let vm = self.permitted(id, ACTION, &detail).await?;
        let files = Files::of(vm, &self.hosts.settings);
        let _held = files.hold()?;
        let own = own_key(vm, &files)?;
        let public = files.public_half(vm, &own)?;
        let detail = json!({"through": with.map(|path| path.display().to_string()),
            "fingerprint": fingerprint(&public)});
        let offer = with.map_or(Offer::Configured, Offer::File);
        let added = self
            .recorded(vm, ACTION, detail, self.deploy(vm, offer, &own, &public))
            .await?;
        Ok(Deployed {
            vm_id: id.to_owned(),
            user: vm.user.clone(),
            fingerprint: fingerprint(&public),
            added,
            overridden_by: overridden(vm, &files),
        })
    }

    async fn deploy(
        &self,
        vm: &Vm,
        offer: Offer<'_>,
        own: &Path,
        public: &PublicKey,
    ) -> Result<bool, Error> {
        let (blob, line) = encoded(vm, public)?;
        // A key that cannot be opened would be found out only when its line is there.
        identity::open(vm, own, self.caller().passphrases)?;
        let added = host::edit(self, vm, offer, |text| {
            (!authorized::holds(text, &blob)).then(|| authorized::with(text, b"", &line))
        })
        .await?;
        let closed = match host::knock(self, vm, Offer::Bare(own)).await {
            Ok(Door::Open) => return Ok(added),
            Ok(Door::Closed(why)) => why,
            Err(error) => return Err(error.after(added)),
        };
        let mut reason = format!("its key stands in authorized_keys and lets nobody in: {closed}");
        if added {
            let without = |text: &[u8]| {
                authorized::holds(text, &blob).then(|| authorized::without(text, &blob))
            };
            host::edit(self, vm, offer, without).await?;
            reason.push_str("; the line was taken away again");
        }
        let hint = "the host's log says why: another AuthorizedKeysFile, or modes of ~/.ssh that its sshd does not like";
        Err(keys_error(vm, reason, hint))
    }

    /// Takes our line away from the host, proves that the key lets nobody in, and sets the private key aside, or deletes
    /// it. The login is the key's own, or `with`.
    pub async fn revoke_key(
        &self,
        id: &str,
        with: Option<&Path>,
        delete: bool,
    ) -> Result<Revoked, Error> {
        const ACTION: &str = "remote.keys.revoke";
        let detail = json!({"delete": delete});
        let vm = self.permitted(id, ACTION, &detail).await?;
        let files = Files::of(vm, &self.hosts.settings);
        let _held = files.hold()?;
        let own = own_key(vm, &files)?;
        if files.rotation().exists() {
            let reason = "its key is being replaced".to_owned();
            let hint = format!(
                "finish it: proximity remote keys rotate {id}, or go back with --roll-back"
            );
            return Err(keys_error(vm, reason, &hint));
        }
        let public = files.public_half(vm, &own)?;
        let detail = json!({"fingerprint": fingerprint(&public), "delete": delete});
        let line_removed = self
            .recorded(vm, ACTION, detail, self.revoke(vm, with, &own, &public))
            .await?;
        let kept = files.revoked(&now_compact());
        if delete {
            files.remove(&own)?;
        } else {
            files.rename(&own, &kept)?;
        }
        files.remove(&files.public())?;
        Ok(Revoked {
            vm_id: id.to_owned(),
            fingerprint: fingerprint(&public),
            line_removed,
            kept: (!delete).then(|| kept.display().to_string()),
        })
    }

    async fn revoke(
        &self,
        vm: &Vm,
        with: Option<&Path>,
        own: &Path,
        public: &PublicKey,
    ) -> Result<Option<bool>, Error> {
        let (blob, _) = encoded(vm, public)?;
        let offer = with.map_or(Offer::Bare(own), Offer::File);
        let edited = host::edit(self, vm, offer, |text| {
            authorized::holds(text, &blob).then(|| authorized::without(text, &blob))
        })
        .await;
        let removed = match edited {
            Ok(removed) => Some(removed),
            // It is refused already, which is what is wanted.
            Err(Error::Login { .. }) if with.is_none() => None,
            Err(error) => return Err(error),
        };
        match host::knock(self, vm, Offer::Bare(own)).await? {
            Door::Closed(_) => Ok(removed),
            Door::Open => Err(still_open(vm)),
        }
    }

    /// Does something between an intent and its outcome in the audit log.
    async fn recorded<T>(
        &self,
        vm: &Vm,
        action: &str,
        detail: Value,
        act: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let intent = self.intent(vm, action, detail).await?;
        let ended = act.await;
        let outcome = match &ended {
            Ok(_) => Outcome::ok(),
            Err(error) => outcome_of(error),
        };
        if let Err(error) = intent.finish(outcome).await {
            tracing::warn!(vm = %vm.id, %error, "the outcome of a change of keys is not in the audit log yet");
        }
        ended
    }
}

/// The host's own key, which must be there.
fn own_key(vm: &Vm, files: &Files) -> Result<std::path::PathBuf, Error> {
    let path = files.current();
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(_) => Err(keys_error(
            vm,
            format!("it has no key of its own: {} is not there", path.display()),
            &format!("make it: proximity remote keys init {}", vm.id),
        )),
    }
}

/// What `vms.ID.key_file` names, if that is another file than the host's own.
fn overridden(vm: &Vm, files: &Files) -> Option<String> {
    let named = vm
        .key_file
        .as_ref()
        .filter(|path| **path != files.current());
    named.map(|path| path.display().to_string())
}

/// The key in SSH's own encoding, and its line.
fn encoded(vm: &Vm, public: &PublicKey) -> Result<(Vec<u8>, String), Error> {
    let failed = |e| {
        let reason = format!("its public key cannot be written: {e}");
        keys_error(vm, reason, "make another one")
    };
    Ok((
        public.to_bytes().map_err(failed)?,
        public.to_openssh().map_err(failed)?,
    ))
}

fn still_open(vm: &Vm) -> Error {
    keys_error(
        vm,
        format!(
            "no line of ~{}/.ssh/authorized_keys holds the key any more, and still it lets in",
            vm.user
        ),
        "the host knows it from elsewhere: authorized_keys2, another AuthorizedKeysFile, or AuthorizedKeysCommand of its sshd_config; remove it there and run the same command again",
    )
}

fn keys_error(vm: &Vm, reason: String, hint: &str) -> Error {
    Error::Keys {
        vm: vm.id.to_string(),
        reason,
        hint: hint.to_owned(),
    }
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// RFC 3339 in UTC, whole seconds.
fn now_text() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// For names of files.
fn now_compact() -> String {
    Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ").to_string()
}
