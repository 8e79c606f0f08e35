//! A terminal on a host: a person's keys go there, what the program shows comes back.
//!
//! ```text
//!   shell: terminal asked for ─▶ login shell ───────────────────▶ keys ⇄ screen ─▶ exit code
//!   program: raw terminal ─▶ order ─▶ sane terminal ─▶ marker ──▶ keys ⇄ screen ─▶ exit code
//! ```
//!
//! It has a connection for itself, since whoever reads it may stop to. When the person goes, sshd hangs the terminal up,
//! and what wants to outlive that (`nohup`, `tmux`) does, as on any terminal. Knows nothing of this machine's terminal.

use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use audit::Outcome;

use crate::command::Command;
use crate::error::Error;
use crate::hosts::Vm;
use crate::pool::Sharing;
use crate::remote::{Remote, outcome_of};
use crate::running::{signal, signal_number};
use crate::stream::Stream;
use crate::supervisor::{Marks, Watch, order_line, unwatched_line};

/// What a terminal does with bytes while the order goes through it: nothing.
const RAW: [(Pty, u32); 8] = [
    (Pty::ECHO, 0),
    (Pty::ICANON, 0),
    (Pty::ISIG, 0),
    (Pty::ICRNL, 0),
    (Pty::INLCR, 0),
    (Pty::IXON, 0),
    (Pty::ISTRIP, 0),
    (Pty::OPOST, 0),
];

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// What a person does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// Presses keys.
    Keys(Bytes),
    /// Changes the window's size.
    Resize(Window),
}

/// What the person sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// The terminal is there: from now on keys belong to it. Comes once, first.
    Opened,
    /// What the program shows.
    Output(Bytes),
}

/// What is to run in the terminal.
#[derive(Debug)]
pub enum Program<'a> {
    /// The user's login shell.
    Shell,
    /// This; its deadline and its retries do not count.
    Command(&'a Command),
}

/// How a terminal was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// Its program ended: exit code, 128 + N where signal N ended it.
    Ended(i32),
    /// The person went away, by dropping the sender of what is typed; sshd hung up.
    Gone,
}

impl Remote {
    /// Opens a terminal of this kind (`xterm-256color`) and stays until its program ends or the sender of `typed` is
    /// dropped. A slow reader of `shown` slows the program.
    pub async fn terminal(
        &self,
        id: &str,
        program: Program<'_>,
        (term, window): (&str, Window),
        typed: mpsc::Receiver<Typed>,
        shown: mpsc::Sender<Shown>,
    ) -> Result<Left, Error> {
        let detail = match &program {
            Program::Shell => json!({ "argv": null }),
            Program::Command(command) => json!({
                "argv": command.words(),
                "env": command.variables(),
                "cwd": command.directory(),
                "user": command.as_user(),
            }),
        };
        let vm = self.permitted(id, "remote.shell", &detail).await?;
        if let Program::Command(command) = &program {
            command.check_length().map_err(|e| Error::InvalidCommand {
                vm: id.to_owned(),
                reason: e.to_string(),
            })?;
        }
        let intent = self.intent(vm, "remote.shell", detail).await?;
        let left = self.stay(vm, program, (term, window), typed, shown).await;
        let outcome = match &left {
            Ok(Left::Ended(code)) => Outcome::exited(*code),
            Ok(Left::Gone) => Outcome::ok().detail(json!({"left": true})),
            Err(error) => outcome_of(error),
        };
        if let Err(error) = intent.finish(outcome).await {
            tracing::warn!(vm = %vm.id, %error, "the outcome of a terminal is not in the audit log yet");
        }
        left
    }

    async fn stay(
        &self,
        vm: &Vm,
        program: Program<'_>,
        (term, window): (&str, Window),
        typed: mpsc::Receiver<Typed>,
        shown: mpsc::Sender<Shown>,
    ) -> Result<Left, Error> {
        let wait = self.hosts.settings.timeout;
        let leased = self.pool.lease(vm, self.caller(), Sharing::Own, wait);
        let (lease, channel) = leased.await?;
        let limit = self.hosts.settings.connect_timeout;
        let session = Session::begin(vm, channel, program, (term, window));
        let session = timeout(limit, session)
            .await
            .map_err(|_| Error::Deadline {
                vm: vm.id.to_string(),
                phase: "a terminal was being opened",
                limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            })??;
        let left = session.stay(typed, &shown).await;
        if matches!(left, Ok(Left::Ended(_))) {
            lease.finished();
        }
        left
    }
}

/// A terminal in which a program has been asked for.
struct Session<'a> {
    vm: &'a Vm,
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    /// What comes before the program's own output, where an order was sent.
    marker: Option<Vec<u8>>,
    output: Stream,
    end: Option<i32>,
}

