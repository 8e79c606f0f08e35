//! A guest's disk: a sparse file with a file system of its own, so that what a guest writes has an end.
//!
//! Making a file system takes longer than all else that a new guest needs, so it is made once for each size
//! and copied: without its holes it is about a megabyte. The copies have one UUID, which nothing here
//! reads: they are mounted by path.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::ports::PortError;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::ids::Ids;
use super::layer::{at, own_directory};
use super::layout::GuestDir;
use crate::program::Program;

/// Stands in the name of every blank disk; another one is due whenever they are made in another way.
const MAKE: &str = "ext4-1";
/// The journal of a disk. A guest's disk is small and its files are not a database's.
const JOURNAL_MB: u32 = 16;
/// How many times its size a disk can be made later without being mounted anew. More would make copies larger.
const GROWS: u64 = 4;
const BLOCK_BYTES: u64 = 4096;
/// How often a disk that is still in use is unmounted, and how long after the last time.
const UNMOUNTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);
const UNFINISHED: &str = ".new-";
const LONGEST_MAKING: Duration = Duration::from_secs(3600);
const COPY_BYTES: usize = 256 << 10;

/// A disk of `gb` GiB whose root directory belongs to the guest's root, durable. `blanks` keeps the one that
/// it is a copy of.
pub(super) async fn make(image: &Path, blanks: &Path, gb: u32, ids: Ids) -> Result<(), PortError> {
    let blank = blank(blanks, gb, ids).await?;
    copy(&blank, image).map_err(at("make", image))
}

/// Removes what a crash left of blank disks that were being made. Other controllers may share them, so what
/// is new is left alone.
pub(super) fn sweep(blanks: &Path) -> Result<(), PortError> {
    let entries = match fs::read_dir(blanks) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at("list", blanks))?,
    };
    for entry in entries.flatten() {
        let changed = entry.metadata().and_then(|facts| facts.modified());
        let age = changed.ok().and_then(|at| at.elapsed().ok());
        let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        if unfinished && age.is_some_and(|age| age > LONGEST_MAKING) {
            fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
        }
    }
    Ok(())
}

async fn blank(blanks: &Path, gb: u32, ids: Ids) -> Result<PathBuf, PortError> {
    let root = ids.root();
    let blank = blanks.join(format!("{MAKE}-{gb}g-{root}.img"));
    if blank.exists() {
        return Ok(blank);
    }
    fs::create_dir_all(blanks).map_err(at("make", blanks))?;
    // A name of its own: two guests may be the first of their size at one time.
    let new = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(blanks)
        .map_err(at("make", blanks))?;
    new.as_file()
        .set_len(u64::from(gb) << 30)
        .map_err(at("make", &blank))?;
    let grows_to = (u64::from(gb) << 30) / BLOCK_BYTES * GROWS;
    Program::new(
        format!("make a file system in {}", blank.display()),
        "mkfs.ext4",
    )
    .args(["-q", "-m", "0", "-b"])
    .arg(BLOCK_BYTES.to_string())
    .args(["-J", &format!("size={JOURNAL_MB}"), "-E"])
    .arg(format!(
        "root_owner={root}:{root},lazy_itable_init=1,nodiscard,resize={grows_to}"
    ))
    .arg(new.path())
    .run()
    .await?;
    // A half-written blank would spoil every guest that is made of it.
    new.as_file().sync_all().map_err(at("sync", &blank))?;
    new.persist(&blank)
        .map_err(|e| at("make", &blank)(e.error))?;
    File::open(blanks)
        .and_then(|dir| dir.sync_all())
        .map_err(at("sync", blanks))?;
    Ok(blank)
}

/// Copies what is not a hole. Shares the blocks where the file system can.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let length = source.metadata()?.len();
    let target = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        target.set_len(length)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut end = 0;
        while let Some(begin) = next(&source, SeekFrom::Data(end))? {
            end = next(&source, SeekFrom::Hole(begin))?.unwrap_or(length);
            copy_range(&source, &target, begin, end, &mut buffer)?;
        }
    }
    target.sync_data()
}

/// Where the next data or hole begins; none behind the last.
fn next(file: &File, from: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, from) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn copy_range(
    source: &File,
    target: &File,
    begin: u64,
    end: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut at = begin;
    while at < end {
        let wanted = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        source.read_exact_at(piece, at)?;
        target.write_all_at(piece, at)?;
        at += wanted as u64;
    }
    Ok(())
}

