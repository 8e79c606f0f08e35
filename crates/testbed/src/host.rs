//! A virtual host as its caller holds it: started, commands run in it, ended.
//!
//! Owns the pipe whose end is the end of the host, the keeper process, and the host's forwards. A host is
//! never half there: `start` returns one that serves, `stop` returns when nothing of it is left.

use std::ffi::OsStr;
use std::io::PipeWriter;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::error::{During, Error, Result};
use crate::forward::Forward;
use crate::keeper::{self, Report, Spec};
use crate::name::HostName;
use crate::registry::Record;
use crate::{DEFAULT_STATE_DIR, STATE_DIR_VARIABLE, program, sweep};

/// How long the end of a host may take.
const END_DEADLINE: Duration = Duration::from_secs(20);
const REBOOT_DEADLINE: Duration = Duration::from_secs(40);

/// What a host is to be; the default is right for a test.
#[derive(Debug, Clone, Default)]
pub struct HostOptions {
    /// Its name; random when none is given.
    pub name: Option<HostName>,
    /// Where the directories of hosts are; `PROXIMITY_TESTBED_STATE` or `/var/lib/proximity-testbed` by default.
    pub state_dir: Option<PathBuf>,
    /// Leave it running when the [`Host`] is dropped or this process ends.
    pub keep: bool,
    /// Leave port 8006 of the node free, for a test that serves there itself.
    pub without_node_service: bool,
}

/// The state directory that applies: the given one, the environment's, or the default.
pub fn state_dir(given: Option<PathBuf>) -> PathBuf {
    let named = given.or_else(|| std::env::var_os(STATE_DIR_VARIABLE).map(PathBuf::from));
    named.unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR))
}

/// A running virtual host; dropped, it ends with all that runs in it, unless it is kept.
#[derive(Debug)]
pub struct Host {
    record: Record,
    testbed: PathBuf,
    forwards: Vec<Forward>,
    /// Ours while the host is to end with us; the pipe's other end is init's stdin.
    held: Option<(PipeWriter, Child)>,
}

impl Host {
    /// Removes what dead hosts left, then starts a host; returns when all of its services answer.
    pub fn start(options: HostOptions) -> Result<Self> {
        program::check()?;
        let testbed = program::find_testbed()?;
        let state_dir = std::path::absolute(state_dir(options.state_dir))
            .during("find", "the state directory")?;
        sweep::sweep(&state_dir)?;
        let name = options.name.map_or_else(HostName::random, Ok)?;
        let spec = Spec {
            name,
            state_dir,
            keep: options.keep,
            without_node_service: options.without_node_service,
        };
        let (reader, writer) = std::io::pipe().during("make", "a pipe")?;
        let mut keeper = program::clean(&testbed)
            .arg("host-keeper")
            .args(spec.args())
            .stdin(reader)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .during("run", &testbed)?;
        match keeper.stdout.take().and_then(Report::receive) {
            Some(Report::Ready { .. }) => {}
            report => {
                drop(writer);
                drop(keeper.wait());
                let name = spec.name.to_string();
                let silent = || "its keeper ended without a word".to_owned();
                let message = report.and_then(Report::failure).unwrap_or_else(silent);
                return Err(Error::Start { name, message });
            }
        }
        let record = Record::find(&spec.name)?;
        let held = (!spec.keep).then_some((writer, keeper));
        Ok(Self {
            record,
            testbed,
            forwards: Vec::new(),
            held,
        })
    }

    /// A host that runs already and goes on running when this value is dropped.
    pub fn attach(name: &HostName) -> Result<Self> {
        let testbed = program::find_testbed()?;
        Ok(Self {
            record: Record::find(name)?,
            testbed,
            forwards: Vec::new(),
            held: None,
        })
    }

    /// The host's name, which is its host name inside too.
    pub fn name(&self) -> &HostName {
        &self.record.name
    }

    /// The pid of the host's init on the machine.
    pub fn pid(&self) -> u32 {
        self.record.init.pid
    }

    /// The host's directory on the machine (`node` in it is `/var/lib/proximity` inside, `etc` is `/etc/proximity`).
    pub fn state(&self) -> &Path {
        &self.record.state
    }

    /// A command in the host, not yet started: set its pipes, directory and environment as for any other.
    pub fn command<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.testbed);
        command
            .args(["enter", self.record.name.as_str(), "--"])
            .args(argv);
        command
    }

    /// Runs a command in the host to its end, with no input. The status carries its exit code, or 128 + N
    /// after signal N.
    pub fn run<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.command(argv)
            .stdin(Stdio::null())
            .output()
            .during("run", &self.testbed)
    }

    /// Starts a command that goes on in the host, its output appended to `log`; returns its pid on the machine.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<u32> {
        let output = Command::new(&self.testbed)
            .args(["enter", self.record.name.as_str(), "--detach", "--log"])
            .arg(log)
            .arg("--")
            .args(argv)
            .output()
            .during("run", &self.testbed)?;
        let output = crate::error::succeeded("testbed enter --detach", output)?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim()
            .parse()
            .map_err(std::io::Error::other)
            .during("read the pid of", "the command")
    }

    /// A port of the machine's loopback that leads to `target` in the host, for as long as this value lives.
    pub fn forward(&mut self, target: SocketAddr) -> Result<SocketAddr> {
        let forward = Forward::start(
            &Record::find(&self.record.name)?,
            (Ipv4Addr::LOCALHOST, 0).into(),
            target,
        )?;
        let listen = forward.listen();
        self.forwards.push(forward);
        Ok(listen)
    }

    /// Ends everything in the host and starts it again over the same disk. Its forwards end.
    pub fn reboot(&mut self) -> Result<()> {
        self.forwards.clear();
        self.record = keeper::reboot(&self.record.name, REBOOT_DEADLINE)?;
        Ok(())
    }

    /// Ends the host and waits until nothing of it is left; a kept or attached one goes on running.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.forwards.clear();
        let Some((pipe, mut keeper)) = self.held.take() else {
            return Ok(());
        };
        drop(pipe);
        let deadline = Instant::now() + END_DEADLINE;
        while keeper
            .try_wait()
            .during("wait for", "the keeper")?
            .is_none()
        {
            if Instant::now() > deadline {
                let what = format!("the end of host {}", self.record.name);
                return Err(Error::Deadline {
                    what,
                    seconds: END_DEADLINE.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        sweep::finish(&self.record.name, &self.record.state)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("testbed: {}", error.chain());
        }
    }
}

/// Ends and restarts a host by name.
pub fn reboot(name: &HostName) -> Result<Record> {
    keeper::reboot(name, REBOOT_DEADLINE)
}

/// Ends a host by name, kept or not, and waits until nothing of it is left.
pub fn remove(name: &HostName) -> Result<()> {
    sweep::end(name, END_DEADLINE)
}
