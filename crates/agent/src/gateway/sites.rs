//! Operators' own sites for Caddy: taken one by one, each only when Caddy accepts it with all the others.
//!
//! ```text
//!  sites-enabled/NAME.caddy ──▶ candidate: our file + accepted ones + this ──caddy validate──▶ sites-accepted/
//!   (the operator's)                                                 └ refused: what was accepted stays
//! ```
//! Caddy reads the accepted ones only, so a mistake in one of them takes neither the zone's routes nor
//! the other sites down, also when Caddy restarts. What was refused is told in the report, and looked
//! at again when its file changes. Never changes a file of the operator's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use wire::gateway::edge::SiteReport;

use super::caddy;
use super::identity::CaddyUser;
use super::paths::Paths;
use super::system::System;
use crate::durable::{self, FileError, Keep};

/// Sites that are looked at, and the largest of them.
const MOST: usize = 64;
const LARGEST_BYTES: u64 = 256 * 1024;
const ENDING: &str = ".caddy";

type Files = BTreeMap<String, Vec<u8>>;

/// What was refused, by file name: the content's digest and why.
#[derive(Default)]
pub struct Sites(Mutex<BTreeMap<String, ([u8; 32], String)>>);

/// What changed in the accepted ones, and what they were before.
pub struct Taken {
    before: Files,
    changed: Vec<String>,
}

impl Taken {
    /// Whether Caddy has to read them again.
    pub fn is_change(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Puts back what was, after Caddy did not take the new ones for `why`.
    pub fn undo(&self, paths: &Paths, sites: &Sites, why: &str) -> Result<(), FileError> {
        let enabled = read(&paths.operator_sites())?;
        for name in &self.changed {
            if let Some(content) = enabled.get(name) {
                sites.refuse(name, content, why.to_owned());
            }
        }
        write(&paths.accepted_sites(), &self.before)
    }
}

impl Sites {
    /// Brings the accepted sites up to date with the operator's; `rendered` makes our own file that
    /// imports the sites of a directory.
    pub async fn take(
        &self,
        paths: &Paths,
        system: &impl System,
        user: Option<CaddyUser>,
        rendered: impl Fn(&Path) -> String,
    ) -> Result<Taken, FileError> {
        let enabled = read(&paths.operator_sites())?;
        durable::directory(&paths.accepted_sites(), 0o755)?;
        let before = read(&paths.accepted_sites())?;
        let mut accepted = before.clone();
        accepted.retain(|name, _| enabled.contains_key(name));
        self.locked().retain(|name, _| enabled.contains_key(name));
        for (name, content) in &enabled {
            if accepted.get(name) == Some(content) || self.is_refused(name, content) {
                continue;
            }
            let mut candidate = accepted.clone();
            candidate.insert(name.clone(), content.clone());
            let directory = paths.candidate_sites();
            write(&directory, &candidate)?;
            let file = directory.join("Caddyfile");
            let text = rendered(&directory);
            durable::replace(&file, text.as_bytes(), 0o644, Keep::Derived)?;
            match system.run(caddy::validate(&file, user)).await {
                Ok(_) => {
                    self.locked().remove(name);
                    accepted = candidate;
                }
                Err(error) => {
                    tracing::warn!(site = name, %error, "a site is refused");
                    self.refuse(name, content, error.to_string());
                }
            }
        }
        if accepted != before {
            write(&paths.accepted_sites(), &accepted)?;
        }
        let names = before.keys().chain(accepted.keys());
        let mut changed: Vec<_> = names
            .filter(|name| before.get(*name) != accepted.get(*name))
            .cloned()
            .collect();
        changed.dedup();
        Ok(Taken { before, changed })
    }

    /// What became of each of the operator's sites.
    pub fn report(&self, paths: &Paths) -> Result<Vec<SiteReport>, FileError> {
        let enabled = read(&paths.operator_sites())?;
        let accepted = read(&paths.accepted_sites())?;
        let refused = self.locked();
        let site = |(name, content): (&String, &Vec<u8>)| SiteReport {
            name: name.clone(),
            served: accepted.contains_key(name),
            current: accepted.get(name) == Some(content),
            refused: refused.get(name).map(|(_, why)| why.clone()),
        };
        Ok(enabled.iter().map(site).collect())
    }

    fn refuse(&self, name: &str, content: &[u8], why: String) {
        let digest = Sha256::digest(content).into();
        self.locked().insert(name.to_owned(), (digest, why));
    }

