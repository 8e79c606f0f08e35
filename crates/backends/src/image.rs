//! Images on this machine: built from the machine's own package sources ([`bootstrap`]), kept by
//! digest, shared by every controller and test of the machine.
//!
//! ```text
//!   IMAGE_DIR/DIGEST/rootfs      ids shifted into the range of unprivileged guests
//!                   /image.json  written last: its presence means complete
//!   IMAGE_DIR/DIGEST.lock        one builder at a time
//!   IMAGE_DIR/DIGEST.log         what the build said
//!   IMAGE_DIR/blank-disks        file systems without files, see `lxc::disk`
//! ```
//!
//! A complete image never changes: it is the lower layer of running guests.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::ImageDigest;
use async_trait::async_trait;
use engine::image::{ImageSpec, Images, Init, parse_mode};
use engine::ports::PortError;
use wire::family::FamilyName;

use crate::lxc::{ID_COUNT, Ids};
use crate::program::Program;
use bootstrap::Place;

mod bootstrap;
mod sources;

/// How long a build may take.
const BUILD_DEADLINE: Duration = Duration::from_secs(1800);

/// The image cache of this machine.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
}

/// One image in the cache.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CachedImage {
    /// Its digest.
    pub digest: ImageDigest,
    /// What went into it.
    pub spec: ImageSpec,
    /// What it takes on the disk, in bytes.
    pub size_bytes: u64,
}

impl ImageStore {
    /// Over `dir`, which is made when the first image is built.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    fn image(&self, digest: &ImageDigest) -> PathBuf {
        self.dir.join(digest.as_str())
    }

    /// The root file system of an image.
    pub(crate) fn rootfs(&self, digest: &ImageDigest) -> PathBuf {
        self.image(digest).join("rootfs")
    }

    /// Where disks without files are kept, to be copied.
    pub(crate) fn blank_disks(&self) -> PathBuf {
        self.dir.join("blank-disks")
    }

    /// Whether the image is there, complete.
    pub(crate) fn is_complete(&self, digest: &ImageDigest) -> bool {
        self.image(digest).join("image.json").exists()
    }

    /// What an image was made of.
    pub(crate) fn spec(&self, digest: &ImageDigest) -> Result<ImageSpec, PortError> {
        let path = self.image(digest).join("image.json");
        let wrong = |e: String| PortError::new(format!("read {}", path.display()), e);
        let text = fs::read(&path).map_err(|e| wrong(e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))
    }

    /// All complete images.
    pub fn list(&self) -> Vec<CachedImage> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut images: Vec<CachedImage> = entries
            .filter_map(|e| {
                let digest: ImageDigest = e.file_name().to_str()?.parse().ok()?;
                let text = fs::read(e.path().join("image.json")).ok()?;
                let spec = serde_json::from_slice(&text).ok()?;
                Some(CachedImage {
                    size_bytes: tree_size(&e.path()),
                    digest,
                    spec,
                })
            })
            .collect();
        images.sort_by(|a, b| a.digest.cmp(&b.digest));
        images
    }

    async fn build(
        &self,
        spec: &ImageSpec,
        digest: &ImageDigest,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), PortError> {
        let began = Instant::now();
        let what = format!("build image {digest:.12}");
        spec.check().map_err(|e| PortError::new(&what, e))?;
        let work = self.dir.join(format!("{digest}.partial"));
        // What an interrupted build left is ours: the lock is held.
        clear(&work).await?;
        fs::create_dir_all(&work).map_err(|e| PortError::new(&what, e))?;
        let tar = work.join("rootfs.tar");
        progress(format!("installing {} packages", spec.packages.len()));
        self.bootstrap(spec, &work, &tar, &what, digest).await?;
        progress(format!(
            "unpacking after {:.0} s",
            began.elapsed().as_secs_f64()
        ));
        let rootfs = work.join("rootfs");
        let root = Ids::of(spec.ids).root();
        unpack(&tar, &rootfs, root, &what).await?;
        fs::remove_file(&tar).map_err(|e| PortError::new(&what, e))?;
        let text = serde_json::to_vec_pretty(spec).map_err(|e| PortError::new(&what, e))?;
        let finish = || -> io::Result<()> {
            fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o711))?;
            // Guests' roots pass through; no user of the node gets at set-id programs of an image.
            chown(&work, Some(0), Some(root))?;
            fs::set_permissions(&work, fs::Permissions::from_mode(0o710))?;
            // A complete image never changes, so it must be whole on the disk before it counts.
            rustix::fs::syncfs(File::open(&work)?)?;
            let mut file = File::create(work.join("image.json"))?;
            io::Write::write_all(&mut file, &text)?;
            file.sync_all()?;
            fs::rename(&work, self.image(digest))?;
            File::open(&self.dir)?.sync_all()
        };
        finish().map_err(|e| PortError::new(&what, e))?;
        progress(format!(
            "image {digest:.12} built in {:.0} s",
            began.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Packages and files into a tar.
    async fn bootstrap(
        &self,
        spec: &ImageSpec,
        work: &Path,
        tar: &Path,
        what: &str,
        digest: &ImageDigest,
    ) -> Result<(), PortError> {
        let overlay = work.join("files");
        write_files(&overlay, spec).map_err(|e| PortError::new(what, e))?;
        let hook = work.join("finish");
        fs::write(&hook, finish_script(spec)).map_err(|e| PortError::new(what, e))?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))
            .map_err(|e| PortError::new(what, e))?;
        let options = match spec.family {
            FamilyName::Debian => sources::apt_options().await,
            FamilyName::Alpine => Vec::new(),
        };
        let place = Place {
            work,
            overlay: &overlay,
            hook: &hook,
            tar,
        };
        let log_path = self.dir.join(format!("{digest}.log"));
        let mut log = Vec::new();
        for step in bootstrap::steps(spec, &place, &options)? {
            // In namespaces of its own: a build that is cut short takes its processes and mounts with it.
            let program = Program::new(what, "unshare")
                .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
                .args(["--propagation=private", "--"])
                .args(&step)
                .env("TMPDIR", work)
                .deadline(BUILD_DEADLINE);
            let ended = program.output().await?;
            log.extend_from_slice(&ended.stderr);
            fs::write(&log_path, &log).map_err(|e| PortError::new(what, e))?;
            if !ended.status.success() {
                let text = String::from_utf8_lossy(&ended.stderr);
                let cause = bootstrap::cause(&text).unwrap_or("it failed");
                let program = step.first().map(String::as_str).unwrap_or_default();
                return Err(
                    PortError::new(what, format!("{program}: {cause}")).hint(format!(
                        "the whole build log: {}; packages come from this machine's own sources",
                        log_path.display()
                    )),
                );
            }
        }
        Ok(())
    }
}

