//! The channel `lxc-attach`: cleared environment and pipes, never our terminal.
//!
//! The command line on the node names only the guest. Arguments, environment and working directory
//! travel by pipe to the agent's `attach` inside, which answers with one line before it becomes the
//! command. No line, nothing ran. So a caller's environment never touches a program of the node
//! (think of `LD_PRELOAD`), and nothing of it shows in the node's process list.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use api::InstanceId;
use api::session::WindowSize;
use async_trait::async_trait;
use engine::ports::{
    Channel, ChannelError, ChannelTarget, CommandEnd, CommandOutcome, GuestCommand, OUTPUT_CAP,
    Session,
};
use rustix::process::{Gid, Uid};
use std::os::unix::process::ExitStatusExt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use wire::attach::{Answer, AttachRequest, COOKIE};

use crate::lxc::{AGENT_DIR_IN_GUEST, ID_BASE};

/// How long output may still come after the command itself ended, from children that kept the pipe.
const DRAIN: Duration = Duration::from_millis(200);
/// How long the agent may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct LxcAttach {
    guests: PathBuf,
}

impl LxcAttach {
    /// Over the same guests as the backend.
    pub fn new(guests: &Path) -> Self {
        Self {
            guests: guests.to_owned(),
        }
    }

    fn spawn(&self, guest: &InstanceId) -> std::io::Result<Child> {
        Command::new("lxc-attach")
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .current_dir("/")
            .arg("-P")
            .arg(&self.guests)
            .args(["-n", guest.as_str(), "--clear-env", "--"])
            .arg(format!("/{AGENT_DIR_IN_GUEST}/proximity-agent"))
            .arg("attach")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }
}

/// A stream's kept bytes; more were read and dropped when `truncated`.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

async fn drain(mut from: impl AsyncRead + Unpin, kept: &mut Kept) {
    let mut buffer = vec![0u8; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let room = OUTPUT_CAP.saturating_sub(kept.bytes.len());
        kept.bytes
            .extend_from_slice(buffer.get(..n.min(room)).unwrap_or_default());
        kept.truncated |= n > room;
    }
}

fn frame(command: &GuestCommand, cookie: &str) -> Result<Vec<u8>, ChannelError> {
    let request = AttachRequest {
        argv: command.argv.clone(),
        env: command.env.clone(),
        cwd: command.cwd.clone(),
        user: command.user.clone(),
        cookie: cookie.to_owned(),
    };
    let body = serde_json::to_vec(&request).map_err(|e| ChannelError::NothingRan(e.to_string()))?;
    let length = u32::try_from(body.len())
        .map_err(|_| ChannelError::NothingRan("the command is too long".into()))?;
    Ok([&length.to_be_bytes(), body.as_slice()].concat())
}

fn new_cookie() -> Result<String, ChannelError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| ChannelError::NothingRan(e.to_string()))?;
    Ok(hex::encode(bytes))
}