/// Mounts a guest's disk, if it has one and it is not mounted.
pub(super) async fn mount(dir: &GuestDir) -> Result<(), PortError> {
    let (image, disk) = (dir.disk_image(), dir.disk());
    if !image.exists() || device_of(&disk)?.is_some() {
        return Ok(());
    }
    own_directory(&disk, 0o755, dir.ids()?)?;
    Program::new(format!("mount {}", image.display()), "mount")
        .args(["-t", "ext4", "-o", "loop,nosuid,nodev,noatime"])
        .arg(&image)
        .arg(&disk)
        .deadline(Duration::from_secs(30))
        .run()
        .await?;
    keep_once(&disk).await
}

/// Has what the guest writes go from its own file system straight to the image's blocks. Else the node keeps it in
/// memory a second time, and whoever flushes waits for two copies. A file system that can't do that keeps it twice.
async fn keep_once(disk: &Path) -> Result<(), PortError> {
    let Some(device) = device_of(disk)? else {
        return Ok(());
    };
    let straight = Program::new(format!("write straight through {device}"), "losetup")
        .args(["--direct-io=on", &device])
        .deadline(Duration::from_secs(30))
        .run()
        .await;
    if let Err(error) = straight {
        tracing::debug!(%error, "the guest's writes are kept in the node's memory, too");
    }
    Ok(())
}

/// Unmounts a guest's disk, if it is mounted. Goes below a file system that is busy for a moment
/// after its last user ended.
pub(super) async fn unmount(dir: &GuestDir) -> Result<(), PortError> {
    let disk = dir.disk();
    let mut last = None;
    for _ in 0..UNMOUNTS {
        if device_of(&disk)?.is_none() {
            return Ok(());
        }
        // It waits until all of it is written to the image.
        let (path, flags) = (disk.clone(), UnmountFlags::NOFOLLOW);
        let attempt = tokio::task::spawn_blocking(move || rustix::mount::unmount(path, flags));
        match attempt.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                last = Some(at("unmount", &disk)(e.into()));
                tokio::time::sleep(PAUSE).await;
            }
            Err(e) => last = Some(PortError::new(format!("unmount {}", disk.display()), e)),
        }
    }
    last.map_or(Ok(()), Err)
}

/// What is mounted there, as the mount table names it; nothing when nothing is.
fn device_of(path: &Path) -> Result<Option<String>, PortError> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| PortError::new("read the mount table", e))?;
    let wanted = path.to_string_lossy();
    let mut lines = table.lines();
    let line = lines.find(|l| l.split(' ').nth(4) == Some(&*wanted));
    let source = line.and_then(|l| l.split_once(" - ")?.1.split(' ').nth(1));
    Ok(line.map(|_| source.unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::image::IdRange;
    use std::os::unix::fs::MetadataExt;

    const APPS: Ids = Ids::of(IdRange::Apps);

    #[tokio::test]
    async fn disks_are_whole_small_and_alike() {
        let dir = tempfile::tempdir().unwrap();
        let blanks = dir.path().join("blanks");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        make(&one, &blanks, 2, APPS).await.unwrap();
        make(&two, &blanks, 2, APPS).await.unwrap();
        let names = || {
            let entries = fs::read_dir(&blanks).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let long_ago = std::time::SystemTime::now() - 2 * LONGEST_MAKING;
        for name in [".new-old", ".new-now"] {
            fs::write(blanks.join(name), "").unwrap();
        }
        let old = File::open(blanks.join(".new-old")).unwrap();
        old.set_modified(long_ago).unwrap();
        File::open(blanks.join("ext4-1-2g-100000.img"))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        sweep(&blanks).unwrap();
        assert_eq!(names(), [".new-now", "ext4-1-2g-100000.img"]);
        for disk in [&one, &two] {
            let facts = fs::metadata(disk).unwrap();
            assert_eq!(facts.len(), 2 << 30);
            assert_eq!(facts.mode() & 0o777, 0o600);
            assert!(facts.blocks() * 512 < 2 << 20, "{} blocks", facts.blocks());
            let check = std::process::Command::new("e2fsck")
                .args(["-fn"])
                .arg(disk)
                .output();
            let check = check.unwrap();
            assert!(check.status.success(), "{check:?}");
        }
        // One that is in the way is not written over.
        assert!(make(&one, &blanks, 2, APPS).await.is_err());
    }
}
