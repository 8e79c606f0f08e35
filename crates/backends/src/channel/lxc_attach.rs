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
use bytes::Bytes;
use engine::ports::{
    Channel, ChannelError, ChannelTarget, CommandEnd, GuestCommand, Session, SessionInput,
    SessionOutput,
};
use rustix::process::{Gid, Uid};
use std::os::unix::process::ExitStatusExt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use wire::attach::{Answer, AttachRequest, COOKIE};

use crate::lxc::{AGENT_DIR_IN_GUEST, GuestDir, Ids};

/// How long output may still come after the command itself ended, from children that kept the pipe.
const DRAIN: Duration = Duration::from_millis(200);
/// Pieces on their way in each direction; a full queue makes the other side wait.
const QUEUE: usize = 8;
/// The most that is read at once.
const PIECE_BYTES: usize = 64 << 10;
/// A pipe holds at most so much, unless somebody in the guest enlarged it (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;
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

/// A command that runs in the guest.
struct Running {
    child: Child,
    tree: process_tree::Guard,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
    began: Instant,
}

impl LxcAttach {
    /// Enters the guest and sends the request. `None`: the deadline passed before the guest answered.
    async fn enter(
        &self,
        guest: &ChannelTarget,
        command: &GuestCommand,
    ) -> Result<Option<Running>, ChannelError> {
        let cookie = new_cookie()?;
        let header = frame(command, &cookie)?;
        let mut child = self
            .spawn(&guest.id)
            .map_err(|e| ChannelError::Unreachable(format!("can't run lxc-attach: {e}")))?;
        // Dropped when the caller goes away: the tree must not outlive the request.
        let tree = process_tree::Guard::new(child.id(), format!("{COOKIE}={cookie}"));
        let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(ChannelError::NothingRan("lxc-attach has no pipes".into()));
        };
        let ids = GuestDir::new(&self.guests, &guest.id).ids();
        let ids = ids.map_err(|e| ChannelError::Unreachable(e.to_string()))?;
        give_away(&stdin, &stdout, &stderr, ids)
            .map_err(|e| ChannelError::NothingRan(format!("can't give the pipes away: {e}")))?;
        let mut stdout = BufReader::new(stdout);
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
        let line = match timeout(ANSWER_DEADLINE.min(command.timeout), hello).await {
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
                return Ok(None);
            }
        };
        match Answer::parse(&line) {
            Some(Answer::Go) => Ok(Some(Running {
                child,
                tree,
                stdin,
                stdout,
                stderr,
                began,
            })),
            Some(Answer::Refused(cause)) => {
                tree.disarm();
                Err(ChannelError::NothingRan(cause))
            }
            None => {
                let mut said = vec![0; 4096];
                let read = timeout(DRAIN, stderr.read(&mut said)).await;
                said.truncate(read.ok().and_then(Result::ok).unwrap_or_default());
                tree.kill().await;
                Err(ChannelError::Unreachable(no_answer(&said)))
            }
        }
    }
}

#[async_trait]
impl Channel for LxcAttach {
    fn name(&self) -> &'static str {
        "lxc-attach"
    }

    async fn open(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
        tty: Option<WindowSize>,
    ) -> Result<Session, ChannelError> {
        if tty.is_some() {
            return Err(self.no("terminals"));
        }
        let (input, to_guest) = mpsc::channel(QUEUE);
        let (from_guest, output) = mpsc::channel(QUEUE);
        match self.enter(guest, &command).await? {
            Some(running) => {
                tokio::spawn(carry(running, command, to_guest, from_guest));
            }
            None => {
                let ended = SessionOutput::Ended {
                    end: CommandEnd::TimedOut,
                    duration: command.timeout,
                };
                // There is room: nothing was sent before.
                let _ = from_guest.try_send(ended);
            }
        }
        // Nobody in the guest sends a signal for us.
        let (signals, _) = mpsc::channel(1);
        Ok(Session {
            pid: 0,
            input,
            signals,
            output,
        })
    }

    async fn ready(&self, guest: &ChannelTarget, patience: Duration) -> Result<(), ChannelError> {
        let began = Instant::now();
        let command = GuestCommand {
            argv: vec!["/bin/true".into()],
            env: Default::default(),
            cwd: None,
            user: None,
            stdin: Vec::new(),
            timeout: patience,
        };
        loop {
            match self.run(guest, command.clone()).await {
                Err(ChannelError::Unreachable(_)) if began.elapsed() < patience => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                ended => return ended.map(drop),
            }
        }
    }
}

