//! Drives one command on one channel from the order to its end.
//!
//! ```text
//!   order sent ──▶ waiting for the marker ──▶ running ──▶ exit seen ──▶ output drained ──▶ Finished
//!                     │ ended: nothing ran      │ lost: outcome unknown    │ nothing more comes for a second
//!                     └──── deadline: end of input, the watcher ends the tree, its end is waited for ────▶ timed out
//! ```
//!
//! Never waits without a limit, never holds more output than its limit, and answers with a final status or an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use bytes::{BufMut as _, Bytes, BytesMut};
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::command::{Chunk, Command, Finished, Input, Output};
use crate::error::Error;
use crate::evidence::Transcript;
use crate::stream::Stream;
use crate::supervisor::{Marks, Watch, exec_line, order_line, unwatched_line, watched_line};
use crate::warden::Ward;

/// How long the far side has to end a tree after a deadline: two seconds of asking, then force.
const ENDING: Duration = Duration::from_secs(15);
/// How long nothing may come after the command's end before its output counts as complete.
const DRAIN: Duration = Duration::from_secs(1);
/// The largest piece of standard input that is sent as one frame. Each costs the far side a start of `dd`.
const FRAME_BYTES: usize = 1024 * 1024;

/// When a command is to be ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// When it has run this long.
    Total(Duration),
    /// When nothing has moved in either direction for this long.
    Idle(Duration),
}

impl Limit {
    pub fn duration(self) -> Duration {
        match self {
            Self::Total(duration) | Self::Idle(duration) => duration,
        }
    }
}

/// A channel that is closed when its command's caller goes away; a warden is told to end what ran on it.
struct Guarded {
    write: Option<Arc<ChannelWriteHalf<Msg>>>,
    ward: Option<Ward>,
    /// The command's first process, 0 until it is known.
    process: Arc<AtomicU32>,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let ward = self.ward.take();
        let process = self.process.load(Ordering::Relaxed);
        // Without a runtime there is no connection either.
        if let (Some(write), Ok(runtime)) = (self.write.take(), Handle::try_current()) {
            runtime.spawn(async move {
                if let Some(ward) = ward {
                    ward.end(process).await;
                }
                // A connection that is gone has closed it already.
                let _: Result<(), _> = write.close().await;
            });
        }
    }
}

/// What is known about the end.
enum End {
    Code(u32),
    Signal(String),
}

struct Running<'a> {
    vm: &'a str,
    marks: Marks,
    ward: Option<Ward>,
    /// The command's first process, 0 until it is known.
    process: Arc<AtomicU32>,
    /// Whether its watcher passes its standard input on.
    framed: bool,
    stdout: Stream,
    stderr: Stream,
    output: Output,
    transcript: Option<Transcript>,
    end: Option<End>,
    refused: bool,
    closed: bool,
    lost: bool,
    timed_out: bool,
    reader_gone: bool,
}

/// A channel whose far side waits for its order. Nothing runs before that has come.
pub(crate) struct Begun<'a> {
    vm: &'a str,
    marks: Marks,
    ward: Option<Ward>,
    watch: Watch,
    channel: Channel<Msg>,
}

impl<'a> Begun<'a> {
    /// Has the far side begun to wait. `login` is the user that logged in; only a command of this user's can be
    /// watched by a warden.
    pub async fn on(
        vm: &'a str,
        login: &str,
        channel: Channel<Msg>,
        command: &Command,
        ward: Option<Ward>,
    ) -> Result<Self, Error> {
        let (marks, line, watch) = match &ward {
            Some(ward) => (
                ward.marks.clone(),
                watched_line(ward.shell_is_posix()),
                ward.watch(),
            ),
            None => (
                new_marks(vm)?,
                exec_line(login, command.as_user()),
                Watch::Own,
            ),
        };
        let begun = Self {
            vm,
            marks,
            ward,
            watch,
            channel,
        };
        begun.ask(line).await
    }

