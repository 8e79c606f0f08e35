//! Files to and from a host, through commands only: no SFTP subsystem is needed.
//!
//! ```text
//!  upload     begin: what is there of an earlier try? ─▶ data into .NAME.proximity-ID.part beside the target
//!                 ─▶ commit: the host reads it a second time, compares SHA-256, sets mode and time, syncs, renames
//!  download   begin: size, mode, time ─▶ data into a part file beside the target ─▶ the host reads its file a second
//!                 time, SHA-256 is compared ─▶ mode and time set, synced, renamed
//! ```
//!
//! A directory goes the same way into a staging directory beside the target: small files in one stream, large ones one
//! by one, all of it read a second time, then renamed: see [`upload_tree`] and [`download_tree`].
//!
//! The target is replaced whole or not at all. A cut connection leaves the part file, and the next try, of this call
//! or of a later one with the same source, goes on behind what is proved to be there. A host that cannot make a
//! checksum gets and gives no file.

mod archive;
mod download;
mod download_tree;
mod far;
mod proof;
mod staging;
mod tree;
mod upload;
mod upload_tree;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit::Outcome;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::evidence::Transcript;
use crate::hosts::Vm;
use crate::remote::{Remote, outcome_of, wait_before};
pub(crate) use far::{Far, complaint};
use tree::{Kind, Tree};

/// A transfer in which nothing moves for this long is ended.
const IDLE: Duration = Duration::from_secs(60);
/// Pieces of a file that wait on their way.
const QUEUE: usize = 4;
/// How much of a file's name stands in that of its part.
const MAX_PART_NAME_BYTES: usize = 180;
/// What is read and sent at once, in bytes.
const PIECE_BYTES: usize = 1024 * 1024;

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// What has been sent or received, with what was there of an earlier try, in bytes.
    pub done_bytes: u64,
    /// The file's size in bytes.
    pub total_bytes: u64,
}

/// Hears of progress; called often, so it must be quick.
pub(crate) type Meter = Arc<dyn Fn(Progress) + Send + Sync>;

/// A file that is there, whole and proved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Transferred {
    /// The host's id.
    pub vm_id: String,
    /// Where it comes from.
    pub source: String,
    /// Where it is now.
    pub target: String,
    /// Its size; of a directory, that of all its files.
    pub bytes: u64,
    /// Its digest, as both sides have it. Of a directory that of the lines `DIGEST  PATH` of all its files and links,
    /// sorted by path, where a link's digest is that of its text.
    pub sha256: String,
    /// How many files; 1 unless it is a directory.
    pub files: u64,
    /// How many directories below it.
    pub directories: u64,
    /// How many symbolic links below it.
    pub links: u64,
    /// How much of it was there of an earlier try, in bytes.
    pub resumed_bytes: u64,
    /// How many times a connection was tried.
    pub attempts: u32,
    /// Seconds from the first attempt to the end.
    pub execution_time: f64,
    /// The id that joins the records of this transfer in the audit log.
    pub audit_id: String,
    /// What else to know.
    pub warnings: Vec<String>,
}

/// What one try moved.
struct Moved {
    bytes: u64,
    sha256: String,
    resumed_bytes: u64,
    files: u64,
    directories: u64,
    links: u64,
    warnings: Vec<String>,
}

impl Moved {
    fn file(bytes: u64, sha256: String, resumed_bytes: u64) -> Self {
        Self {
            bytes,
            sha256,
            resumed_bytes,
            files: 1,
            directories: 0,
            links: 0,
            warnings: Vec::new(),
        }
    }

    /// A file whose host made no checksum, though it might have been asked for one.
    fn proved(mut self, far: &Far<'_>, proved: bool) -> Self {
        if !proved {
            self.warnings.push(
                "nobody has read it a second time: the host has no sha256sum, shasum or openssl, and verify_checksum is false"
                    .to_owned(),
            );
        } else if !far.must_prove {
            self.warnings.push(
                "verify_checksum is false, but the host makes checksums, so they were compared all the same".to_owned(),
            );
        }
        self
    }

    fn tree(tree: &Tree, sums: &[Option<String>], resumed_bytes: u64) -> Self {
        Self {
            bytes: tree.bytes(),
            sha256: tree::manifest(tree, sums),
            resumed_bytes,
            files: tree.count(Kind::File),
            directories: tree.count(Kind::Directory),
            links: tree.count(Kind::Link),
            warnings: tree.warnings(),
        }
    }
}

/// Why a try ended.
enum Stop {
    /// The connection broke while nothing final was being done: the next try goes on behind what is there.
    Cut(Error),
    /// Trying again would not help.
    Final(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        if error.is_passing() || error.may_have_run() {
            Self::Cut(error)
        } else {
            Self::Final(error)
        }
    }
}

