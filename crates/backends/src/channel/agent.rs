//! The channel `agent`: through the zone's relay to the agent in the guest.
//!
//! Translates between the engine's port and the link; what may have run is the link's to say.

use std::sync::Arc;
use std::time::Duration;

use api::exec::{ExecRequest, ExecResult, decode, encode};
use api::session::{SessionStart, WindowSize};
use api::{InstanceId, Problem};
use async_trait::async_trait;
use engine::ports::{
    Channel, ChannelError, ChannelTarget, CommandEnd, CommandOutcome, Duplex, FileContent,
    FileDownload, FileError, FilePart, FileRequest, FileSocket, FileUpload, FileWritten,
    GuestCommand, Session, SessionInput, SessionOutput,
};
use futures::StreamExt;
use link::{Link, LinkError, Peer};
use tokio::sync::mpsc;
use wire::identity::Bundle;

/// Messages on their way in each direction.
const QUEUE: usize = 8;
/// What the answer may take beyond the command's own deadline: the agent ends the tree, reads what is left
/// of the output and sends up to 16 MiB of it. Without it a deadline would look like a broken connection.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct AgentChannel {
    link: Arc<Link>,
}

impl AgentChannel {
    /// Over this link.
    pub fn new(link: Arc<Link>) -> Self {
        Self { link }
    }
}

fn peer(guest: &ChannelTarget) -> Peer {
    Peer {
        instance: guest.id.clone(),
        address: guest.address,
        appliance: guest.appliance.clone(),
    }
}

fn failed(error: LinkError) -> ChannelError {
    let may_have_run = error.may_have_run();
    match error {
        LinkError::NotReachable { .. } | LinkError::Untrusted { .. } => {
            ChannelError::Unreachable(error.to_string())
        }
        LinkError::Refused { problem, .. } if !may_have_run => {
            ChannelError::NothingRan(problem.detail)
        }
        LinkError::NothingRan { reason, .. } => ChannelError::NothingRan(reason),
        LinkError::OutcomeUnknown { peer, reason } => {
            ChannelError::OutcomeUnknown(format!("{peer}: {reason}"))
        }
        _ if may_have_run => ChannelError::OutcomeUnknown(error.to_string()),
        _ => ChannelError::NothingRan(error.to_string()),
    }
}

fn failed_file(error: LinkError) -> FileError {
    match error {
        LinkError::Refused { problem, .. } => FileError::Refused(problem),
        other => FileError::Channel(failed(other)),
    }
}

/// As [`failed_file`]; content that broke off on its way here is its sender's fault, not the guest's.
fn failed_upload(error: LinkError) -> FileError {
    match error {
        LinkError::NothingRan { reason, .. } => FileError::Refused(Box::new(
            Problem::new(422, "body_broken", reason)
                .hint("nothing was changed; send the file again, with its Repr-Digest"),
        )),
        other => failed_file(other),
    }
}

/// A connection that was refused carried nothing, whatever the refusal's status.
fn failed_forward(error: LinkError) -> ChannelError {
    match error {
        LinkError::Refused { problem, .. } => ChannelError::NothingRan(problem.detail),
        other => failed(other),
    }
}

fn written_as(written: link::Written) -> FileWritten {
    FileWritten {
        size_bytes: written.size_bytes,
        sha256: written.sha256,
    }
}

/// The request without its input, which travels apart.
fn request(command: &GuestCommand) -> ExecRequest {
    ExecRequest {
        argv: command.argv.clone(),
        env: command.env.clone(),
        cwd: command.cwd.clone(),
        user: command.user.clone(),
        timeout_ms: Some(u64::try_from(command.timeout.as_millis()).unwrap_or(u64::MAX)),
        ..ExecRequest::default()
    }
}

fn end(exit_code: Option<i32>, signal: Option<i32>, timed_out: bool) -> Option<CommandEnd> {
    match (timed_out, exit_code, signal) {
        (true, ..) => Some(CommandEnd::TimedOut),
        (_, Some(code), None) => Some(CommandEnd::Exited(code)),
        (_, None, Some(signal)) => Some(CommandEnd::Signalled(signal)),
        _ => None,
    }
}

fn no_status() -> ChannelError {
    ChannelError::OutcomeUnknown("the agent did not say how the command ended".into())
}