/// Runs in the builder's environment with the new root as `$1`. Unit names were checked.
fn finish_script(spec: &ImageSpec) -> String {
    let mut text = String::from("#!/bin/sh\nset -eu\n");
    match spec.init {
        Init::Systemd => {
            for (verb, units) in [("mask", &spec.mask), ("enable", &spec.enable)] {
                for unit in units {
                    text.push_str(&format!("chroot \"$1\" systemctl {verb} '{unit}'\n"));
                }
            }
        }
        Init::Openrc => {
            // Debian leaves open what is process 1, Alpine has busybox there. Control groups, clock and file systems
            // are the node's business.
            text.push_str(
                "ln -sf openrc-init \"$1/sbin/init\"\nrm -f \"$1\"/etc/runlevels/sysinit/*\n",
            );
            for service in &spec.enable {
                // A package may have enabled its service already.
                text.push_str(&format!(
                    "ln -sf '/etc/init.d/{service}' \"$1/etc/runlevels/default/{service}\"\n"
                ));
            }
        }
    }
    // The container gives the name; the machine id is made at first boot.
    text.push_str("rm -f \"$1/etc/hostname\" \"$1/etc/resolv.conf\" \"$1/var/lib/dbus/machine-id\"\n: >\"$1/etc/machine-id\"\n");
    text
}

