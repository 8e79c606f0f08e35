//! The few ways in which the gateway acts on the appliance besides writing files.
//!
//! [`System`] is a trait because tests stand in for dnsmasq, nft and systemd with a fake that
//! behaves like them. Commands are argv arrays with a cleared environment, a deadline that ends
//! their whole process group, and bounded output; there is no shell.

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use api::HostName;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::timeout;

use super::dhcp_release::{self, HeldLease};
use super::dns_probe::{self, Answer};

/// Output beyond this is cut off; the largest we read is our own nft table.
const OUTPUT_MAX: u64 = 1 << 20;

/// One command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What it reads from its standard input.
    pub input: String,
    /// Variables beside PATH.
    pub env: Vec<(&'static str, &'static str)>,
    /// Another user than root to run as: uid and gid.
    pub user: Option<(u32, u32)>,
    /// When it is ended.
    pub deadline: Duration,
}

impl Command {
    /// A command without input, as root.
    pub fn new(argv: &[&str], deadline: Duration) -> Self {
        Self {
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            input: String::new(),
            env: Vec::new(),
            user: None,
            deadline,
        }
    }

    /// Gives it something to read.
    #[must_use]
    pub fn stdin(mut self, input: &str) -> Self {
        input.clone_into(&mut self.input);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: &'static str, value: &'static str) -> Self {
        self.env.push((key, value));
        self
    }

    /// Runs it as someone else, without supplementary groups.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    fn name(&self) -> String {
        self.argv.join(" ")
    }
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started or talked to.
    #[error("cannot run {command:?}: {source}")]
    Run {
        /// The command line, for people.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended with another status than 0.
    #[error("{command:?} failed ({status}): {}", last_lines(stderr))]
    Failed {
        /// The command line, for people.
        command: String,
        /// Its exit status or signal.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// It was ended because it took too long.
    #[error("{command:?} took longer than {} s and was ended", deadline.as_secs())]
    Deadline {
        /// The command line, for people.
        command: String,
        /// How long it had.
        deadline: Duration,
    },
}

/// The end of a program's complaint, in one line: the cause stands there, logs before it.
fn last_lines(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|l| !l.trim().is_empty()).collect();
    let tail = lines
        .get(lines.len().saturating_sub(3)..)
        .unwrap_or_default();
    let text = tail.join(" | ");
    text.chars().filter(|c| !c.is_control()).take(800).collect()
}

/// The appliance's programs and sockets.
pub trait System: Send + Sync + 'static {
    /// Runs a command to its end and returns what it printed.
    fn run(&self, command: Command) -> impl Future<Output = Result<String, CommandError>> + Send;

    /// Asks the DNS server at `server` for a name's address.
    fn ask(&self, server: Ipv4Addr, name: &HostName) -> impl Future<Output = Answer> + Send;

    /// Gives a lease back to the DHCP server at `server`.
    fn release(
        &self,
        server: Ipv4Addr,
        lease: &HeldLease,
    ) -> impl Future<Output = std::io::Result<()>> + Send;

    /// Does somebody accept connections on this unix socket?
    fn accepts(&self, socket: &Path) -> impl Future<Output = bool> + Send;
}

/// The appliance that this process runs on.
#[derive(Debug, Default)]
pub struct Appliance;

impl System for Appliance {
    async fn run(&self, command: Command) -> Result<String, CommandError> {
        let run = |source| CommandError::Run {
            command: command.name(),
            source,
        };
        let mut child = spawn(&command).map_err(run)?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let Ok(finished) = timeout(command.deadline, converse(&mut child, &command.input)).await
        else {
            if let Some(group) = group {
                // It may have ended this very moment; then there is nobody left to end.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            return Err(CommandError::Deadline {
                command: command.name(),
                deadline: command.deadline,
            });
        };
        let (stdout, stderr, status) = finished.map_err(run)?;
        if status.success() {
            Ok(stdout)
        } else {
            Err(CommandError::Failed {
                command: command.name(),
                status: status.to_string(),
                stderr,
            })
        }
    }

    async fn ask(&self, server: Ipv4Addr, name: &HostName) -> Answer {
        dns_probe::ask(server, name).await
    }

    async fn release(&self, server: Ipv4Addr, lease: &HeldLease) -> std::io::Result<()> {
        dhcp_release::send(server, lease).await
    }

    async fn accepts(&self, socket: &Path) -> bool {
        let connect = timeout(Duration::from_secs(1), UnixStream::connect(socket));
        matches!(connect.await, Ok(Ok(_)))
    }
}

fn spawn(command: &Command) -> std::io::Result<Child> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let mut process = tokio::process::Command::new(program);
    process
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(command.env.iter().copied())
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some((uid, gid)) = command.user {
        // The standard library drops the supplementary groups of root along with the uid.
        process.uid(uid).gid(gid);
    }
    process.spawn()
}

/// Feeds and drains all three pipes at once, so that none can fill up and block the program.
async fn converse(
    child: &mut Child,
    input: &str,
) -> std::io::Result<(String, String, std::process::ExitStatus)> {
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read all of its input says why by its exit status.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(feed, drain(stdout), drain(stderr));
    let status = child.wait().await?;
    Ok((stdout?, stderr?, status))
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(OUTPUT_MAX).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(argv: &[&str], input: &str, deadline_ms: u64) -> Result<String, CommandError> {
        let command = Command::new(argv, Duration::from_millis(deadline_ms)).stdin(input);
        Appliance.run(command).await
    }

    #[tokio::test]
    async fn commands_get_their_input_and_failures_tell_what_was_said() {
        let large = "x".repeat(300_000);
        assert_eq!(run(&["cat"], &large, 5000).await.unwrap(), large);
        let failed = run(&["sh", "-c", "echo reason >&2; exit 4"], "", 5000).await;
        let text = failed.unwrap_err().to_string();
        assert!(text.contains("reason") && text.contains('4'), "{text}");
        assert!(matches!(
            run(&["/no/such"], "", 5000).await,
            Err(CommandError::Run { .. })
        ));
    }

    #[tokio::test]
    async fn a_deadline_ends_the_children_that_hold_the_pipes_too() {
        let started = std::time::Instant::now();
        let ended = run(&["sh", "-c", "sleep 30 & sleep 30"], "", 100).await;
        assert!(matches!(ended, Err(CommandError::Deadline { .. })));
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
