//! Guests on this machine by LXC: unprivileged, cloned from an image by an overlay.
//!
//! Owns `DATA_DIR/guests`. Never follows a path inside a root file system that a guest has run in,
//! and destroys nothing whose mark does not name the guest.

mod config;
mod disk;
mod identity;
mod ids;
mod inside;
mod layer;
mod layout;
mod lxcfs;
mod machine;
mod monitor;
mod ways;

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::InstanceId;
use async_trait::async_trait;
use engine::ports::{Backend, GuestObserved, GuestSpec, GuestState, PortError};
use link::Authority;
use wire::identity::Bundle;

use crate::image::ImageStore;
use crate::node_network::guest_ports;
use crate::program::{Printed, Program, found};
use layout::Mark;
use machine::Machine;

pub(crate) use config::{AGENT_DIR_IN_GUEST, host_interface};
pub(crate) use ids::{ID_COUNT, Ids};
pub(crate) use layout::{GuestDir, complete_guests, write_durably};

/// How long LXC may take to start a guest; it takes a tenth of a second.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The backend `lxc`.
#[derive(Debug, Clone)]
pub struct LxcBackend {
    guests: PathBuf,
    agent: PathBuf,
    images: ImageStore,
    authority: Arc<Authority>,
    machine: Machine,
    /// Whether even guests of this machine are reached through their zone's relay.
    through_relay: bool,
}

impl LxcBackend {
    /// Over `DATA_DIR/guests`, with the agent of `agent_binary` for all guests. The binary is copied
    /// to `DATA_DIR/agent`, which every guest sees read-only.
    pub fn new(
        data_dir: &Path,
        agent_binary: &Path,
        images: ImageStore,
        authority: Arc<Authority>,
    ) -> Result<Self, PortError> {
        let guests = data_dir.join("guests");
        let agent = data_dir.join("agent");
        make_directory(&guests, 0o711)?;
        make_directory(&agent, 0o755)?;
        install_agent(agent_binary, &agent.join("proximity-agent"))?;
        layout::sweep(&guests)?;
        disk::sweep(&images.blank_disks())?;
        let machine = Machine::detect();
        if !machine.apparmor {
            tracing::info!(
                "this kernel has no AppArmor: guests are confined by user namespace, seccomp, capabilities and cgroups"
            );
        }
        Ok(Self {
            guests,
            agent,
            images,
            authority,
            machine,
            through_relay: false,
        })
    }

    /// The same, but agents are reached through their zone's relay only, as on nodes elsewhere.
    pub fn through_relay(self, through_relay: bool) -> Self {
        Self {
            through_relay,
            ..self
        }
    }

    /// Where guests lie: LXC's `-P`.
    pub fn guests(&self) -> &Path {
        &self.guests
    }

    fn dir(&self, id: &InstanceId) -> GuestDir {
        GuestDir::new(&self.guests, id)
    }

    fn lxc(&self, what: impl Into<String>, program: &str, id: &InstanceId) -> Program {
        Program::new(what, program)
            .arg("-P")
            .arg(&self.guests)
            .args(["-n", id.as_str()])
    }

    async fn runs(&self, id: &InstanceId) -> Result<bool, PortError> {
        if let Some(runs) = monitor::answers(&self.guests, id) {
            return Ok(runs);
        }
        let printed = self
            .lxc(format!("look at guest {id}"), "lxc-info", id)
            .args(["-s", "-H"])
            .run()
            .await?;
        let state = String::from_utf8_lossy(&printed.stdout);
        Ok(state.trim() != "STOPPED")
    }
}

/// How often a scope of this name is tried for while systemd forgets the one before, and the pause between.
const SCOPE_TRIES: u32 = 40;
const SCOPE_PAUSE: Duration = Duration::from_millis(50);

impl LxcBackend {
    /// Starts a guest outside the controller's own unit, in one that systemd leaves to LXC: it neither ends
    /// with the controller nor loses its limits when systemd sorts the groups that it knows.
    async fn start_in_scope(&self, id: &InstanceId) -> Result<Printed, PortError> {
        let lxc_start = found(Path::new("lxc-start")).unwrap_or_else(|| "lxc-start".into());
        let mut tries = 1;
        loop {
            let start = Program::new(format!("start guest {id}"), "systemd-run")
                .args(["--quiet", "--scope", "--collect", "--slice=proximity.slice"])
                .arg(format!("--unit={}", scope(id)))
                .arg(format!("--description=Proximity guest {id}"))
                .args(["--property=Delegate=yes", "--"])
                .arg(&lxc_start)
                .arg("-P")
                .arg(&self.guests)
                .args(["-n", id.as_str()]);
            match started_by(start).run().await {
                // The last process of a stopped guest is gone before its scope is.
                Err(error) if tries < SCOPE_TRIES && error.cause.contains(".scope was already") => {
                    tries += 1;
                    tokio::time::sleep(SCOPE_PAUSE).await;
                }
                other => return other,
            }
        }
    }
}

