//! Gives a service a new configuration file, or leaves it with the old one.
//!
//! ```text
//! candidate ──check──▶ pending mark ──rename──▶ in place ──activate──▶ mark removed
//!     │ refused                                     │ failed
//!     └─▶ removed, nothing changed                  └─▶ previous file back, activated again
//! ```
//! The mark makes a crash between the rename and the activation harmless: the next apply finds it
//! and activates the file, although the file itself has not changed.

use std::path::{Path, PathBuf};

use super::paths::Paths;
use super::system::{Command, CommandError, System};
use crate::durable::{self, FileError, Keep};

/// Why a service did not get its configuration.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The service refuses the configuration; the previous one holds.
    #[error("the new configuration was refused and the previous one kept: {0}")]
    Refused(#[source] CommandError),
    /// The configuration was sound but the service did not take it.
    #[error("{outcome}: {source}")]
    NotTaken {
        /// What was done about it.
        outcome: &'static str,
        /// Why.
        #[source]
        source: CommandError,
    },
}

/// How a service takes the file that stands at its place.
pub trait Activate {
    /// Makes the service use the file; says what was done ("reloaded").
    fn activate(&self) -> impl Future<Output = Result<&'static str, CommandError>> + Send;
}

/// A service's configuration file.
pub struct Installation<'a> {
    /// Short name of the service, which names its mark.
    pub service: &'static str,
    /// Where the file stands.
    pub path: PathBuf,
    /// What it should hold.
    pub text: &'a str,
    /// The command that checks a file at a given place.
    pub check: &'a (dyn Fn(&Path) -> Command + Sync),
}

impl Installation<'_> {
    /// Installs the file; `None` when the service has it already.
    pub async fn install(
        &self,
        paths: &Paths,
        system: &impl System,
        service: &impl Activate,
    ) -> Result<Option<&'static str>, InstallError> {
        let previous = durable::read_if_there(&self.path)?;
        let mark = paths.pending(self.service);
        let unchanged = previous.as_deref() == Some(self.text.as_bytes());
        if unchanged && !mark.exists() {
            return Ok(None);
        }
        if !unchanged {
            self.check_candidate(system).await?;
            durable::replace(&mark, b"", 0o600, Keep::Derived)?;
            durable::replace(&self.path, self.text.as_bytes(), 0o644, Keep::Durable)?;
        }
        match service.activate().await {
            Ok(done) => {
                durable::remove_if_there(&mark)?;
                Ok(Some(done))
            }
            Err(source) => {
                let previous = previous.filter(|_| !unchanged);
                let outcome = self.restore(previous, &mark, service).await?;
                Err(InstallError::NotTaken { outcome, source })
            }
        }
    }

    async fn check_candidate(&self, system: &impl System) -> Result<(), InstallError> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let candidate = self.path.with_file_name(format!(".{name}.candidate"));
        durable::replace(&candidate, self.text.as_bytes(), 0o644, Keep::Derived)?;
        let checked = system.run((self.check)(&candidate)).await;
        durable::remove_if_there(&candidate)?;
        checked.map(|_| ()).map_err(InstallError::Refused)
    }

    /// Goes back to the previous file. Without one the mark stays, and the next apply tries again.
    async fn restore(
        &self,
        previous: Option<Vec<u8>>,
        mark: &Path,
        service: &impl Activate,
    ) -> Result<&'static str, InstallError> {
        let Some(previous) = previous else {
            return Ok("the service did not take its configuration");
        };
        durable::replace(&self.path, &previous, 0o644, Keep::Durable)?;
        if service.activate().await.is_err() {
            return Ok("the service took neither the new configuration nor the previous one");
        }
        durable::remove_if_there(mark)?;
        Ok("the service did not take the new configuration and has the previous one again")
    }
}
