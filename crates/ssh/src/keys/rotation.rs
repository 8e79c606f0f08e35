//! Replaces a host's key. Each step is recorded before it is taken and does no harm when it is taken twice, so whoever
//! was cut goes on at the step that is recorded, forward or back.
//!
//! ```text
//!   make ▸ stage ▸ prove-new ▸ swap ▸ remove-old ▸ prove-old-fails ▸ finish
//!            │         │ the new key does not get in    │
//!            ▼         ▼                                ▼        --roll-back
//!           back-swap ▸ back-restore ▸ back-remove-new ▸ back-finish
//! ```
//! The old private key stays until it is proved useless, and its line until the new key has got in: there is no moment at
//! which neither does. The new line has the options of the old one (`from=`, `command=` …).

use std::path::Path;
use std::sync::Arc;

use russh::keys::PublicKey;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::files::{Files, failed, read_bounded};
use super::host::{self, Door};
use super::{
    authorized, encoded, fault_points, fingerprint, keys_error, make, now_text, overridden,
    own_key, still_open,
};
use crate::error::Error;
use crate::hosts::Vm;
use crate::identity::{self, Offer, Passphrases};
use crate::remote::Remote;

/// The layout of the state file.
const VERSION: u32 = 1;

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Step {
    /// A new key is made here.
    Make,
    /// Its line goes to the host, beside the old one.
    Stage,
    /// A login with it.
    ProveNew,
    /// It becomes the key of the host here.
    Swap,
    /// The old line goes.
    RemoveOld,
    /// A login with the old key, which must fail.
    ProveOldFails,
    /// The old key is deleted here.
    Finish,
    /// The old key becomes the key of the host again.
    BackSwap,
    /// Its line stands on the host, and it gets in.
    BackRestore,
    /// The new line goes, and the new key does not get in.
    BackRemoveNew,
    /// The new key is deleted here.
    BackFinish,
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Make => "make",
            Self::Stage => "stage",
            Self::ProveNew => "prove-new",
            Self::Swap => "swap",
            Self::RemoveOld => "remove-old",
            Self::ProveOldFails => "prove-old-fails",
            Self::Finish => "finish",
            Self::BackSwap => "back-swap",
            Self::BackRestore => "back-restore",
            Self::BackRemoveNew => "back-remove-new",
            Self::BackFinish => "back-finish",
        }
    }

    fn next(self) -> Option<Self> {
        match self {
            Self::Make => Some(Self::Stage),
            Self::Stage => Some(Self::ProveNew),
            Self::ProveNew => Some(Self::Swap),
            Self::Swap => Some(Self::RemoveOld),
            Self::RemoveOld => Some(Self::ProveOldFails),
            Self::ProveOldFails => Some(Self::Finish),
            Self::BackSwap => Some(Self::BackRestore),
            Self::BackRestore => Some(Self::BackRemoveNew),
            Self::BackRemoveNew => Some(Self::BackFinish),
            Self::Finish | Self::BackFinish => None,
        }
    }

    pub fn goes_back(self) -> bool {
        matches!(
            self,
            Self::BackSwap | Self::BackRestore | Self::BackRemoveNew | Self::BackFinish
        )
    }
}

/// The state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    pub step: Step,
    /// RFC 3339 in UTC.
    pub began: String,
    user: String,
    address: String,
    /// Public halves as OpenSSH writes them.
    old: String,
    new: Option<String>,
}

impl State {
    /// What is recorded of a host, if anything is.
    pub fn read(files: &Files) -> Result<Option<Self>, Error> {
        let path = files.rotation();
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let bad = |reason: String| Error::Content {
            path: path.clone(),
            reason,
        };
        let state: Self = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        if state.version != VERSION {
            return Err(bad("another version of proximity wrote it".to_owned()));
        }
        Ok(Some(state))
    }
}

/// How a replacement ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rotated {
    /// The host's id.
    pub vm_id: String,
    /// SHA-256 of the key that lets in now.
    pub fingerprint: String,
    /// SHA-256 of the key that does not any more; `None` if there was nothing to take back.
    pub refused: Option<String>,
    /// Whether the old key is back.
    pub rolled_back: bool,
    /// The step at which an earlier call had been cut.
    pub resumed_at: Option<&'static str>,
}