impl Remote {
    /// Puts a file of this machine on a host. Its mode and time go with it.
    pub async fn upload(
        &self,
        id: &str,
        source: &Path,
        target: &str,
        meter: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Transferred, Error> {
        let job = Job {
            action: "remote.upload",
            source: source.display().to_string(),
            target: target.to_owned(),
        };
        let meter: Meter = Arc::new(meter);
        let (far_path, name) = (far_path(target), file_name(target));
        self.transfer(id, job, async |far: &Far<'_>| {
            let name = name.ok_or_else(|| far.failed(target, "it names no file", None))?;
            upload::run(far, source, far_path.as_bytes(), name.as_bytes(), &meter).await
        })
        .await
    }

    /// Puts a directory of this machine, with all that is in it, on a host, where `target` is its name. If that is a
    /// directory already, what is in it and not in the source stays.
    pub async fn upload_tree(
        &self,
        id: &str,
        source: &Path,
        target: &str,
        meter: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Transferred, Error> {
        let target = directory_path(target);
        let job = Job {
            action: "remote.upload",
            source: source.display().to_string(),
            target: target.to_owned(),
        };
        let meter: Meter = Arc::new(meter);
        let (far_path, name) = (far_path(target), file_name(target));
        self.transfer(id, job, async |far: &Far<'_>| {
            let name = name.ok_or_else(|| far.failed(target, "it names no directory", None))?;
            upload_tree::run(far, source, far_path.as_bytes(), name.as_bytes(), &meter).await
        })
        .await
    }

    /// Fetches a directory of a host with all that is in it; `target` is its name here.
    pub async fn download_tree(
        &self,
        id: &str,
        source: &str,
        target: &Path,
        meter: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Transferred, Error> {
        let job = Job {
            action: "remote.download",
            source: source.to_owned(),
            target: target.display().to_string(),
        };
        let meter: Meter = Arc::new(meter);
        let far_path = far_path(source);
        self.transfer(id, job, async |far: &Far<'_>| {
            download_tree::run(far, far_path.as_bytes(), target, &meter).await
        })
        .await
    }

    /// Fetches a file of a host.
    pub async fn download(
        &self,
        id: &str,
        source: &str,
        target: &Path,
        meter: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Transferred, Error> {
        let job = Job {
            action: "remote.download",
            source: source.to_owned(),
            target: target.display().to_string(),
        };
        let meter: Meter = Arc::new(meter);
        let far_path = far_path(source);
        self.transfer(id, job, async |far: &Far<'_>| {
            download::run(far, far_path.as_bytes(), target, &meter).await
        })
        .await
    }