    /// The same for a command that does nothing but take its standard input, as it is and to its end. It needs no
    /// watcher.
    pub async fn fed(
        vm: &'a str,
        login: &str,
        channel: Channel<Msg>,
        command: &Command,
    ) -> Result<Self, Error> {
        let begun = Self {
            vm,
            marks: new_marks(vm)?,
            ward: None,
            watch: Watch::Input,
            channel,
        };
        begun.ask(unwatched_line(login, command.as_user())).await
    }

    async fn ask(self, line: String) -> Result<Self, Error> {
        self.channel
            .exec(true, line)
            .await
            .map_err(|_| Error::Handshake {
                vm: self.vm.to_owned(),
                address: self.vm.to_owned(),
                reason: "the connection broke before the order was sent".to_owned(),
            })?;
        Ok(self)
    }

    /// Runs the command to its end.
    pub async fn run(
        self,
        command: &Command,
        input: Input,
        output: Output,
        limit: Limit,
    ) -> Result<Finished, Error> {
        let began = Clock::now();
        let (mut read, write) = self.channel.split();
        let write = Arc::new(write);
        let process = Arc::new(AtomicU32::new(0));
        let mut guarded = Guarded {
            write: Some(Arc::clone(&write)),
            ward: self.ward.clone(),
            process: Arc::clone(&process),
        };
        let has_input = !matches!(input, Input::None);
        let order = order_line(command.order(has_input), &self.marks, self.watch);
        let mut running = Running {
            vm: self.vm,
            marks: self.marks,
            ward: self.ward,
            process,
            framed: self.watch == Watch::Own,
            stdout: Stream::new(),
            stderr: Stream::new(),
            output,
            transcript: command.transcript.clone(),
            end: None,
            refused: false,
            closed: false,
            lost: false,
            timed_out: false,
            reader_gone: false,
        };
        running.watch(&mut read, &write, &order, input, limit).await;
        if running.end.is_some() {
            // The tree has ended, or stays on purpose.
            guarded.ward = None;
        }
        if !running.closed && !running.lost {
            let _: Result<(), _> = write.close().await;
        }
        let mut finished = running.judge(limit.duration())?;
        finished.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(finished)
    }
}

fn new_marks(vm: &str) -> Result<Marks, Error> {
    Marks::new().map_err(|e| Error::NotStarted {
        vm: vm.to_owned(),
        reason: format!("no random bytes: {e}"),
    })
}

/// Sends the order and then standard input: as it is where no watcher of its own reads it; else in frames, which are their length
/// in decimal, a newline, the bytes, and 0 is the end.
async fn send(
    write: &ChannelWriteHalf<Msg>,
    order: &[u8],
    input: Input,
    framed: bool,
) -> Result<(), russh::Error> {
    write.data_bytes(Bytes::copy_from_slice(order)).await?;
    match input {
        Input::None => return Ok(()),
        Input::Bytes(bytes) if framed => send_frames(write, bytes).await?,
        Input::Bytes(bytes) => write.data_bytes(bytes).await?,
        Input::Stream(mut pieces) => {
            while let Some(piece) = pieces.recv().await {
                if framed {
                    send_frames(write, piece).await?;
                } else {
                    write.data_bytes(piece).await?;
                }
            }
        }
    }
    if framed {
        write.data_bytes(Bytes::from_static(b"0\n")).await
    } else {
        write.eof().await
    }
}

async fn send_frames(write: &ChannelWriteHalf<Msg>, mut bytes: Bytes) -> Result<(), russh::Error> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(FRAME_BYTES));
        let head = format!("{}\n", piece.len());
        let mut frame = BytesMut::with_capacity(head.len().saturating_add(piece.len()));
        frame.put_slice(head.as_bytes());
        frame.put_slice(&piece);
        write.data_bytes(frame.freeze()).await?;
    }
    Ok(())
}