impl Remote {
    /// Replaces a host's key, or goes on with a replacement that was cut; with `roll_back` takes it back.
    pub async fn rotate_key(&self, id: &str, roll_back: bool) -> Result<Rotated, Error> {
        let detail = json!({"roll_back": roll_back});
        let vm = self.permitted(id, "remote.keys.rotate", &detail).await?;
        let files = Files::of(vm, &self.hosts.settings);
        let _held = files.hold()?;
        if let Some(other) = overridden(vm, &files) {
            let reason = format!("its key is {other}, which other hosts may use too");
            let hint = format!(
                "give the host a key of its own: proximity remote keys init {id}, keys deploy {id}, then remove vms.{id}.key_file (or IdentityFile of its ssh_config)"
            );
            return Err(keys_error(vm, reason, &hint));
        }
        let own = own_key(vm, &files)?;
        let remote = self.with_one_passphrase(&files);
        let found = State::read(&files)?;
        let resumed_at = found.as_ref().map(|state| state.step.name());
        let state = match found {
            Some(state) => state,
            None if roll_back => {
                let reason = "no replacement of its key is under way".to_owned();
                return Err(keys_error(vm, reason, "there is nothing to take back"));
            }
            None => remote.begin(vm, &files, &own).await?,
        };
        let mut rotation = Rotation {
            remote: &remote,
            vm,
            files,
            state,
        };
        rotation.check_host()?;
        if roll_back {
            rotation.turn_back()?;
        }
        rotation.run().await?;
        rotation.told(resumed_at)
    }

    /// The new and the old key have the passphrase of the current one, so nobody is asked for it three times.
    fn with_one_passphrase(&self, files: &Files) -> Self {
        let Some(inner) = self.caller().passphrases.cloned() else {
            return self.clone();
        };
        let (current, next, old) = (files.current(), files.next(), files.old());
        let ask: Passphrases = Arc::new(move |path: &Path| {
            if path == next || path == old {
                inner(&current)
            } else {
                inner(path)
            }
        });
        self.clone().passphrases(ask)
    }

    /// The state before the first step. Nothing is begun with a key that does not get in itself.
    async fn begin(&self, vm: &Vm, files: &Files, own: &Path) -> Result<State, Error> {
        if files.certificate().exists() {
            let reason = format!("its key logs in by {}", files.certificate().display());
            let hint = "have the authority sign a new key; a certificate ends by itself and needs no rotation";
            return Err(keys_error(vm, reason, hint));
        }
        let old = files.public_half(vm, own)?;
        if let Door::Closed(why) = host::knock(self, vm, Offer::Bare(own)).await? {
            let reason = format!("its key does not get in as it is: {why}");
            let hint = format!("proximity remote keys deploy {} --with-key FILE", vm.id);
            return Err(keys_error(vm, reason, &hint));
        }
        let state = State {
            version: VERSION,
            step: Step::Make,
            began: now_text(),
            user: vm.user.clone(),
            address: vm.address(),
            old: encoded(vm, &old)?.1,
            new: None,
        };
        Ok(state)
    }
}

struct Rotation<'a> {
    remote: &'a Remote,
    vm: &'a Vm,
    files: Files,
    state: State,
}