fn outcome(result: ExecResult) -> Result<CommandOutcome, ChannelError> {
    let bytes = |text, encoding| {
        decode(text, encoding)
            .ok_or_else(|| ChannelError::OutcomeUnknown("the agent's output can't be read".into()))
    };
    Ok(CommandOutcome {
        end: end(result.exit_code, result.signal, result.timed_out).ok_or_else(no_status)?,
        stdout: bytes(result.stdout, result.stdout_encoding)?,
        stderr: bytes(result.stderr, result.stderr_encoding)?,
        truncated: result.truncated,
        duration: Duration::from_millis(result.duration_ms),
    })
}

#[async_trait]
impl Channel for AgentChannel {
    fn name(&self) -> &'static str {
        "agent"
    }

    async fn run(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
    ) -> Result<CommandOutcome, ChannelError> {
        let mut request = request(&command);
        if !command.stdin.is_empty() {
            let (stdin, encoding) = encode(command.stdin);
            request.stdin = Some(stdin);
            request.stdin_encoding = Some(encoding);
        }
        let ran = self
            .link
            .exec(&peer(guest), &request, command.timeout + ANSWER_GRACE)
            .await;
        outcome(ran.map_err(failed)?)
    }

    async fn open(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
        tty: Option<WindowSize>,
    ) -> Result<Session, ChannelError> {
        let start = SessionStart {
            exec: request(&command),
            tty,
        };
        let opened = self.link.session(&peer(guest), &start).await;
        let opened = opened.map_err(failed)?;
        let (input, typed) = mpsc::channel(QUEUE);
        let (told, output) = mpsc::channel(QUEUE);
        tokio::spawn(pass_in(command.stdin, typed, opened.input));
        tokio::spawn(pass_out(opened.output, told));
        Ok(Session {
            pid: opened.pid,
            input,
            signals: opened.signals,
            output,
        })
    }

    async fn ready(&self, guest: &ChannelTarget, patience: Duration) -> Result<(), ChannelError> {
        let ready = self.link.wait_ready(&peer(guest), patience).await;
        ready.map(drop).map_err(failed)
    }

    async fn renew(&self, guest: &ChannelTarget, identity: &Bundle) -> Result<(), ChannelError> {
        self.link
            .renew(&peer(guest), identity)
            .await
            .map_err(failed)
    }

    fn forget(&self, guest: &InstanceId) {
        self.link.forget(guest);
    }

    async fn read_file(
        &self,
        guest: &ChannelTarget,
        request: &FileRequest,
        offset: u64,
        socket: bool,
    ) -> Result<FileDownload, FileError> {
        let user = request.user.as_deref();
        let peer = peer(guest);
        if socket {
            let found = self
                .link
                .read_file_straight(&peer, &request.path, user, offset);
            if let Some(found) = found.await.map_err(failed_file)? {
                let (size_bytes, socket) = (found.rest_bytes, found.socket);
                return Ok(FileDownload {
                    size_bytes: found.size_bytes,
                    mode: found.mode,
                    content: FileContent::Socket(FileSocket { size_bytes, socket }),
                });
            }
        }
        let found = self.link.read_file(&peer, &request.path, user, offset);
        let found = found.await.map_err(failed_file)?;
        let parts = found.parts.map(|part| {
            part.map(|part| match part {
                link::FilePart::Bytes(bytes) => FilePart::Bytes(bytes),
                link::FilePart::Sha256(digest) => FilePart::Sha256(digest),
            })
        });
        Ok(FileDownload {
            size_bytes: found.size_bytes,
            mode: found.mode,
            content: FileContent::Parts(parts.boxed()),
        })
    }

    async fn write_file(
        &self,
        guest: &ChannelTarget,
        request: &FileRequest,
        upload: FileUpload,
    ) -> Result<FileWritten, FileError> {
        let user = request.user.as_deref();
        let peer = peer(guest);
        let content = match upload.content {
            FileContent::Parts(parts) => FileContent::Parts(parts),
            FileContent::Socket(file) => {
                let (path, mode, size) = (&request.path, upload.mode, file.size_bytes);
                let way = self.link.write_file_straight(&peer, path, user, mode, size);
                match way.await.map_err(failed_upload)? {
                    Some(way) => {
                        let written = way.take(file.socket).await.map_err(failed_upload)?;
                        return Ok(written_as(written));
                    }
                    None => FileContent::Socket(file),
                }
            }
        };
        let parts = content.into_parts().map(|part| {
            part.map(|part| match part {
                FilePart::Bytes(bytes) => link::FilePart::Bytes(bytes),
                FilePart::Sha256(digest) => link::FilePart::Sha256(digest),
            })
        });
        let upload = link::Upload {
            mode: upload.mode,
            parts: parts.boxed(),
        };
        let written = self.link.write_file(&peer, &request.path, user, upload);
        Ok(written_as(written.await.map_err(failed_upload)?))
    }

    async fn forward(
        &self,
        guest: &ChannelTarget,
        port: u16,
    ) -> Result<Box<dyn Duplex>, ChannelError> {
        let stream = self.link.forward(&peer(guest), port).await;
        Ok(Box::new(stream.map_err(failed_forward)?))
    }
}

