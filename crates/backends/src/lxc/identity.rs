//! A guest's identity on the node's disk: one file in a directory that the guest sees read-only.
//!
//! Directory and file belong to the node's root, and the guest's root reads them by its group. That the
//! mount is read-only would not be enough: a guest's root may change that for its own mounts. Then a file or
//! directory of its own would be a way to write to the node's disk, past the guest's limit, and to put a
//! pipe where the node reads.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::SystemTime;

use engine::ports::{GuestSpec, PortError};
use link::{Authority, Kind, bundle_is_due};
use wire::identity::Bundle;

use super::layout::GuestDir;

const FILE: &str = "bundle.json";

/// Makes an identity for a guest.
pub(super) fn new(authority: &Authority, spec: &GuestSpec) -> Result<Bundle, PortError> {
    let kind = match spec.kind.as_str() {
        "appliance" => Kind::Relay,
        _ => Kind::Guest,
    };
    authority
        .bundle(kind, &spec.id, SystemTime::now())
        .map_err(|e| PortError::new(format!("make an identity for {}", spec.id), e))
}

/// The identity in place, if it can be used and will not end soon.
pub(super) fn lasting(dir: &GuestDir) -> Option<Bundle> {
    let text = fs::read(dir.identity().join(FILE)).ok()?;
    let bundle: Bundle = serde_json::from_slice(&text).ok()?;
    (!bundle_is_due(&bundle, SystemTime::now())).then_some(bundle)
}

/// Removes it. Whatever else is found there goes with the guest's directory.
pub(super) fn remove(dir: &GuestDir) {
    let _ = fs::remove_file(dir.identity().join(FILE));
}

/// Puts an identity in place, in one step.
pub(super) fn place(dir: &GuestDir, bundle: &Bundle) -> Result<(), PortError> {
    let directory = dir.identity();
    let failed = |e: io::Error| PortError::new(format!("write {}", directory.display()), e);
    match fs::create_dir(&directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let root = dir.ids()?.root();
    chown(&directory, Some(0), Some(root)).map_err(failed)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o750)).map_err(failed)?;
    let text = serde_json::to_vec(bundle).map_err(|e| failed(e.into()))?;
    let text = zeroize::Zeroizing::new(text);
    let new = directory.join(".bundle.new");
    let write = || -> io::Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let _ = fs::remove_file(&new);
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        let guests_root = rustix::process::Gid::from_raw(root);
        rustix::fs::fchown(&file, None, Some(guests_root))?;
        file.set_permissions(fs::Permissions::from_mode(0o440))?;
        // Not synced: what a power cut leaves of it is seen at the next start, when another one is made.
        fs::rename(&new, directory.join(FILE))
    };
    write().map_err(failed)
}
