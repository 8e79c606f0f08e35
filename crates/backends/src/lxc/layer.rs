//! The writable layer of a guest: its directories, and the files a recipe puts in before it runs for the
//! first time. Never touches what a guest that has run keeps in it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path};
use std::time::Duration;

use engine::catalog::GuestFile;
use engine::ports::{GuestSpec, PortError};

use super::disk;
use super::ids::Ids;
use super::layout::{self, GuestDir};
use crate::program::Program;

pub(super) fn at(what: &str, path: &Path) -> impl Fn(io::Error) -> PortError {
    let what = format!("{what} {}", path.display());
    move |e| PortError::new(what.clone(), e)
}

/// Makes the layer afresh: whatever an unfinished attempt left is removed first.
pub(crate) async fn make(
    dir: &GuestDir,
    spec: &GuestSpec,
    lower: &Path,
    blanks: &Path,
) -> Result<(), PortError> {
    disk::unmount(dir).await?;
    for path in [
        dir.upper(),
        dir.work(),
        dir.disk(),
        dir.root().join("up"),
        dir.root().join("work"),
    ] {
        remove_tree(&path).await?;
    }
    let _ = fs::remove_file(dir.disk_image());
    if let Some(gb) = spec.limits.disk_gb {
        disk::make(&dir.disk_image(), blanks, gb, dir.ids()?).await?;
    }
    ready(dir).await?;
    for file in &spec.files {
        write_file(&dir.upper(), lower, file, dir.ids()?)?;
    }
    sync(dir, spec)
}

/// Puts the files of a recipe on disk: at once where the disk is the guest's alone, else each by itself, so
/// that nobody waits for what others write.
fn sync(dir: &GuestDir, spec: &GuestSpec) -> Result<(), PortError> {
    let upper = dir.upper();
    let open = |path: &Path| fs::File::open(path).map_err(at("open", path));
    if spec.limits.disk_gb.is_some() && !spec.files.is_empty() {
        return rustix::fs::syncfs(open(&upper)?).map_err(|e| at("sync", &upper)(e.into()));
    }
    for file in &spec.files {
        let path = upper.join(file.path.trim_start_matches('/'));
        open(&path)?.sync_all().map_err(at("sync", &path))?;
    }
    Ok(())
}

/// Mounts the disk of a layer, and makes its directories if they are missing: after a power cut those of a
/// guest that had just been made may be gone again. Those that are there are the guest's and stay as they are.
pub(crate) async fn ready(dir: &GuestDir) -> Result<(), PortError> {
    disk::mount(dir).await?;
    for path in [dir.upper(), dir.work()] {
        if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            own_directory(&path, 0o755, dir.ids()?)?;
        }
    }
    Ok(())
}

pub(super) fn own_directory(path: &Path, mode: u32, ids: Ids) -> Result<(), PortError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at("make", path)(e)),
        _ => {}
    }
    let root = Some(ids.root());
    chown(path, root, root).map_err(at("give away", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(at("set permissions of", path))
}

/// Removes a tree that a guest may have made as deep as it liked: `rm` walks it with a bounded number
/// of descriptors, follows no link and stays on its file system. It is not started for a file or an empty
/// directory.
pub(crate) async fn remove_tree(path: &Path) -> Result<(), PortError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    Program::new(format!("remove {}", path.display()), "rm")
        .args(["-rf", "--one-file-system", "--"])
        .arg(path)
        .deadline(Duration::from_secs(600))
        .run()
        .await
        .map(drop)
}

/// Removes everything of a guest but its mark. Goes on past what can't be removed and reports all of it.
pub(crate) async fn clear(dir: &GuestDir) -> Result<(), PortError> {
    let root = dir.root();
    let mut errors = Vec::new();
    for entry in fs::read_dir(root).map_err(at("list", root))? {
        let entry = entry.map_err(at("list", root))?;
        if entry.file_name() != layout::MARK {
            let removed = remove_tree(&entry.path()).await;
            errors.extend(removed.err().map(|e| e.to_string()));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(PortError::new(
        format!("empty {}", root.display()),
        errors.join("; "),
    ))
}

/// Writes one file into the layer. Directories on the way look as they do in the image; a symbolic
/// link on the way is refused, since it would lead out of the layer.
fn write_file(upper: &Path, lower: &Path, file: &GuestFile, ids: Ids) -> Result<(), PortError> {
    let relative = Path::new(file.path.trim_start_matches('/'));
    let mut here = upper.to_owned();
    let mut image = lower.to_owned();
    let parents = relative.parent().into_iter().flat_map(Path::components);
    for part in parents {
        let Component::Normal(name) = part else {
            return Err(PortError::new(
                format!("write {}", file.path),
                "its path is not plain",
            ));
        };
        here.push(name);
        image.push(name);
        let (mode, uid, gid) = match fs::symlink_metadata(&image) {
            Ok(m) if m.is_dir() => (m.mode() & 0o7777, m.uid(), m.gid()),
            Ok(_) => {
                return Err(PortError::new(
                    format!("write {}", file.path),
                    format!("{} is not a directory in the image", image.display()),
                ));
            }
            Err(_) => (0o755, ids.root(), ids.root()),
        };
        match fs::create_dir(&here) {
            Ok(()) => {
                chown(&here, Some(uid), Some(gid)).map_err(at("give away", &here))?;
                fs::set_permissions(&here, fs::Permissions::from_mode(mode))
                    .map_err(at("set permissions of", &here))?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(at("make", &here)(e)),
        }
    }
    let path = upper.join(relative);
    let mut written = fs::File::create(&path).map_err(at("write", &path))?;
    io::Write::write_all(&mut written, file.content.as_bytes()).map_err(at("write", &path))?;
    let root = Some(ids.root());
    chown(&path, root, root).map_err(at("give away", &path))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))
        .map_err(at("set permissions of", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_image_does_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower, outside) = (
            dir.path().join("up"),
            dir.path().join("low"),
            dir.path().join("out"),
        );
        for d in [&upper, &lower, &outside] {
            fs::create_dir(d).unwrap();
        }
        std::os::unix::fs::symlink(&outside, lower.join("etc")).unwrap();
        let file = GuestFile {
            path: "/etc/x".into(),
            mode: 0o644,
            content: "x".into(),
        };
        let ids = Ids::of(engine::image::IdRange::Apps);
        assert!(write_file(&upper, &lower, &file, ids).is_err());
        assert!(!outside.join("x").exists());
    }
}