impl<'a> Session<'a> {
    async fn begin(
        vm: &'a Vm,
        channel: Channel<Msg>,
        program: Program<'_>,
        (term, window): (&str, Window),
    ) -> Result<Self, Error> {
        let not_started = |reason: &str| Error::NotStarted {
            vm: vm.id.to_string(),
            reason: reason.to_owned(),
        };
        let lost = |_| not_started("the connection broke before the program was asked for");
        let (mut read, write) = channel.split();
        let modes: &[_] = match program {
            Program::Shell => &[],
            Program::Command(_) => &RAW,
        };
        let (cols, rows) = (u32::from(window.cols), u32::from(window.rows));
        let pty = write.request_pty(true, term, cols, rows, 0, 0, modes);
        pty.await.map_err(lost)?;
        if answer(&mut read).await != Some(true) {
            return Err(not_started(
                "the server gives no terminal: PermitTTY of its sshd_config, or no-pty of the key",
            ));
        }
        let mut marker = None;
        match program {
            Program::Shell => write.request_shell(true).await.map_err(lost)?,
            Program::Command(command) => {
                let marks = Marks::new().map_err(|_| not_started("no random bytes"))?;
                let line = unwatched_line(&vm.user, command.as_user());
                write.exec(true, line).await.map_err(lost)?;
                let order = order_line(command.order(true), &marks, Watch::Terminal);
                let order = Bytes::copy_from_slice(&order);
                write.data_bytes(order).await.map_err(lost)?;
                // A sane terminal ends lines so.
                marker = Some(format!("{}\r\n", marks.started()).into_bytes());
            }
        }
        // The order is on its way.
        match answer(&mut read).await {
            Some(true) => {}
            Some(false) => return Err(not_started("the server refuses to run programs")),
            None => {
                return Err(Error::OutcomeUnknown {
                    vm: vm.id.to_string(),
                    reason: "the connection was lost while the program was being started"
                        .to_owned(),
                });
            }
        }
        Ok(Self {
            vm,
            read,
            write,
            marker,
            output: Stream::new(),
            end: None,
        })
    }

    /// Both ways at once: a program that does not read its keys still shows what it has to say.
    async fn stay(
        mut self,
        mut typed: mpsc::Receiver<Typed>,
        shown: &mpsc::Sender<Shown>,
    ) -> Result<Left, Error> {
        if shown.send(Shown::Opened).await.is_err() {
            return Ok(Left::Gone);
        }
        let (open, mut opened) = watch::channel(self.marker.is_none());
        let keys = async {
            // What is typed too early would be read as a part of the order.
            let _: Result<_, _> = opened.wait_for(|open| *open).await;
            while let Some(typed) = typed.recv().await {
                let sent = match typed {
                    Typed::Keys(keys) => self.write.data_bytes(keys).await,
                    Typed::Resize(window) => {
                        let (cols, rows) = (u32::from(window.cols), u32::from(window.rows));
                        self.write.window_change(cols, rows, 0, 0).await
                    }
                };
                if sent.is_err() {
                    // The reading side finds out why.
                    std::future::pending::<()>().await;
                }
            }
        };
        let screen = async {
            while let Some(message) = self.read.wait().await {
                match message {
                    ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                        let data = match &self.marker {
                            Some(marker) => self.output.feed(data, marker),
                            None => Some(data),
                        };
                        if self.marker.is_none() || self.output.open {
                            open.send_replace(true);
                        }
                        if let Some(data) = data
                            && shown.send(Shown::Output(data)).await.is_err()
                        {
                            return false;
                        }
                    }
                    ChannelMsg::ExitStatus { exit_status } => {
                        self.end = Some(i32::try_from(exit_status).unwrap_or(255));
                    }
                    ChannelMsg::ExitSignal { signal_name, .. } => {
                        let number = signal_number(&signal(&signal_name));
                        self.end = Some(128_i32.saturating_add(number));
                    }
                    ChannelMsg::Close => return true,
                    _ => {}
                }
            }
            true
        };
        let ended = tokio::select! {
            () = keys => false,
            ended = screen => ended,
        };
        if !ended {
            // Closing hangs the terminal up; a connection that is gone has done so already.
            let _: Result<(), _> = self.write.close().await;
            return Ok(Left::Gone);
        }
        self.judge()
    }

    fn judge(self) -> Result<Left, Error> {
        let vm = self.vm.id.to_string();
        match self.end {
            Some(code) if self.marker.is_some() && !self.output.open => {
                let said = String::from_utf8_lossy(&self.output.noise).into_owned();
                let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
                // The order holds the values of variables, which belong in no message.
                let said = match said.contains("exec ") {
                    true => "it repeated what it was sent".to_owned(),
                    false => said,
                };
                Err(Error::NotStarted {
                    vm,
                    reason: format!("the login ended with code {code}: {said}"),
                })
            }
            Some(code) => Ok(Left::Ended(code)),
            None => Err(Error::OutcomeUnknown {
                vm,
                reason: "the connection was lost while the terminal was open".to_owned(),
            }),
        }
    }
}

/// Whether the server says yes to what was asked for last; none when it can't say any more.
async fn answer(read: &mut ChannelReadHalf) -> Option<bool> {
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::Success => return Some(true),
            ChannelMsg::Failure => return Some(false),
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
    None
}
