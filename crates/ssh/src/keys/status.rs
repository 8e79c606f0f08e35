//! How old keys are and what is under way, as far as the files of this machine say. Asks no host.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use russh::keys::{Certificate, PublicKey};
use serde::Serialize;

use super::files::{Files, read_bounded};
use super::fingerprint;
use super::rotation::State;
use crate::hosts::{Hosts, Settings, Vm};
use crate::identity::{self, certificate_path, key_path};

const SECONDS_A_DAY: i64 = 24 * 3600;

/// What is to be done about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// There is none.
    Missing,
    /// It cannot be used; `problem` says why.
    Unusable,
    /// It is being replaced.
    Pending,
    /// It is older than `key_rotation_days`.
    Due,
    /// Nothing.
    Good,
}

/// A replacement that is not finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// The step that comes next.
    pub step: &'static str,
    /// When it began: RFC 3339 in UTC.
    pub began: String,
    /// Whether it is being taken back.
    pub rolling_back: bool,
}

/// One host's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// The host's id.
    pub vm_id: String,
    /// The private key's file.
    pub key: String,
    /// What is to be done.
    pub state: KeyState,
    /// SHA-256 of the public key.
    pub fingerprint: Option<String>,
    /// Its kind.
    pub key_type: Option<String>,
    /// Whether a passphrase protects it.
    pub encrypted: Option<bool>,
    /// When it was made: RFC 3339 in UTC. As its comment says, else when the file was written.
    pub created: Option<String>,
    /// Whole days since then.
    pub age_days: Option<i64>,
    /// After how many days it should be replaced.
    pub rotation_days: u32,
    /// The replacement that is under way.
    pub pending: Option<Pending>,
    /// When its certificate ends: RFC 3339 in UTC; `None` without one, or with one that does not end.
    pub certificate_expires: Option<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// The keys of all hosts, in the order of their ids.
pub fn key_status(hosts: &Hosts) -> Vec<KeyStatus> {
    let now = Timestamp::now();
    let of = |vm| status(vm, &hosts.settings, now);
    hosts.vms.values().map(of).collect()
}

fn status(vm: &Vm, settings: &Settings, now: Timestamp) -> KeyStatus {
    let path = key_path(vm, settings);
    let files = Files::of(vm, settings);
    let mut status = KeyStatus {
        vm_id: vm.id.to_string(),
        key: path.display().to_string(),
        state: KeyState::Missing,
        fingerprint: None,
        key_type: None,
        encrypted: None,
        created: None,
        age_days: None,
        rotation_days: settings.key_rotation_days,
        pending: None,
        certificate_expires: None,
        problem: None,
    };
    let own = path == files.current();
    match State::read(&files) {
        Ok(state) => {
            status.pending = state.filter(|_| own).map(|state| Pending {
                step: state.step.name(),
                began: state.began.clone(),
                rolling_back: state.step.goes_back(),
            });
        }
        Err(error) => status.problem = Some(error.to_string()),
    }
    if !path.exists() {
        return status;
    }
    match identity::public_half(vm, &path) {
        Ok((key, encrypted)) => {
            status.fingerprint = Some(fingerprint(&key));
            status.key_type = Some(key.algorithm().to_string());
            status.encrypted = Some(encrypted);
            let told = files.told_public().filter(|_| own);
            let told = told.filter(|told| told.key_data() == key.key_data());
            let created = told.as_ref().unwrap_or(&key);
            let created = told_time(created).or_else(|| written(&path));
            status.created = created.map(|time| time.to_string());
            status.age_days = created
                .map(|time| now.as_second().saturating_sub(time.as_second()) / SECONDS_A_DAY);
        }
        Err(error) => status.problem = Some(error.to_string()),
    }
    status.certificate_expires = certificate_end(&path);
    status.state = judged(&status);
    status
}

fn judged(status: &KeyStatus) -> KeyState {
    let limit = i64::from(status.rotation_days);
    if status.problem.is_some() {
        KeyState::Unusable
    } else if status.pending.is_some() {
        KeyState::Pending
    } else if status.age_days.is_some_and(|age| age >= limit) {
        KeyState::Due
    } else {
        KeyState::Good
    }
}

/// The time in the comment of a key that we made: `proximity ID TIME`.
fn told_time(key: &PublicKey) -> Option<Timestamp> {
    let comment = key.comment().to_string();
    let mut words = comment.split(' ');
    (words.next() == Some("proximity")).then_some(())?;
    words.next_back()?.parse().ok()
}

fn written(path: &Path) -> Option<Timestamp> {
    let written = fs::metadata(path).and_then(|meta| meta.modified()).ok()?;
    Timestamp::try_from(written).ok()
}

fn certificate_end(path: &Path) -> Option<String> {
    let text = read_bounded(&certificate_path(path)).ok()?;
    let certificate = Certificate::from_openssh(text.trim()).ok()?;
    let end = i64::try_from(certificate.valid_before()).ok()?;
    Timestamp::from_second(end).ok().map(|end| end.to_string())
}