/// The unit of systemd in which a guest runs.
fn scope(id: &InstanceId) -> String {
    format!("proximity-{id}.scope")
}

fn started_by(program: Program) -> Program {
    program
        // LXC starts newuidmap and newgidmap where it finds them, 4 ms each; root needs neither.
        .env("PATH", Path::new("/usr/sbin:/sbin"))
        .arg("-d")
        .deadline(START_DEADLINE)
}

fn make_directory(dir: &Path, mode: u32) -> Result<(), PortError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)))
        .map_err(|e| PortError::new(format!("make {}", dir.display()), e))
}

fn install_agent(from: &Path, to: &Path) -> Result<(), PortError> {
    let new = std::fs::read(from).map_err(|e| {
        PortError::new(format!("read the agent {}", from.display()), e)
            .hint("build it (make build) or say where it is: proximity serve --agent FILE")
    })?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    write_durably(to, &new, 0o755)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755))
        .map_err(|e| PortError::new(format!("install {}", to.display()), e))
}

#[async_trait]
impl Backend for LxcBackend {
    async fn observe(&self, id: &InstanceId) -> Result<GuestObserved, PortError> {
        let Some(mark) = self.dir(id).mark()? else {
            return Ok(GuestObserved {
                state: GuestState::Absent,
                spec: None,
            });
        };
        if !mark.complete {
            return Ok(GuestObserved {
                state: GuestState::Partial,
                spec: None,
            });
        }
        let state = if self.runs(id).await? {
            GuestState::Running
        } else {
            GuestState::Stopped
        };
        Ok(GuestObserved {
            state,
            spec: Some(mark.spec),
        })
    }

