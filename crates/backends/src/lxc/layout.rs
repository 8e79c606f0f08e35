//! Where a guest lies on the node's disk, and the mark that says it is ours.
//!
//! ```text
//!   guests/ID/guest.json   the mark: spec, and whether the guest is complete
//!            /config       LXC's configuration, written before each start
//!            /up /work     the writable layer over the image
//!            /disk.img     instead, when the disk is limited: a file system of its own,
//!            /disk/up …    mounted here
//!            /identity     its certificate and key, for its agent
//!            /console.log /lxc.log
//!   guests/ID.new  on its way in    guests/ID.gone  on its way out
//! ```
//! A guest's directory appears with its mark and goes with it, each by one rename: what a crash leaves of
//! the way there or back has a name that is no guest's, and is swept at the next start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use api::InstanceId;
use engine::ports::{GuestSpec, PortError};
use serde::{Deserialize, Serialize};

use super::ids::Ids;

/// The directory of one guest.
#[derive(Debug, Clone)]
pub(crate) struct GuestDir {
    root: PathBuf,
    limited: bool,
}

/// What `guest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Whose directory this is; must match the directory's name.
    pub(crate) id: InstanceId,
    /// Written last: all of the guest is there.
    pub(crate) complete: bool,
    /// What it was made of.
    pub(crate) spec: GuestSpec,
}

impl GuestDir {
    pub(crate) fn new(guests: &Path, id: &InstanceId) -> Self {
        Self {
            root: guests.join(id.as_str()),
            limited: false,
        }
    }

    /// The same directory, with the writable layer on a limited disk if the spec wants one.
    pub(crate) fn for_spec(guests: &Path, spec: &GuestSpec) -> Self {
        Self {
            limited: spec.limits.disk_gb.is_some(),
            ..Self::new(guests, &spec.id)
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.root.join("console.log")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("lxc.log")
    }

    /// What the guest is told of who it is: mounted read-only into it, never part of its layer.
    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    pub(crate) fn disk_image(&self) -> PathBuf {
        self.root.join("disk.img")
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }

    fn layers(&self) -> PathBuf {
        if self.limited {
            self.disk()
        } else {
            self.root.clone()
        }
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.layers().join("up")
    }

    /// LXC takes `work` beside the upper layer.
    pub(crate) fn work(&self) -> PathBuf {
        self.layers().join("work")
    }

    fn mark_path(&self) -> PathBuf {
        self.root.join(MARK)
    }

    /// The mark, if the directory is there. A directory without a readable mark is not ours.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, PortError> {
        let text = match fs::read(self.mark_path()) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.root.exists() => {
                return Ok(None);
            }
            Err(e) => return Err(self.not_ours(&e)),
        };
        let mark: Mark = serde_json::from_slice(&text).map_err(|e| self.not_ours(&e))?;
        if Some(mark.id.as_str()) != self.root.file_name().and_then(|n| n.to_str()) {
            return Err(self.not_ours(&format!("its mark names {}", mark.id)));
        }
        Ok(Some(mark))
    }

    fn not_ours(&self, cause: &dyn std::fmt::Display) -> PortError {
        PortError::new(
            "read a guest's mark",
            format!("{} does not carry our mark: {cause}", self.root.display()),
        )
        .hint("it is left alone; move it away if it is in the way")
    }

    /// Makes the directory with its mark in it, in one step: there is never one without a mark. The
    /// guest's root may pass through to its layer; nobody else but the node's root may even look in,
    /// since a layer holds whatever set-id programs a guest puts there.
    pub(crate) fn begin(&self, mark: &Mark, ids: Ids) -> Result<(), PortError> {
        let new = Self {
            root: self.aside("new"),
            limited: self.limited,
        };
        let what = |e: io::Error| PortError::new(format!("make {}", self.root.display()), e);
        if new.root.exists() {
            fs::remove_dir_all(&new.root).map_err(what)?;
        }
        fs::create_dir(&new.root).map_err(what)?;
        new.give(ids)?;
        fs::set_permissions(&new.root, fs::Permissions::from_mode(0o710)).map_err(what)?;
        new.write_mark(mark)?;
        // Should a power cut take the rename back, the guest is not there and is made again.
        fs::rename(&new.root, &self.root).map_err(what)
    }

    /// Gives the directory to guests with these ids: their root is its group.
    pub(crate) fn give(&self, ids: Ids) -> Result<(), PortError> {
        chown(&self.root, Some(0), Some(ids.root()))
            .map_err(|e| PortError::new(format!("give away {}", self.root.display()), e))
    }

    /// Which ids its guest has.
    pub(crate) fn ids(&self) -> Result<Ids, PortError> {
        let group = fs::metadata(&self.root).map(|facts| facts.gid());
        let group =
            group.map_err(|e| PortError::new(format!("look at {}", self.root.display()), e))?;
        Ids::of_root(group).ok_or_else(|| {
            let what = format!("use {}", self.root.display());
            PortError::new(what, format!("its group {group} is no guest's root"))
                .hint("somebody changed its owner; chgrp it to the group of its directory disk, up or identity")
        })
    }

    /// Renames the directory so that it is no guest's any more, and takes its mark; says what to remove.
    pub(crate) fn set_aside(&self) -> Result<PathBuf, PortError> {
        let gone = self.aside("gone");
        fs::rename(&self.root, &gone)
            .and_then(|()| sync_parent(&self.root))
            .and_then(|()| fs::remove_file(gone.join(MARK)))
            .map(|()| gone)
            .map_err(|e| PortError::new(format!("set {} aside", self.root.display()), e))
    }

    fn aside(&self, suffix: &str) -> PathBuf {
        let id = self.root.file_name().unwrap_or_default().to_string_lossy();
        self.root.with_file_name(format!("{id}.{suffix}"))
    }

    /// Writes the mark so that it survives a crash.
    pub(crate) fn write_mark(&self, mark: &Mark) -> Result<(), PortError> {
        let text = serde_json::to_vec_pretty(mark)
            .map_err(|e| PortError::new("write a guest's mark", e))?;
        write_durably(&self.mark_path(), &text, 0o600)
    }
}