/// From the caller to the command: what the request held first.
async fn pass_in(
    first: Vec<u8>,
    mut from: mpsc::Receiver<SessionInput>,
    to: mpsc::Sender<link::SessionInput>,
) {
    if !first.is_empty()
        && to
            .send(link::SessionInput::Stdin(first.into()))
            .await
            .is_err()
    {
        return;
    }
    while let Some(said) = from.recv().await {
        let said = match said {
            SessionInput::Stdin(bytes) => link::SessionInput::Stdin(bytes),
            SessionInput::StdinEof => link::SessionInput::StdinEof,
            SessionInput::Resize(size) => link::SessionInput::Resize(size),
        };
        if to.send(said).await.is_err() {
            return;
        }
    }
}

/// From the command to the caller. The link's session ends with its receiver, so a caller that is gone is
/// noticed here also while the command says nothing.
async fn pass_out(mut from: mpsc::Receiver<link::SessionOutput>, to: mpsc::Sender<SessionOutput>) {
    loop {
        let said = tokio::select! {
            said = from.recv() => said,
            () = to.closed() => return,
        };
        let said = match said {
            None => return,
            Some(link::SessionOutput::Stdout(bytes)) => SessionOutput::Stdout(bytes),
            Some(link::SessionOutput::Stderr(bytes)) => SessionOutput::Stderr(bytes),
            Some(link::SessionOutput::Failed(e)) => SessionOutput::Failed(failed(e)),
            Some(link::SessionOutput::Ended {
                exit_code,
                signal,
                timed_out,
                duration_ms,
            }) => match end(exit_code, signal, timed_out) {
                None => SessionOutput::Failed(no_status()),
                Some(end) => SessionOutput::Ended {
                    end,
                    duration: Duration::from_millis(duration_ms),
                },
            },
        };
        if to.send(said).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_run_is_never_called_safe() {
        let text = String::new;
        let refused = |status, code: &str| LinkError::Refused {
            peer: text(),
            problem: Box::new(Problem::new(status, code, "x")),
        };
        let (peer, reason) = (text(), text());
        let unreachable = failed(LinkError::NotReachable { peer, reason });
        assert!(matches!(unreachable, ChannelError::Unreachable(_)));
        let refusal = failed(refused(422, "nothing_ran"));
        assert!(matches!(refusal, ChannelError::NothingRan(_)));
        let broken = failed(refused(500, "internal"));
        assert!(matches!(broken, ChannelError::OutcomeUnknown(_)));
        let busy = failed(refused(503, "busy"));
        assert!(matches!(busy, ChannelError::NothingRan(_)));
        let closed = failed_forward(refused(502, "connection_refused"));
        assert!(matches!(closed, ChannelError::NothingRan(_)));
        let (peer, reason) = (text(), "no digest".to_owned());
        let upload = failed_upload(LinkError::NothingRan { peer, reason });
        assert!(matches!(upload, FileError::Refused(p) if p.status == 422));
        let (peer, reason) = (text(), text());
        let garbage = failed(LinkError::Garbage { peer, reason });
        assert!(matches!(garbage, ChannelError::OutcomeUnknown(_)));
        assert_eq!(end(None, None, false), None, "no status is no success");
        assert_eq!(end(Some(0), Some(9), false), None);
    }
}