/// Carries streams until the command has ended, its deadline has passed, or the caller is gone. Whatever
/// ends it, exactly one last word is said, and the tree ends with an early end.
async fn carry(
    running: Running,
    command: GuestCommand,
    to_guest: mpsc::Receiver<SessionInput>,
    from_guest: mpsc::Sender<SessionOutput>,
) {
    let Running {
        mut child,
        tree,
        stdin,
        stdout,
        stderr,
        began,
    } = running;
    let (ended, has_ended) = watch::channel(false);
    let feed = feed(stdin, command.stdin, to_guest);
    let streams = async {
        tokio::join!(
            pass_on(
                stdout,
                has_ended.clone(),
                &from_guest,
                SessionOutput::Stdout
            ),
            pass_on(
                stderr,
                has_ended.clone(),
                &from_guest,
                SessionOutput::Stderr
            ),
        );
    };
    tokio::pin!(feed, streams);
    let deadline = tokio::time::sleep(command.timeout.saturating_sub(began.elapsed()));
    tokio::pin!(deadline);
    let (mut fed, mut silent) = (false, false);
    let end = loop {
        tokio::select! {
            status = child.wait() => break Some(status),
            () = &mut deadline => break None,
            () = from_guest.closed() => return,
            () = &mut feed, if !fed => fed = true,
            () = &mut streams, if !silent => silent = true,
        }
    };
    match end {
        // What it left running on purpose is its own business.
        Some(_) => tree.disarm(),
        None => tree.kill().await,
    }
    ended.send_replace(true);
    if !silent {
        tokio::select! {
            () = &mut streams => {}
            () = from_guest.closed() => return,
        }
    }
    let _ = from_guest.send(last_word(end, began.elapsed())).await;
}

fn last_word(
    end: Option<std::io::Result<std::process::ExitStatus>>,
    duration: Duration,
) -> SessionOutput {
    let unknown = |cause: String| SessionOutput::Failed(ChannelError::OutcomeUnknown(cause));
    let end = match end {
        None => CommandEnd::TimedOut,
        Some(Err(e)) => return unknown(format!("can't wait for lxc-attach: {e}")),
        Some(Ok(status)) => match (status.code(), status.signal()) {
            (Some(code), _) => CommandEnd::Exited(code),
            (None, Some(signal)) => CommandEnd::Signalled(signal),
            (None, None) => return unknown("lxc-attach ended without a status".into()),
        },
    };
    SessionOutput::Ended { end, duration }
}

/// A command that does not read its input to the end is no error.
async fn feed(mut stdin: ChildStdin, first: Vec<u8>, mut more: mpsc::Receiver<SessionInput>) {
    if stdin.write_all(&first).await.is_err() {
        return;
    }
    while let Some(input) = more.recv().await {
        match input {
            SessionInput::Stdin(bytes) => {
                if stdin.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            SessionInput::StdinEof => return,
            // There is no terminal.
            SessionInput::Resize(_) => {}
        }
    }
}

/// Reads to the end of the stream. Of children that kept it open after the command's end no more is
/// heard than what may have been in the pipe by then.
async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut ended: watch::Receiver<bool>,
    to: &mpsc::Sender<SessionOutput>,
    of: fn(Bytes) -> SessionOutput,
) {
    let mut buffer = vec![0u8; PIECE_BYTES];
    let mut after_end = 0;
    while after_end < PIPE_BYTES {
        let over = *ended.borrow_and_update();
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = tokio::time::sleep(DRAIN), if over => return,
            _ = ended.changed(), if !over => continue,
        };
        let Ok(n @ 1..) = read else { return };
        after_end += if over { n } else { 0 };
        let piece = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
        if to.send(of(piece)).await.is_err() {
            return;
        }
    }
}

/// The pipes belong to the guest's root from here on. As the node's they could be used but not opened
/// again, and `/dev/stdout` and `/dev/stderr` are names for just that.
fn give_away(
    stdin: impl AsFd,
    stdout: impl AsFd,
    stderr: impl AsFd,
    ids: Ids,
) -> std::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(ids.root()), Gid::from_raw(ids.root()));
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