/// The mark's file name.
pub(crate) const MARK: &str = "guest.json";

/// What all complete guests were made of. Directories that are not ours are passed over.
pub(crate) fn complete_guests(guests: &Path) -> Result<Vec<GuestSpec>, PortError> {
    let failed = |e: io::Error| PortError::new(format!("list {}", guests.display()), e);
    let entries = match fs::read_dir(guests) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let ids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<InstanceId>().ok());
    let marks = ids.filter_map(|id| GuestDir::new(guests, &id).mark().ok().flatten());
    Ok(marks.filter(|m| m.complete).map(|m| m.spec).collect())
}

/// Removes what a crash left of guests that were being made or removed.
pub(crate) fn sweep(guests: &Path) -> Result<(), PortError> {
    let failed = |e: io::Error| PortError::new(format!("sweep {}", guests.display()), e);
    for entry in fs::read_dir(guests).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let ours = name
            .to_str()
            .and_then(|n| n.strip_suffix(".gone").or_else(|| n.strip_suffix(".new")));
        if ours.is_some_and(|id| id.parse::<InstanceId>().is_ok()) {
            // As deep as a guest made it, so not by a recursion of ours.
            let removed = std::process::Command::new("rm")
                .args(["-rf", "--one-file-system", "--"])
                .arg(entry.path())
                .status()
                .map_err(failed)?;
            if !removed.success() {
                tracing::warn!(path = %entry.path().display(), "what is left of a guest can't be removed");
            }
        }
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Writes a file of the node's root that is written anew before each use, so a crash may take it.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), PortError> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(content))
        .map_err(|e| PortError::new(format!("write {}", path.display()), e))
}

/// Replaces a file: temporary name, fsync, rename, fsync of the directory.
pub(crate) fn write_durably(path: &Path, content: &[u8], mode: u32) -> Result<(), PortError> {
    use std::os::unix::fs::OpenOptionsExt;
    let attempt = || -> io::Result<()> {
        let temp = path.with_extension("new");
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        sync_parent(path)
    };
    attempt().map_err(|e| PortError::new(format!("write {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_on_the_way_in_or_out_leaves_no_half_guest() {
        let guests = tempfile::tempdir().unwrap();
        let config = engine::Config::built_in().unwrap();
        let zone = config.zones.values().next().unwrap();
        let spec = zone.appliance_guest(&InstanceId::from_bytes([7; 8]));
        let dir = GuestDir::for_spec(guests.path(), &spec);
        let mark = Mark {
            id: spec.id.clone(),
            complete: false,
            spec,
        };
        let names = || {
            let entries = fs::read_dir(guests.path()).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for ending in ["new", "gone"] {
            fs::create_dir(dir.aside(ending)).unwrap();
            fs::write(dir.aside(ending).join("guest.new"), "{").unwrap();
        }
        fs::create_dir(guests.path().join("notes.new")).unwrap();
        assert_eq!(dir.mark().unwrap(), None);
        let sandboxes = Ids::of(engine::image::IdRange::Sandboxes);
        dir.begin(&mark, sandboxes).unwrap();
        assert_eq!(dir.mark().unwrap(), Some(mark));
        assert_eq!(dir.ids().unwrap(), sandboxes);
        chown(dir.root(), None, Some(7)).unwrap();
        let error = dir.ids().unwrap_err().to_string();
        assert!(error.contains("group 7"), "{error}");
        sweep(guests.path()).unwrap();
        assert_eq!(names(), [mark_name(&dir), "notes.new".into()]);
        dir.set_aside().unwrap();
        assert_eq!(dir.mark().unwrap(), None);
        sweep(guests.path()).unwrap();
        assert_eq!(names(), ["notes.new"]);
    }

    fn mark_name(dir: &GuestDir) -> std::ffi::OsString {
        dir.root().file_name().unwrap().to_owned()
    }
}