    async fn inventory(&self) -> Result<Vec<InstanceId>, PortError> {
        let entries = std::fs::read_dir(&self.guests)
            .map_err(|e| PortError::new(format!("list {}", self.guests.display()), e))?;
        let ids = entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<InstanceId>().ok())
            .filter(|id| matches!(self.dir(id).mark(), Ok(Some(_))));
        Ok(ids.collect())
    }

    async fn create(&self, spec: &GuestSpec) -> Result<(), PortError> {
        let dir = GuestDir::for_spec(&self.guests, spec);
        let lower = self.images.rootfs(&spec.image);
        if !self.images.is_complete(&spec.image) {
            return Err(PortError::new(
                format!("clone guest {}", spec.id),
                format!("image {:.12} is not in the cache", spec.image),
            )
            .hint("build it: proximity image build --all"));
        }
        let old = dir.mark()?;
        // The layer of a guest that may have run is kept, unless it lies over another image.
        let keep_layer = old.as_ref().is_some_and(|m| {
            m.complete && m.spec.image == spec.image && m.spec.limits.disk_gb == spec.limits.disk_gb
        });
        if !keep_layer {
            if old.as_ref().is_some_and(|m| m.complete) && self.runs(&spec.id).await? {
                return Err(PortError::new(
                    format!("change guest {}", spec.id),
                    "it runs",
                ));
            }
            let unfinished = Mark {
                id: spec.id.clone(),
                complete: false,
                spec: spec.clone(),
            };
            let ids = Ids::of(self.images.spec(&spec.image)?.ids);
            match old {
                Some(_) => dir.write_mark(&unfinished).and_then(|()| dir.give(ids))?,
                None => dir.begin(&unfinished, ids)?,
            }
            layer::make(&dir, spec, &lower, &self.images.blank_disks()).await?;
        }
        if identity::lasting(&dir).is_none() {
            identity::place(&dir, &identity::new(&self.authority, spec)?)?;
        }
        dir.write_mark(&Mark {
            id: spec.id.clone(),
            complete: true,
            spec: spec.clone(),
        })
    }

    async fn start(&self, id: &InstanceId) -> Result<(), PortError> {
        if self.runs(id).await? {
            return Ok(());
        }
        let dir = self.dir(id);
        let Some(Mark { spec, .. }) = dir.mark()? else {
            return Err(PortError::new(
                format!("start guest {id}"),
                "there is no such guest on this node",
            ));
        };
        let dir = GuestDir::for_spec(&self.guests, &spec);
        // The guest may have been stopped for longer than its identity lasts.
        if identity::lasting(&dir).is_none() {
            identity::place(&dir, &identity::new(&self.authority, &spec)?)?;
        }
        let lower = self.images.rootfs(&spec.image);
        let image = self.images.spec(&spec.image)?;
        let text = config::render(
            &spec,
            &image,
            &dir,
            &lower,
            &self.agent,
            &self.machine,
            &lxcfs::files(),
        )?;
        layout::write(&dir.config(), text.as_bytes())?;
        // Before it starts: a guest that is not listed on its port speaks with nobody.
        tokio::try_join!(layer::ready(&dir), guest_ports::admit(&self.guests, &spec))?;
        let started = if self.machine.systemd {
            self.start_in_scope(id).await
        } else {
            let start = self.lxc(format!("start guest {id}"), "lxc-start", id);
            started_by(start).run().await
        };
        // lxc-start says little; its log says why. And its exit code 0 is not believed either.
        let why = |cause: String| {
            let said = read_tail(&dir.log(), 3).join("; ");
            PortError::new(
                format!("start guest {id}"),
                if said.is_empty() {
                    cause
                } else {
                    format!("{cause}: {said}")
                },
            )
            .hint("what the machine lacks: proximity doctor")
        };
        started.map_err(|e| why(e.cause))?;
        if !self.runs(id).await? {
            return Err(why("it ended at once".into()));
        }
        Ok(())
    }

    async fn due_identity(&self, id: &InstanceId) -> Result<Option<Bundle>, PortError> {
        let dir = self.dir(id);
        if identity::lasting(&dir).is_some() {
            return Ok(None);
        }
        match dir.mark()? {
            Some(mark) => identity::new(&self.authority, &mark.spec).map(Some),
            None => Ok(None),
        }
    }

    async fn place_identity(&self, id: &InstanceId, bundle: &Bundle) -> Result<(), PortError> {
        identity::place(&self.dir(id), bundle)
    }

    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), PortError> {
        if !self.dir(id).mark()?.is_some_and(|m| m.complete) {
            return Ok(());
        }
        if self.runs(id).await? {
            let stop = self.lxc(format!("stop guest {id}"), "lxc-stop", id);
            let stop = if grace.is_zero() {
                stop.arg("-k")
            } else {
                stop.arg("-t").arg(grace.as_secs().max(1).to_string())
            };
            let asked = stop.deadline(grace + Duration::from_secs(30)).run().await;
            if self.runs(id).await? {
                asked?;
                return Err(PortError::new(format!("stop guest {id}"), "it still runs"));
            }
        }
        Ok(())
    }

    async fn destroy(&self, id: &InstanceId) -> Result<(), PortError> {
        let dir = self.dir(id);
        let Some(mark) = dir.mark()? else {
            return Ok(());
        };
        if mark.complete {
            if self.runs(id).await? {
                return Err(PortError::new(format!("remove guest {id}"), "it runs"));
            }
            // From here on it can't be started or looked at; whatever interrupts this, the next attempt
            // knows what the rest is.
            dir.write_mark(&Mark {
                complete: false,
                ..mark.clone()
            })?;
        }
        let (unmounted, ()) = tokio::join!(disk::unmount(&dir), guest_ports::dismiss(&mark.spec));
        unmounted?;
        identity::remove(&dir);
        layer::clear(&dir).await?;
        let gone = dir.set_aside()?;
        layer::remove_tree(&gone).await
    }

    async fn console_tail(&self, id: &InstanceId, lines: usize) -> Vec<String> {
        read_tail(&self.dir(id).console(), lines)
    }
}

/// The last lines of a log, without control characters. The file is the node's own, its content a guest's.
fn read_tail(path: &Path, lines: usize) -> Vec<String> {
    const WINDOW: u64 = 64 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let clean = |line: &str| -> String {
        strip_escapes(line)
            .chars()
            .filter(|c| !c.is_control())
            .take(400)
            .collect()
    };
    let all: Vec<String> = text
        .lines()
        .map(clean)
        .filter(|l| !l.trim().is_empty())
        .collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .to_vec()
}

/// Removes terminal escape sequences of the form `ESC [ … letter`.
fn strip_escapes(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            if chars.next() == Some('[') {
                let _ = chars.by_ref().find(|c| c.is_ascii_alphabetic());
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_lines_lose_their_escapes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, "a\n\u{1b}[0;32m  OK  \u{1b}[0m done\u{7}\n\nb\r\n").unwrap();
        assert_eq!(read_tail(&path, 2), ["  OK   done", "b"]);
        assert!(read_tail(Path::new("/does/not/exist"), 5).is_empty());
    }
}