    async fn transfer(
        &self,
        id: &str,
        job: Job,
        one_try: impl AsyncFn(&Far<'_>) -> Result<Moved, Stop>,
    ) -> Result<Transferred, Error> {
        let Some(evidence) = self.begin_evidence(id, false)? else {
            return self.move_files(id, job, one_try, None).await;
        };
        let transcript = evidence.transcript();
        let result = self.move_files(id, job, one_try, Some(&transcript)).await;
        let kept = self.keep_evidence(evidence, &result).await;
        result.map(|mut result| {
            result.warnings.extend(kept);
            result
        })
    }

    async fn move_files(
        &self,
        id: &str,
        job: Job,
        one_try: impl AsyncFn(&Far<'_>) -> Result<Moved, Stop>,
        transcript: Option<&Transcript>,
    ) -> Result<Transferred, Error> {
        let detail = json!({"source": job.source, "target": job.target});
        let vm = self.permitted(id, job.action, &detail).await?;
        let intent = self.intent(vm, job.action, detail).await?;
        let audit_id = intent.id().to_owned();
        if let Some(transcript) = transcript {
            transcript.recorded_as(&audit_id);
        }
        let began = Instant::now();
        let (moved, attempts) = self.tries(vm, one_try).await;
        let outcome = match &moved {
            Ok(moved) => Outcome::ok().detail(json!({
                "bytes": moved.bytes,
                "sha256": moved.sha256,
                "files": moved.files,
                "directories": moved.directories,
                "links": moved.links,
                "attempts": attempts,
            })),
            Err(error) => outcome_of(error),
        };
        if let Err(error) = intent.finish(outcome).await {
            tracing::warn!(vm = %vm.id, %error, "the outcome of a transfer is not in the audit log yet");
        }
        let moved = moved?;
        Ok(Transferred {
            vm_id: vm.id.to_string(),
            source: job.source,
            target: job.target,
            bytes: moved.bytes,
            sha256: moved.sha256,
            files: moved.files,
            directories: moved.directories,
            links: moved.links,
            resumed_bytes: moved.resumed_bytes,
            attempts,
            execution_time: began.elapsed().as_secs_f64(),
            audit_id,
            warnings: moved.warnings,
        })
    }

    async fn tries(
        &self,
        vm: &Vm,
        one_try: impl AsyncFn(&Far<'_>) -> Result<Moved, Stop>,
    ) -> (Result<Moved, Error>, u32) {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let ended = match self.connect(vm).await {
                Ok(connection) => {
                    let must_prove = self.hosts.settings.verify_checksum;
                    let far = Far {
                        vm,
                        connection,
                        must_prove,
                    };
                    one_try(&far).await
                }
                Err(error) => Err(Stop::from(error)),
            };
            match ended {
                Ok(moved) => return (Ok(moved), attempts),
                Err(Stop::Final(error)) => return (Err(error), attempts),
                Err(Stop::Cut(error)) if attempts > self.hosts.settings.retry => {
                    return (Err(cut(vm, error)), attempts);
                }
                Err(Stop::Cut(_)) => tokio::time::sleep(wait_before(attempts)).await,
            }
        }
    }
}

/// What was cut before anything final leaves the target as it was: that is known, and is no unknown outcome.
fn cut(vm: &Vm, error: Error) -> Error {
    match error {
        Error::OutcomeUnknown { reason, .. } => Error::Transfer {
            vm: vm.id.to_string(),
            path: "the transfer was cut".to_owned(),
            reason,
            hint: Some(
                "the target is as it was; run the same command again and it goes on where it stopped"
                    .to_owned(),
            ),
        },
        other => other,
    }
}

struct Job {
    action: &'static str,
    source: String,
    target: String,
}

/// A path as commands on the far side get it: never an option, `~/` is the directory that a login begins in.
fn far_path(path: &str) -> String {
    match path.strip_prefix("~/") {
        Some(rest) => format!("./{rest}"),
        None if path.starts_with('/') => path.to_owned(),
        None => format!("./{path}"),
    }
}

/// The last part of a path, if it can be a file's name.
fn file_name(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let usable = !matches!(name, "" | "." | "..") && name.len() <= 255 && !path.contains('\0');
    usable.then_some(name)
}

/// The path of a directory without the slashes at its end.
fn directory_path(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => path,
        trimmed => trimmed,
    }
}

/// The directory that a path of the far side is in.
fn directory_of(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => b"/",
        Some(at) => path.get(..at).unwrap_or_default(),
        None => b".",
    }
}

/// The digest of all that a reader has, still open for more, and its length in bytes.
fn digest_of(mut from: impl io::Read) -> io::Result<(Sha256, u64)> {
    let mut digest = Sha256::new();
    let mut length: u64 = 0;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece)?;
        let data = piece.get(..read).unwrap_or_default();
        if data.is_empty() {
            return Ok((digest, length));
        }
        digest.update(data);
        length = length.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
    }
}

/// The name of a part file: the same for the same source and target, so that a later try finds it.
fn part_name(name: &[u8], what: &[&[u8]]) -> Vec<u8> {
    let mut digest = Sha256::new();
    for part in what {
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    }
    let id = hex::encode(digest.finalize());
    let id = id.get(..16).unwrap_or_default();
    // The whole of a long name would leave no room for the rest.
    let name = name.get(..MAX_PART_NAME_BYTES).unwrap_or(name);
    [b".", name, b".proximity-", id.as_bytes(), b".part"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_far_side_are_never_options() {
        assert_eq!(far_path("/srv/a"), "/srv/a");
        assert_eq!(far_path("-rf"), "./-rf");
        assert_eq!(far_path("~/a b"), "./a b");
        assert_eq!(far_path("a/b"), "./a/b");
    }

    #[test]
    fn names_of_files_are_told_from_directories() {
        assert_eq!(file_name("/srv/a"), Some("a"));
        assert_eq!(file_name("a"), Some("a"));
        for path in ["", "/", "/srv/", "/srv/..", ".", "a\0b"] {
            assert_eq!(file_name(path), None, "{path:?}");
        }
    }

    #[test]
    fn parts_of_other_files_have_other_names() {
        let name = part_name(b"a", &[b"x", b"y"]);
        assert_eq!(name, part_name(b"a", &[b"x", b"y"]));
        assert_ne!(name, part_name(b"a", &[b"xy", b""]));
        assert!(name.starts_with(b".a.proximity-") && name.ends_with(b".part"));
        assert!(part_name(&[b'n'; 255], &[b"x"]).len() <= 255);
    }
}
