//! The zone's own certificate authority: made once on the appliance, good for the zone's domain only.
//!
//! Caddy would make one by itself, but that one could sign for every name there is: who trusts it on a
//! laptop would trust the appliance with the whole internet. Ours carries a critical name constraint
//! (RFC 5280, 4.2.1.10): the zone's domain, and no address at all. The key never leaves the
//! appliance; Caddy reads it as its own user to sign its intermediate authority, and nobody else does.
//! Owns one directory a domain, which appears complete or not at all.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Domain;
use sha2::{Digest, Sha256};

use super::identity::CaddyUser;
use super::paths::Paths;
use super::system::{Command, CommandError, System};
use super::word::{UnsafeWord, word};
use crate::durable::{self, FileError, Keep};

/// Ten years: whoever trusts it does so by hand, on each of their machines.
const DAYS: &str = "3650";

/// An authority that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file, for Caddy's user only.
    pub key: PathBuf,
    /// What Caddy knows it by; another certificate has another one, so that nothing that an earlier
    /// authority signed is taken for its own.
    pub id: String,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// openssl did not make it.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The domain cannot stand in a configuration file.
    #[error(transparent)]
    Word(#[from] UnsafeWord),
}

/// The certificate of a domain's authority, PEM, if it is there.
pub fn certificate(paths: &Paths, domain: &Domain) -> Result<Option<String>, FileError> {
    let file = directory(paths, domain).join("root.crt");
    let text = durable::read_if_there(&file)?;
    Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
}

/// The authority of a domain, made if there is none.
pub async fn ensure(
    paths: &Paths,
    system: &impl System,
    domain: &Domain,
    caddy: Option<CaddyUser>,
) -> Result<Authority, AuthorityError> {
    let home = directory(paths, domain);
    if certificate(paths, domain)?.is_none() {
        make(&home, system, domain, caddy).await?;
    }
    let text = certificate(paths, domain)?.unwrap_or_default();
    let digest = hex::encode(Sha256::digest(text));
    Ok(Authority {
        certificate: home.join("root.crt"),
        key: home.join("root.key"),
        id: format!("proximity-{}", digest.get(..12).unwrap_or_default()),
    })
}

fn directory(paths: &Paths, domain: &Domain) -> PathBuf {
    paths.authorities().join(domain.as_str())
}

async fn make(
    home: &Path,
    system: &impl System,
    domain: &Domain,
    caddy: Option<CaddyUser>,
) -> Result<(), AuthorityError> {
    let parent = home.parent().unwrap_or(home);
    // Others may pass through to the certificates; keys are protected by their own modes.
    durable::directory(parent, 0o755)?;
    let begun = parent.join(format!(".{domain}"));
    match std::fs::remove_dir_all(&begun) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(FileError::new("remove", &begun)(e).into());
        }
        _ => {}
    }
    durable::directory(&begun, 0o700)?;
    let settings = begun.join("root.cnf");
    let text = settings_for(&word(domain)?);
    durable::replace(&settings, text.as_bytes(), 0o600, Keep::Derived)?;
    let (key, certificate) = (begun.join("root.key"), begun.join("root.crt"));
    system.run(request(&settings, &key, &certificate)).await?;
    let owner = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        chown(path, caddy.map(|c| c.uid), caddy.map(|c| c.gid))
    };
    owner(&key, 0o400).map_err(FileError::new("protect", &key))?;
    owner(&certificate, 0o444).map_err(FileError::new("protect", &certificate))?;
    durable::directory(&begun, 0o755)?;
    std::fs::rename(&begun, home).map_err(FileError::new("place", home))?;
    Ok(())
}

/// A key on the curve P-256 and a certificate that it signs itself.
fn request(settings: &Path, key: &Path, certificate: &Path) -> Command {
    let text = |path: &Path| path.display().to_string();
    let (settings, key, certificate) = (text(settings), text(key), text(certificate));
    let argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-sha256",
        "-days",
        DAYS,
        "-config",
        &settings,
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    Command::new(&argv, Duration::from_secs(30))
}

/// What openssl is told; `domain` is one word. Without the excluded networks a certificate for an address
/// would be good: a constraint says nothing of the kinds of names that it does not mention.
fn settings_for(domain: &str) -> String {
    format!(
        "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = root\n\n\
         [name]\nCN = Proximity {domain}\n\n\
         [root]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\n\
         subjectKeyIdentifier = hash\nnameConstraints = critical,@names\n\n\
         [names]\npermitted;DNS.0 = {domain}\nexcluded;IP.0 = 0.0.0.0/0.0.0.0\n\
         excluded;IP.1 = 0:0:0:0:0:0:0:0/0:0:0:0:0:0:0:0\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake::{self, FakeSystem};

    #[tokio::test]
    async fn it_is_made_once_and_its_key_is_nobody_elses() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let system = FakeSystem::new(&paths);
        let domain = &fake::state().network.domain;
        let made = ensure(&paths, &system, domain, None).await.unwrap();
        assert_eq!(system.commands().len(), 1);
        let mode = std::fs::metadata(&made.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        let again = ensure(&paths, &system, domain, None).await.unwrap();
        assert_eq!(again, made);
        assert!(system.commands().is_empty());
        let other = "other.local".parse().unwrap();
        let other = ensure(&paths, &system, &other, None).await.unwrap();
        assert_ne!(other.certificate, made.certificate);
    }

    #[tokio::test]
    async fn what_broke_off_leaves_nothing_that_counts() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let system = FakeSystem::new(&paths);
        let domain = &fake::state().network.domain;
        *system.fails.lock().unwrap() = Some("openssl");
        ensure(&paths, &system, domain, None).await.unwrap_err();
        assert_eq!(certificate(&paths, domain).unwrap(), None);
        *system.fails.lock().unwrap() = None;
        ensure(&paths, &system, domain, None).await.unwrap();
    }

    #[test]
    fn openssl_makes_the_constraint_of_these_settings() {
        let dir = tempfile::tempdir().unwrap();
        let settings = dir.path().join("root.cnf");
        std::fs::write(&settings, settings_for("prox.local")).unwrap();
        let command = request(
            &settings,
            &dir.path().join("root.key"),
            &dir.path().join("root.crt"),
        );
        let run = |argv: &[&str]| {
            let (program, arguments) = argv.split_first().unwrap();
            let ran = std::process::Command::new(program)
                .args(arguments)
                .output()
                .unwrap();
            assert!(ran.status.success(), "{ran:?}");
            String::from_utf8(ran.stdout).unwrap()
        };
        let argv: Vec<&str> = command.argv.iter().map(String::as_str).collect();
        run(&argv);
        let certificate = dir.path().join("root.crt");
        let path = certificate.to_str().unwrap();
        let text = run(&["openssl", "x509", "-in", path, "-noout", "-text"]);
        let (_, constraint) = text
            .split_once("X509v3 Name Constraints: critical")
            .unwrap();
        for wanted in [
            "Permitted:",
            "DNS:prox.local",
            "Excluded:",
            "IP:0.0.0.0/0.0.0.0",
        ] {
            assert!(constraint.contains(wanted), "{wanted}: {text}");
        }
        assert_eq!(
            text.matches("X509v3 Basic Constraints").count(),
            1,
            "{text}"
        );
    }
}