fn write_files(overlay: &Path, spec: &ImageSpec) -> io::Result<()> {
    fs::create_dir_all(overlay)?;
    fs::set_permissions(overlay, fs::Permissions::from_mode(0o755))?;
    for file in &spec.files {
        let path = overlay.join(file.path.trim_start_matches('/'));
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, &file.content)?;
        let mode = parse_mode(&file.mode).map_err(io::Error::other)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Unpacks inside a user namespace with the guests' id map: owners, set-id bits and file
/// capabilities land shifted, as the kernel would have it.
async fn unpack(tar: &Path, rootfs: &Path, root: u32, what: &str) -> Result<(), PortError> {
    let prepare = || -> io::Result<()> {
        fs::create_dir(rootfs)?;
        chown(rootfs, Some(root), Some(root))?;
        fs::set_permissions(rootfs, fs::Permissions::from_mode(0o755))?;
        // The unpacking root is none of the node's users: let it pass and read.
        for path in tar.ancestors().skip(1).take(2) {
            fs::set_permissions(path, fs::Permissions::from_mode(0o711))?;
        }
        fs::set_permissions(tar, fs::Permissions::from_mode(0o644))
    };
    prepare().map_err(|e| PortError::new(what, e))?;
    let namespace = IdNamespace::make(root).map_err(|e| PortError::new(what, e))?;
    Program::new(what, "nsenter")
        .args([
            "--user",
            "--target",
            &namespace.pid.to_string(),
            "--",
            "tar",
        ])
        .args([
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--exclude=./dev/*",
            "-C",
        ])
        .arg(rootfs)
        .arg("-xpf")
        .arg(tar)
        .deadline(Duration::from_secs(300))
        .run()
        .await
        .map(drop)
}

/// A user namespace with the guests' id map, held by a process that waits for its input to end. The
/// map is written directly, as root may: the machine's /etc/subuid has no say in it.
struct IdNamespace {
    pid: u32,
    holder: std::process::Child,
}

impl IdNamespace {
    fn make(root: u32) -> io::Result<Self> {
        let mut holder = std::process::Command::new("unshare")
            .args(["--user", "sh", "-c", "echo; exec cat"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let pid = holder.id();
        // The line says that the process is in its namespace.
        if let Some(pipe) = &mut holder.stdout {
            io::Read::read_exact(pipe, &mut [0])?;
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(
                format!("/proc/{pid}/{map}"),
                format!("0 {root} {ID_COUNT}\n"),
            )?;
        }
        Ok(Self { pid, holder })
    }
}

impl Drop for IdNamespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Removes a build that was cut short. Mounts of it went with its namespace.
async fn clear(path: &Path) -> Result<(), PortError> {
    Program::new(format!("clear {}", path.display()), "rm")
        .args(["-rf", "--one-file-system", "--"])
        .arg(path)
        .run()
        .await
        .map(drop)
}

fn tree_size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => tree_size(&e.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[async_trait]
impl Images for ImageStore {
    async fn cached(&self, digest: &ImageDigest) -> bool {
        self.is_complete(digest)
    }

    async fn ensure(
        &self,
        spec: &ImageSpec,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ImageDigest, PortError> {
        let digest = spec.digest();
        if self.is_complete(&digest) {
            return Ok(digest);
        }
        let what = format!("build image {digest:.12}");
        fs::create_dir_all(&self.dir).map_err(|e| PortError::new(&what, e))?;
        let lock_path = self.dir.join(format!("{digest}.lock"));
        let lock = File::create(&lock_path).map_err(|e| PortError::new(&what, e))?;
        if lock.try_lock().is_err() {
            progress("another build of this image is under way; waiting for it".into());
        }
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
            .await
            .map_err(|e| PortError::new(&what, e))?
            .map_err(|e| PortError::new(&what, e))?;
        if !self.is_complete(&digest) {
            self.build(spec, &digest, progress).await?;
        }
        drop(lock);
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finish_script_names_units_only() {
        let spec = engine::zone::appliance_image(FamilyName::Debian);
        spec.check().unwrap();
        insta::assert_snapshot!(finish_script(&spec));
        let catalog = engine::catalog::Catalog::new(&[]).unwrap();
        let spec = &catalog.get("nginx-openrc").unwrap().image;
        insta::assert_snapshot!("openrc", finish_script(spec));
    }
}
