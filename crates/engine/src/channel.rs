//! Channels: the ways by which a command, a terminal, a file or a connection reaches a guest.
//!
//! One rule above all: a command is never run twice because a channel failed after it may have started.
//! So every failure says whether nothing ran or the outcome is unknown.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use api::session::WindowSize;
use api::{InstanceId, Problem, ZoneName};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use wire::identity::Bundle;

/// A guest as a channel must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelTarget {
    /// Its id.
    pub id: InstanceId,
    /// Its zone.
    pub zone: ZoneName,
    /// Its address in the zone.
    pub address: Ipv4Addr,
    /// The zone's appliance, through whose relay it is reached.
    pub appliance: InstanceId,
}

/// A command for a guest, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestCommand {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// Environment beside the standard variables.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// User name or number.
    pub user: Option<String>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// How long it may run.
    pub timeout: Duration,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutcome {
    /// Its standard output, at most [`OUTPUT_CAP`] bytes.
    pub stdout: Vec<u8>,
    /// Its standard error, at most [`OUTPUT_CAP`] bytes.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub end: CommandEnd,
    /// Whether output was dropped.
    pub truncated: bool,
    /// How long it ran.
    pub duration: Duration,
}

/// The most that is kept of one output stream, in bytes.
pub const OUTPUT_CAP: usize = 8 << 20;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandEnd {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
    /// By its deadline; its whole process tree is gone.
    TimedOut,
}

/// A channel could not carry a command to its end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChannelError {
    /// The channel does not lead to the guest now. Nothing ran; another channel may be tried.
    #[error("the guest can't be reached: {0}")]
    Unreachable(String),
    /// Nothing ran, since it was refused: trying again is safe.
    #[error("nothing ran: {0}")]
    NothingRan(String),
    /// It may have run, wholly or in part: trying again may run it twice.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
}

/// What a caller tells a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionInput {
    /// Bytes for its standard input.
    Stdin(Bytes),
    /// Nothing more will come.
    StdinEof,
    /// The window of its terminal changed.
    Resize(WindowSize),
}

/// What a running command tells. After `Ended` or `Failed` comes nothing.
#[derive(Debug, Clone)]
pub enum SessionOutput {
    /// From its standard output or its terminal.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// It ended.
    Ended {
        /// How.
        end: CommandEnd,
        /// How long it ran.
        duration: Duration,
    },
    /// The channel could not carry it to its end.
    Failed(ChannelError),
}

/// A running command with its streams open. Dropping it ends the command and its process tree.
#[derive(Debug)]
pub struct Session {
    /// Its process id as the guest counts; 0 when the channel does not know.
    pub pid: u32,
    /// To the command. Full means that it does not read: wait.
    pub input: mpsc::Sender<SessionInput>,
    /// Signals for its process group, by number, which do not wait behind input. Closed when the channel
    /// carries none.
    pub signals: mpsc::Sender<i32>,
    /// From the command. Closed without `Ended` or `Failed`: the outcome is unknown.
    pub output: mpsc::Receiver<SessionOutput>,
}

impl Session {
    /// Gives the command no further input and keeps what it writes, up to [`OUTPUT_CAP`] a stream.
    pub async fn collect(mut self) -> Result<CommandOutcome, ChannelError> {
        // One that has ended by now takes no more.
        let _ = self.input.send(SessionInput::StdinEof).await;
        let mut stdout = Kept::default();
        let mut stderr = Kept::default();
        while let Some(said) = self.output.recv().await {
            match said {
                SessionOutput::Stdout(bytes) => stdout.keep(&bytes),
                SessionOutput::Stderr(bytes) => stderr.keep(&bytes),
                SessionOutput::Failed(e) => return Err(e),
                SessionOutput::Ended { end, duration } => {
                    return Ok(CommandOutcome {
                        truncated: stdout.truncated || stderr.truncated,
                        stdout: stdout.bytes,
                        stderr: stderr.bytes,
                        end,
                        duration,
                    });
                }
            }
        }
        Err(ChannelError::OutcomeUnknown(
            "the channel ended without a final status".into(),
        ))
    }
}

/// A stream's kept bytes; more were dropped when `truncated`.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_CAP.saturating_sub(self.bytes.len());
        self.bytes
            .extend_from_slice(bytes.get(..bytes.len().min(room)).unwrap_or_default());
        self.truncated |= bytes.len() > room;
    }
}

/// What a file transfer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRequest {
    /// Absolute path in the guest.
    pub path: String,
    /// As whom it is read or written; root when left out.
    pub user: Option<String>,
}

/// A piece of a file on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilePart {
    /// The next bytes.
    Bytes(Bytes),
    /// The SHA-256 of all bytes before; the last part.
    Sha256([u8; 32]),
}

/// The parts of a file. A stream that ends without its digest broke off.
pub type FileParts = BoxStream<'static, Result<FilePart, std::io::Error>>;