impl Running<'_> {
    /// Until the end is known and the output is complete, the connection is lost, or the far side does not obey.
    async fn watch(
        &mut self,
        read: &mut ChannelReadHalf,
        write: &ChannelWriteHalf<Msg>,
        order: &[u8],
        input: Input,
        allowed: Limit,
    ) {
        let mut deadline = Instant::now() + allowed.duration();
        let mut limit = deadline;
        let mut moved = false;
        let mut sent = false;
        let sending = send(write, order, input, self.framed);
        tokio::pin!(sending);
        loop {
            if self.closed || self.lost || self.refused {
                return;
            }
            if self.reader_gone && !self.timed_out {
                // As if the deadline had passed: nobody wants the rest.
                limit = Instant::now();
            }
            tokio::select! {
                biased;
                () = sleep_until(limit) => {
                    if self.end.is_some() || self.timed_out {
                        return;
                    }
                    if moved && !self.reader_gone && let Limit::Idle(idle) = allowed {
                        moved = false;
                        deadline = Instant::now() + idle;
                        limit = deadline;
                        continue;
                    }
                    self.timed_out = true;
                    limit = Instant::now() + ENDING;
                    sent = true;
                    self.end_tree(write).await;
                }
                message = read.wait() => {
                    moved = true;
                    self.hear(message, deadline).await;
                    if self.end.is_some() {
                        limit = Instant::now() + DRAIN;
                    }
                }
                result = &mut sending, if !sent => {
                    sent = true;
                    // What is lost shows in what is read.
                    let _: Result<(), russh::Error> = result;
                }
            }
        }
    }

    async fn end_tree(&mut self, write: &ChannelWriteHalf<Msg>) {
        let told = match &self.ward {
            // Its own watcher takes the end of the channel's input for the order; who has none ends with it.
            None => write.eof().await.is_ok(),
            Some(ward) => ward.end(self.process.load(Ordering::Relaxed)).await,
        };
        self.lost |= !told;
    }

    async fn hear(&mut self, message: Option<ChannelMsg>, deadline: Instant) {
        match message {
            None => self.lost = true,
            Some(ChannelMsg::Close) => self.closed = true,
            Some(ChannelMsg::Failure) => self.refused = true,
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                self.end.get_or_insert(End::Code(exit_status));
            }
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                self.end.get_or_insert(End::Signal(signal(&signal_name)));
            }
            Some(ChannelMsg::Data { data }) => {
                let marker = format!("{}\n", self.marks.started());
                if let Some(data) = self.stdout.feed(data, marker.as_bytes()) {
                    self.take(Chunk::Stdout(data), deadline).await;
                }
            }
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                let marker = format!("{}\n", self.marks.started());
                let rest = self.stderr.feed(data, marker.as_bytes());
                self.learn_process();
                if let Some(data) = rest {
                    self.take(Chunk::Stderr(data), deadline).await;
                }
            }
            Some(_) => {}
        }
    }

    /// The number of the command's first process stands before the marker of standard error.
    fn learn_process(&mut self) {
        if self.ward.is_none() || !self.stderr.open || self.process.load(Ordering::Relaxed) != 0 {
            return;
        }
        let noise = String::from_utf8_lossy(&self.stderr.noise);
        let rest = noise.rsplit_once(self.marks.process().as_str());
        let number = rest.and_then(|(_, rest)| rest.trim().parse().ok());
        self.process
            .store(number.unwrap_or_default(), Ordering::Relaxed);
    }

    async fn take(&mut self, chunk: Chunk, deadline: Instant) {
        if let Some(transcript) = &self.transcript {
            transcript.take(&chunk);
        }
        match &self.output {
            Output::Collect => match chunk {
                Chunk::Stdout(data) => self.stdout.keep(&data),
                Chunk::Stderr(data) => self.stderr.keep(&data),
            },
            Output::Stream(_) if self.reader_gone => {}
            Output::Stream(sender) => {
                // The deadline holds for a reader that stands still as well. Afterwards only what finds room is passed on.
                match timeout_at(deadline, sender.send(chunk)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => self.reader_gone = true,
                    Err(_) => self.stdout.truncated = true,
                }
            }
        }
    }

    /// What all of it means.
    fn judge(self, timeout: Duration) -> Result<Finished, Error> {
        let vm = self.vm.to_owned();
        if !self.stdout.open {
            return Err(self.why_not_started(timeout));
        }
        let Some(end) = self.end else {
            let reason = if self.timed_out {
                "the deadline passed, and the host did not confirm that the process tree ended"
            } else if self.lost {
                "the connection was lost while it ran"
            } else {
                "the server closed the channel without an exit status"
            };
            let reason = reason.to_owned();
            return Err(Error::OutcomeUnknown { vm, reason });
        };
        let mut warnings = Vec::new();
        if self.lost {
            warnings.push(
                "the connection was lost after the command ended: its output may be incomplete"
                    .to_owned(),
            );
        } else if !self.closed {
            warnings
                .push("the command left something running that holds its output open".to_owned());
        }
        let (exit_code, signal) = match end {
            End::Code(code) => (i32::try_from(code).unwrap_or(255), None),
            End::Signal(name) => (128_i32.saturating_add(signal_number(&name)), Some(name)),
        };
        Ok(Finished {
            exit_code,
            signal,
            truncated: self.stdout.truncated || self.stderr.truncated,
            stdout: self.stdout.kept,
            stderr: self.stderr.kept,
            timed_out: self.timed_out,
            warnings,
            took_ms: 0,
        })
    }

    fn why_not_started(self, timeout: Duration) -> Error {
        let vm = self.vm.to_owned();
        let said = |stream: &Stream| {
            let text = String::from_utf8_lossy(&stream.noise).into_owned();
            let text = text.trim().to_owned();
            let from = text.char_indices().rev().nth(500).map_or(0, |(at, _)| at);
            text.get(from..).unwrap_or_default().to_owned()
        };
        let (out, err) = (said(&self.stdout), said(&self.stderr));
        if self.refused {
            let reason = "the server refuses to run commands".to_owned();
            return Error::NotStarted { vm, reason };
        }
        if out.contains(&self.marks.no_directory()) {
            let reason = format!("the working directory cannot be entered: {err}");
            return Error::NotStarted { vm, reason };
        }
        if out.contains(&self.marks.unwatched()) {
            return Error::Handshake {
                vm: vm.clone(),
                address: vm,
                reason: "the session on the host that watches over commands has ended".to_owned(),
            };
        }
        let mut said = [out, err].join("\n").trim().to_owned();
        if self.marks.stand_in(&said) {
            // The order holds the values of variables, which belong in no message.
            "something that repeats what it is sent".clone_into(&mut said);
        }
        match self.end {
            Some(_) if self.timed_out => Error::Deadline {
                vm,
                phase: "the command was being started",
                limit_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            },
            Some(End::Code(code)) => Error::NotStarted {
                vm,
                reason: format!(
                    "the login ended with code {code} before the command began: {said}"
                ),
            },
            Some(End::Signal(name)) => Error::NotStarted {
                vm,
                reason: format!("signal {name} ended the login before the command began: {said}"),
            },
            None => Error::OutcomeUnknown {
                vm,
                reason: if self.lost {
                    "the connection was lost when the command had been sent".to_owned()
                } else {
                    "the host did not say that the command began, nor that it did not".to_owned()
                },
            },
        }
    }
}

pub(crate) fn signal(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        other => format!("{other:?}"),
    }
}

/// Linux's numbers of the signals that sshd names; 0 for others.
pub(crate) fn signal_number(name: &str) -> i32 {
    match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "TRAP" => 5,
        "ABRT" => 6,
        "BUS" => 7,
        "FPE" => 8,
        "KILL" => 9,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        _ => 0,
    }
}