    fn is_refused(&self, name: &str, content: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(content).into();
        self.locked().get(name).is_some_and(|(d, _)| *d == digest)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, ([u8; 32], String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sites of a directory; none when it is not there. Other files, and what is too large, are left out.
fn read(directory: &Path) -> Result<Files, FileError> {
    let mut files = Files::new();
    let list = match fs::read_dir(directory) {
        Ok(list) => list,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        Err(e) => return Err(FileError::new("list", directory)(e)),
    };
    for entry in list {
        let entry = entry.map_err(FileError::new("list", directory))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let fits =
            fs::metadata(entry.path()).is_ok_and(|m| m.is_file() && m.len() <= LARGEST_BYTES);
        if name.starts_with('.') || !name.ends_with(ENDING) || !fits || files.len() >= MOST {
            continue;
        }
        if let Some(content) = durable::read_if_there(&entry.path())? {
            files.insert(name, content);
        }
    }
    Ok(files)
}

/// Makes a directory hold exactly these sites.
fn write(directory: &Path, files: &Files) -> Result<(), FileError> {
    durable::directory(directory, 0o755)?;
    for name in read(directory)?.keys().filter(|n| !files.contains_key(*n)) {
        durable::remove_if_there(&directory.join(name))?;
    }
    for (name, content) in files {
        durable::replace_if_changed(&directory.join(name), content, 0o644, Keep::Durable)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake::FakeSystem;

    struct Lab {
        _root: tempfile::TempDir,
        paths: Paths,
        system: FakeSystem,
        sites: Sites,
    }

    impl Lab {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let paths = Paths::below(root.path());
            fs::create_dir_all(paths.operator_sites()).unwrap();
            Self {
                system: FakeSystem::new(&paths),
                sites: Sites::default(),
                paths,
                _root: root,
            }
        }

        fn enable(&self, name: &str, content: &str) {
            fs::write(self.paths.operator_sites().join(name), content).unwrap();
        }

        async fn take(&self, fails: bool) -> Taken {
            *self.system.fails.lock().unwrap() = fails.then_some("caddy validate");
            let taken = self
                .sites
                .take(&self.paths, &self.system, None, |directory| {
                    format!("import {}/*.caddy", directory.display())
                });
            taken.await.unwrap()
        }

        fn accepted(&self) -> Vec<String> {
            let files = read(&self.paths.accepted_sites()).unwrap();
            let text = |c: Vec<u8>| String::from_utf8(c).unwrap();
            files
                .into_iter()
                .map(|(n, c)| format!("{n} {}", text(c)))
                .collect()
        }
    }

    #[tokio::test]
    async fn a_good_site_is_taken_and_a_bad_one_leaves_what_was() {
        let lab = Lab::new();
        lab.enable("a.caddy", "one");
        lab.enable("README", "no site");
        assert!(lab.take(false).await.is_change());
        assert_eq!(lab.accepted(), ["a.caddy one"]);
        assert!(!lab.take(false).await.is_change());

        lab.enable("a.caddy", "two");
        lab.enable("b.caddy", "bad");
        lab.system.commands();
        assert!(!lab.take(true).await.is_change());
        assert_eq!(lab.accepted(), ["a.caddy one"]);
        assert_eq!(lab.system.commands().len(), 2);
        let report = lab.sites.report(&lab.paths).unwrap();
        let told: Vec<_> = report.iter().map(|s| (s.served, s.current)).collect();
        assert_eq!(told, [(true, false), (false, false)]);
        assert!(report[0].refused.as_ref().unwrap().contains("told to fail"));
        // The same content is not tried again; another one is.
        assert!(!lab.take(false).await.is_change());
        lab.enable("b.caddy", "good");
        assert!(lab.take(false).await.is_change());
        assert_eq!(lab.accepted(), ["a.caddy one", "b.caddy good"]);

        fs::remove_file(lab.paths.operator_sites().join("a.caddy")).unwrap();
        assert!(lab.take(false).await.is_change());
        assert_eq!(lab.accepted(), ["b.caddy good"]);
    }

    #[tokio::test]
    async fn what_caddy_does_not_take_after_all_is_put_back() {
        let lab = Lab::new();
        lab.enable("a.caddy", "one");
        lab.take(false).await;
        lab.enable("a.caddy", "two");
        let taken = lab.take(false).await;
        assert_eq!(lab.accepted(), ["a.caddy two"]);
        taken
            .undo(&lab.paths, &lab.sites, "the port is in use")
            .unwrap();
        assert_eq!(lab.accepted(), ["a.caddy one"]);
        assert!(!lab.take(false).await.is_change());
        let report = lab.sites.report(&lab.paths).unwrap();
        assert_eq!(report[0].refused.as_deref(), Some("the port is in use"));
    }
}