/// A file on a socket, whose other end is on this machine: so many bytes, and after them their SHA-256 (32
/// bytes). An end before that is a file that broke off.
#[derive(Debug)]
pub struct FileSocket {
    /// How many bytes come before the digest.
    pub size_bytes: u64,
    /// Blocking, with time limits.
    pub socket: UnixStream,
}

/// The content of a file on its way.
pub enum FileContent {
    /// Piece by piece.
    Parts(FileParts),
    /// On a socket that can be led into another one.
    Socket(FileSocket),
}

impl FileContent {
    /// As parts, whatever it is.
    pub fn into_parts(self) -> FileParts {
        match self {
            Self::Parts(parts) => parts,
            Self::Socket(file) => parts_of(file),
        }
    }
}

impl From<FileParts> for FileContent {
    fn from(parts: FileParts) -> Self {
        Self::Parts(parts)
    }
}

/// A file that is being read.
pub struct FileDownload {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its permissions.
    pub mode: u32,
    /// Its content, from the offset asked for. A socket only when one was asked for.
    pub content: FileContent,
}

/// A file to be written.
pub struct FileUpload {
    /// Permissions; those of the file that is replaced, else 0644, when left out.
    pub mode: Option<u32>,
    /// Its content.
    pub content: FileContent,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileWritten {
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of what is on the guest's disk.
    pub sha256: [u8; 32],
}

/// A file could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FileError {
    /// The guest refused, and nothing was changed: no such file, no space, another digest.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// The guest can't be reached.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// The pieces in which a socket is read where it can't be led on, in bytes.
const PIECE_BYTES: u64 = 256 << 10;

/// A socket's file piece by piece.
fn parts_of(file: FileSocket) -> FileParts {
    let left = Some((file.socket, file.size_bytes));
    futures::stream::try_unfold(left, |left| async move {
        let Some((socket, left)) = left else {
            return Ok(None);
        };
        let read =
            tokio::task::spawn_blocking(move || next_part(&socket, left).map(|p| (p, socket)));
        let (part, socket) = read.await.map_err(std::io::Error::other)??;
        let after = match &part {
            FilePart::Bytes(bytes) => Some((socket, left.saturating_sub(bytes.len() as u64))),
            FilePart::Sha256(_) => None,
        };
        Ok(Some((part, after)))
    })
    .boxed()
}

fn next_part(mut socket: &UnixStream, left: u64) -> std::io::Result<FilePart> {
    if left == 0 {
        let mut digest = [0; 32];
        socket.read_exact(&mut digest)?;
        return Ok(FilePart::Sha256(digest));
    }
    let mut piece = Vec::new();
    let most = left.min(PIECE_BYTES);
    piece.reserve_exact(usize::try_from(most).unwrap_or_default());
    socket.take(most).read_to_end(&mut piece)?;
    if piece.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(FilePart::Bytes(piece.into()))
}

/// A connection to a port of a guest.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A way by which a command reaches a guest. What one can't do it refuses as [`ChannelError::NothingRan`].
#[async_trait]
pub trait Channel: Send + Sync {
    /// The channel's name as the word list has it.
    fn name(&self) -> &'static str;

    /// Runs a command to its end. Exactly one outcome, or an error that says whether it may have run.
    async fn run(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
    ) -> Result<CommandOutcome, ChannelError> {
        self.open(guest, command, None).await?.collect().await
    }

    /// Starts a command with its streams open; with a terminal of this size, or with pipes. The
    /// command's `stdin` is sent first.
    async fn open(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
        tty: Option<WindowSize>,
    ) -> Result<Session, ChannelError>;

    /// Waits until the channel can carry commands, at most so long. The error is the last cause.
    async fn ready(&self, guest: &ChannelTarget, patience: Duration) -> Result<(), ChannelError>;

    /// Tells the guest's agent its new identity.
    async fn renew(&self, _guest: &ChannelTarget, _identity: &Bundle) -> Result<(), ChannelError> {
        Err(self.no("identities"))
    }

    /// Forgets a guest that is gone: connections to it and what was signed for it.
    fn forget(&self, _guest: &InstanceId) {}

    /// Reads a file, or the rest of it from an offset; on a socket where the caller can take one and there
    /// is one to be had.
    async fn read_file(
        &self,
        _guest: &ChannelTarget,
        _request: &FileRequest,
        _offset: u64,
        _socket: bool,
    ) -> Result<FileDownload, FileError> {
        Err(self.no("files").into())
    }

    /// Replaces a file in one step, or changes nothing.
    async fn write_file(
        &self,
        _guest: &ChannelTarget,
        _request: &FileRequest,
        _upload: FileUpload,
    ) -> Result<FileWritten, FileError> {
        Err(self.no("files").into())
    }

    /// Connects to a TCP port on the guest's loopback.
    async fn forward(
        &self,
        _guest: &ChannelTarget,
        _port: u16,
    ) -> Result<Box<dyn Duplex>, ChannelError> {
        Err(self.no("connections"))
    }

    /// What a channel answers that does not carry something.
    fn no(&self, what: &str) -> ChannelError {
        ChannelError::NothingRan(format!("the channel {} carries no {what}", self.name()))
    }
}