#[async_trait]
impl Channel for LxcAttach {
    fn name(&self) -> &'static str {
        "lxc-attach"
    }

    async fn run(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
    ) -> Result<CommandOutcome, ChannelError> {
        let cookie = new_cookie()?;
        let header = frame(&command, &cookie)?;
        let mut child = self
            .spawn(&guest.id)
            .map_err(|e| ChannelError::NothingRan(format!("can't run lxc-attach: {e}")))?;
        let root = child.id();
        // Dropped when the caller goes away: the tree must not outlive the request.
        let tree = process_tree::Guard::new(root, format!("{COOKIE}={cookie}"));
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(ChannelError::NothingRan("lxc-attach has no pipes".into()));
        };
        give_away(&stdin, &stdout, &stderr)
            .map_err(|e| ChannelError::NothingRan(format!("can't give the pipes away: {e}")))?;
        let mut stdout = BufReader::new(stdout);
        let mut errors = Kept::default();
        let began = Instant::now();

        let hello = async {
            stdin.write_all(&header).await?;
            stdin.flush().await?;
            let mut line = Vec::new();
            (&mut stdout)
                .take(4096)
                .read_until(b'\n', &mut line)
                .await?;
            Ok::<_, std::io::Error>(line)
        };
        let line = match tokio::time::timeout(ANSWER_DEADLINE.min(command.timeout), hello).await {
            Ok(Ok(line)) => line,
            Ok(Err(_)) => Vec::new(),
            // The request may have arrived, and with it the command may have begun.
            Err(_) => {
                tree.kill().await;
                if command.timeout > ANSWER_DEADLINE {
                    return Err(ChannelError::OutcomeUnknown(format!(
                        "the guest did not answer within {} s",
                        ANSWER_DEADLINE.as_secs()
                    )));
                }
                return Ok(CommandOutcome {
                    stdout: Vec::new(),
                    stderr: Vec::new(),
                    end: CommandEnd::TimedOut,
                    truncated: false,
                    duration: began.elapsed(),
                });
            }
        };
        match Answer::parse(&line) {
            Some(Answer::Go) => {}
            Some(Answer::Refused(cause)) => {
                tree.disarm();
                return Err(ChannelError::NothingRan(cause));
            }
            None => {
                let _ = tokio::time::timeout(DRAIN, drain(stderr, &mut errors)).await;
                tree.kill().await;
                return Err(ChannelError::NothingRan(no_answer(&errors.bytes)));
            }
        }

        let mut output = Kept::default();
        let input = command.stdin;
        let feed = async move {
            // A command that does not read its input to the end is no error.
            let _ = stdin.write_all(&input).await;
            drop(stdin);
        };
        let wait = async {
            let streams = async {
                tokio::join!(drain(stdout, &mut output), drain(stderr, &mut errors));
            };
            tokio::pin!(streams, feed);
            let mut streams_ended = false;
            let mut fed = false;
            let status = loop {
                tokio::select! {
                    status = child.wait() => break status,
                    () = &mut streams, if !streams_ended => streams_ended = true,
                    () = &mut feed, if !fed => fed = true,
                }
            };
            if !streams_ended {
                let _ = tokio::time::timeout(DRAIN, streams).await;
            }
            status
        };
        let end = match tokio::time::timeout(command.timeout, wait).await {
            Ok(Ok(status)) => {
                tree.disarm();
                match (status.code(), status.signal()) {
                    (Some(code), _) => CommandEnd::Exited(code),
                    (None, Some(signal)) => CommandEnd::Signalled(signal),
                    (None, None) => {
                        return Err(ChannelError::OutcomeUnknown(
                            "lxc-attach ended without a status".into(),
                        ));
                    }
                }
            }
            Ok(Err(e)) => {
                return Err(ChannelError::OutcomeUnknown(format!(
                    "can't wait for lxc-attach: {e}"
                )));
            }
            Err(_) => {
                tree.kill().await;
                CommandEnd::TimedOut
            }
        };
        Ok(CommandOutcome {
            truncated: output.truncated || errors.truncated,
            stdout: output.bytes,
            stderr: errors.bytes,
            end,
            duration: began.elapsed(),
        })
    }

    async fn open(
        &self,
        _guest: &ChannelTarget,
        _command: GuestCommand,
        _tty: Option<WindowSize>,
    ) -> Result<Session, ChannelError> {
        Err(self.no("open streams"))
    }

    async fn ready(&self, guest: &ChannelTarget, patience: Duration) -> Result<(), ChannelError> {
        let command = GuestCommand {
            argv: vec!["/bin/true".into()],
            env: Default::default(),
            cwd: None,
            user: None,
            stdin: Vec::new(),
            timeout: patience,
        };
        self.run(guest, command).await.map(drop)
    }
}

/// The pipes belong to the guest's root from here on. As the node's they could be used but not opened
/// again, and `/dev/stdout` and `/dev/stderr` are names for just that.
fn give_away(stdin: impl AsFd, stdout: impl AsFd, stderr: impl AsFd) -> std::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(ID_BASE), Gid::from_raw(ID_BASE));
    for pipe in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        rustix::fs::fchown(pipe, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn no_answer(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let last: String = text
        .lines()
        .rfind(|l| !l.trim().is_empty())
        .unwrap_or("")
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    if last.is_empty() {
        "the guest can't be entered; is it running?".into()
    } else {
        format!("the guest can't be entered: {last}")
    }
}