impl Rotation<'_> {
    /// A replacement that began on another host than the one that the id means now must not go on.
    fn check_host(&self) -> Result<(), Error> {
        if self.state.user == self.vm.user && self.state.address == self.vm.address() {
            return Ok(());
        }
        let reason = format!(
            "a replacement of its key began on {} as {}, which is not what the configuration says now",
            self.state.address, self.state.user
        );
        Err(self.error(reason, "put the old values back until it is finished"))
    }

    fn turn_back(&mut self) -> Result<(), Error> {
        if self.state.step.goes_back() {
            return Ok(());
        }
        if self.state.step == Step::Finish {
            let reason = "the old key is being deleted already".to_owned();
            let hint = format!("finish it: proximity remote keys rotate {}", self.vm.id);
            return Err(self.error(reason, &hint));
        }
        // Without a new key nothing has been done.
        self.state.step = if self.state.new.is_some() {
            Step::BackSwap
        } else {
            Step::BackFinish
        };
        Ok(())
    }

    async fn run(&mut self) -> Result<(), Error> {
        let mut gave_up = None;
        loop {
            let step = self.state.step;
            self.save()?;
            fault_points::passed(&format!("{} begin", step.name())).await;
            match self.recorded(step).await? {
                Verdict::Good => {}
                Verdict::TakeBack(why) => {
                    gave_up = Some(why);
                    self.state.step = Step::BackSwap;
                    continue;
                }
            }
            fault_points::passed(&format!("{} done", step.name())).await;
            match step.next() {
                Some(next) => self.state.step = next,
                None => break,
            }
        }
        self.files.remove(&self.files.rotation())?;
        match gave_up {
            None => Ok(()),
            Some(why) => Err(self.error(
                format!("the new key does not get in, so the old one is back: {why}"),
                "the host's log says why; the old key works as before",
            )),
        }
    }

    fn save(&self) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(&self.state).map_err(|e| Error::Content {
            path: self.files.rotation(),
            reason: e.to_string(),
        })?;
        self.files.replace(&self.files.rotation(), &text, 0o600)
    }

    async fn recorded(&mut self, step: Step) -> Result<Verdict, Error> {
        let mut detail = json!({"step": step.name(), "old": self.print(&self.state.old)});
        if let (Some(new), Some(fields)) = (&self.state.new, detail.as_object_mut()) {
            fields.insert("new".to_owned(), json!(self.print(new)));
        }
        let (remote, vm) = (self.remote, self.vm);
        let taking = self.take(step);
        remote
            .recorded(vm, "remote.keys.rotate", detail, taking)
            .await
    }

    async fn take(&mut self, step: Step) -> Result<Verdict, Error> {
        match step {
            Step::Make => self.make()?,
            Step::Stage => self.stage(&self.files.current()).await?,
            Step::ProveNew => match self.knock(&self.files.next()).await? {
                Door::Open => {}
                Door::Closed(why) => return Ok(Verdict::TakeBack(why)),
            },
            Step::Swap => self.swap()?,
            Step::RemoveOld => {
                self.remove_line(&self.old_key()?, &self.files.current())
                    .await?;
            }
            Step::ProveOldFails => self.prove_closed(&self.files.old()).await?,
            Step::Finish => self.files.remove(&self.files.old())?,
            Step::BackSwap => self.swap_back()?,
            Step::BackRestore => self.restore().await?,
            Step::BackRemoveNew => {
                self.remove_line(&self.new_key()?, &self.files.current())
                    .await?;
                self.prove_closed(&self.files.next()).await?;
            }
            Step::BackFinish => {
                self.files.remove(&self.files.next())?;
                self.files.remove(&self.files.old())?;
            }
        }
        Ok(Verdict::Good)
    }

    fn make(&mut self) -> Result<(), Error> {
        let current = self.files.current();
        let passphrases = self.remote.caller().passphrases;
        // Says what is wrong with the current key or its passphrase before a new one has the same.
        identity::open(self.vm, &current, passphrases)?;
        let (_, encrypted) = identity::public_half(self.vm, &current)?;
        let passphrase = if encrypted {
            passphrases.and_then(|ask| ask(&current))
        } else {
            None
        };
        let next = self.files.next();
        // One that an earlier try made was never shown to anybody.
        self.files.remove(&next)?;
        let fresh = make::make(self.vm, passphrase.as_ref())?;
        self.files.write_private(&next, &fresh.private)?;
        self.state.new = Some(encoded(self.vm, &fresh.public)?.1);
        Ok(())
    }

    /// The new line beside the old one, with the same options.
    async fn stage(&self, login: &Path) -> Result<(), Error> {
        let (old, _) = encoded(self.vm, &self.old_key()?)?;
        let (new, line) = encoded(self.vm, &self.new_key()?)?;
        let stands = std::cell::Cell::new(true);
        self.edit(login, |text| {
            // The options of a line that is elsewhere are not known, and without them the new key could do more.
            stands.set(authorized::holds(text, &old) || authorized::holds(text, &new));
            if !stands.get() {
                return None;
            }
            let options = authorized::options_of(text, &old).unwrap_or_default();
            (!authorized::holds(text, &new)).then(|| authorized::with(text, options, &line))
        })
        .await?;
        if stands.get() {
            return Ok(());
        }
        let reason =
            "the key that lets in is not in ~/.ssh/authorized_keys; nothing was changed there";
        let hint = "the host knows it from elsewhere (another AuthorizedKeysFile): put it into that file, then --roll-back and rotate again";
        Err(keys_error(self.vm, reason.to_owned(), hint))
    }

    fn swap(&self) -> Result<(), Error> {
        let (current, next, old) = (self.files.current(), self.files.next(), self.files.old());
        if !self.is(&current, &self.new_key()?)? {
            self.must_be(&current, &self.old_key()?)?;
            self.must_be(&next, &self.new_key()?)?;
            self.files.link(&current, &old)?;
            self.must_be(&old, &self.old_key()?)?;
            self.files.rename(&next, &current)?;
        }
        self.files.write_public(&self.new_key()?)
    }

    fn swap_back(&self) -> Result<(), Error> {
        let (current, next, old) = (self.files.current(), self.files.next(), self.files.old());
        if !self.is(&current, &self.old_key()?)? {
            self.must_be(&current, &self.new_key()?)?;
            self.must_be(&old, &self.old_key()?)?;
            self.files.link(&current, &next)?;
            self.must_be(&next, &self.new_key()?)?;
            self.files.rename(&old, &current)?;
        }
        self.files.write_public(&self.old_key()?)
    }

    /// The old key gets in again. Its line may be gone; then the new key brings it back.
    async fn restore(&self) -> Result<(), Error> {
        let (current, next) = (self.files.current(), self.files.next());
        let Door::Closed(why) = self.knock(&current).await? else {
            return Ok(());
        };
        let (old, line) = encoded(self.vm, &self.old_key()?)?;
        let (new, _) = encoded(self.vm, &self.new_key()?)?;
        self.edit(&next, |text| {
            let options = authorized::options_of(text, &new).unwrap_or_default();
            (!authorized::holds(text, &old)).then(|| authorized::with(text, options, &line))
        })
        .await?;
        match self.knock(&current).await? {
            Door::Open => Ok(()),
            Door::Closed(_) => Err(self.error(
                format!("the old key does not get in although its line is there: {why}"),
                "the host's log says why; the new key still gets in. Mend the host, then run the same command again",
            )),
        }
    }

    async fn remove_line(&self, key: &PublicKey, login: &Path) -> Result<(), Error> {
        let (blob, _) = encoded(self.vm, key)?;
        self.edit(login, |text| {
            authorized::holds(text, &blob).then(|| authorized::without(text, &blob))
        })
        .await
    }

    async fn edit(
        &self,
        login: &Path,
        change: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<(), Error> {
        host::edit(self.remote, self.vm, Offer::Bare(login), change).await?;
        Ok(())
    }

    async fn knock(&self, path: &Path) -> Result<Door, Error> {
        host::knock(self.remote, self.vm, Offer::Bare(path)).await
    }

    /// A key that must not get in any more.
    async fn prove_closed(&self, path: &Path) -> Result<(), Error> {
        match self.knock(path).await? {
            Door::Closed(_) => Ok(()),
            Door::Open => Err(still_open(self.vm)),
        }
    }

    fn is(&self, path: &Path, key: &PublicKey) -> Result<bool, Error> {
        if !path.exists() {
            return Ok(false);
        }
        let (found, _) = identity::public_half(self.vm, path)?;
        Ok(found.key_data() == key.key_data())
    }

    fn must_be(&self, path: &Path, key: &PublicKey) -> Result<(), Error> {
        if self.is(path, key)? {
            return Ok(());
        }
        let reason = format!(
            "{} is not the key {} that the replacement left there",
            path.display(),
            fingerprint(key)
        );
        Err(self.error(
            reason,
            "somebody moved the files of this key: put them back",
        ))
    }

    fn old_key(&self) -> Result<PublicKey, Error> {
        self.parsed(&self.state.old)
    }

    fn new_key(&self) -> Result<PublicKey, Error> {
        self.parsed(self.state.new.as_deref().unwrap_or_default())
    }

    fn parsed(&self, text: &str) -> Result<PublicKey, Error> {
        PublicKey::from_openssh(text).map_err(|e| Error::Content {
            path: self.files.rotation(),
            reason: format!("it holds no public key: {e}"),
        })
    }

    fn print(&self, text: &str) -> Option<String> {
        self.parsed(text).ok().map(|key| fingerprint(&key))
    }

    fn told(&self, resumed_at: Option<&'static str>) -> Result<Rotated, Error> {
        let rolled_back = self.state.step.goes_back();
        let old = fingerprint(&self.old_key()?);
        let new = self.state.new.as_deref().and_then(|new| self.print(new));
        let (fingerprint, refused) = match (rolled_back, new) {
            (false, Some(new)) => (new, Some(old)),
            (_, new) => (old, new),
        };
        Ok(Rotated {
            vm_id: self.vm.id.to_string(),
            fingerprint,
            refused,
            rolled_back,
            resumed_at,
        })
    }

    fn error(&self, reason: String, hint: &str) -> Error {
        keys_error(self.vm, reason, hint)
    }
}

/// What a step says besides that it is taken.
enum Verdict {
    Good,
    /// The new key is of no use: back to the old one.
    TakeBack(Error),
}
