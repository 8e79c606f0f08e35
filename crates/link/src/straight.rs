//! Files of guests of this machine over the bare socket inside (see [`api::file`], "Straight").
//!
//! ```text
//!   caller's socket ─▶ pump ─▶ agent's socket       no TLS, no HTTP, no copy in this process
//! ```
//! Who is at the other end was told by TLS on that very connection before. Bytes are led through by a thread
//! for each file; what the agent says at the end is compared with what was sent.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use api::file::{GO, REST_HEADER, SIZE_HEADER, STRAIGHT, UploadEnd};
use bulk_stream::pump::{PumpError, pump};
use http::header::{self, HeaderValue};
use http::{HeaderName, Method};
use hyper_util::rt::TokioIo;
use wire::agent::Scope;

use crate::call::{Call, bounded};
use crate::connection::Inside;
use crate::error::LinkError;
use crate::files::{FLUSH_DEADLINE, Facts, HEAD_DEADLINE, STALL, Written, files_path};
use crate::forward::upgraded;
use crate::link::{Destination, Link, Peer};

/// A file that comes on a socket: [`StraightDownload::rest_bytes`] bytes, and their SHA-256.
#[derive(Debug)]
pub struct StraightDownload {
    /// Its size in bytes, all of it.
    pub size_bytes: u64,
    /// Its permissions.
    pub mode: u32,
    /// How many bytes come.
    pub rest_bytes: u64,
    /// Where they come. Blocking, with a time limit; dropping it ends the download.
    pub socket: UnixStream,
}

/// An upload that the agent is ready for.
#[derive(Debug)]
pub struct StraightUpload {
    peer: String,
    socket: UnixStream,
    size_bytes: u64,
}

/// Why an upload came to nothing.
enum Broken {
    /// The agent got no whole file.
    Source(String),
    /// The agent took no more, or said nothing at the end.
    Agent(String),
}

impl Link {
    /// Opens a file for reading straight. None when there is no way to: the guest is elsewhere, or the file
    /// one of the kernel's. Then [`Link::read_file`] can.
    pub async fn read_file_straight(
        &self,
        peer: &Peer,
        path: &str,
        user: Option<&str>,
        offset: u64,
    ) -> Result<Option<StraightDownload>, LinkError> {
        let mut call = asks(Method::GET, &files_path(path, user, None));
        if offset > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={offset}-"))
        {
            call = call.header(header::RANGE, range);
        }
        let to = Destination::agent(peer);
        let Some(answer) = self.call_inside(&to, call).await? else {
            return Ok(None);
        };
        if answer.response.status().is_success() {
            return Ok(None);
        }
        let facts = Facts::of(&answer);
        let rest = answer.response.headers().get(REST_HEADER);
        let rest_bytes = rest.and_then(|rest| rest.to_str().ok()?.parse().ok());
        let mut socket = socket_of(upgraded(answer).await?).map_err(|e| nothing_ran(&to, e))?;
        let (Some(facts), Some(rest_bytes)) = (facts, rest_bytes) else {
            return Err(LinkError::Garbage {
                peer: to.name().to_owned(),
                reason: "a file without size and mode".into(),
            });
        };
        // A byte into an empty socket waits for nobody.
        socket.write_all(&[GO]).map_err(|e| nothing_ran(&to, e))?;
        Ok(Some(StraightDownload {
            size_bytes: facts.size_bytes,
            mode: facts.mode,
            rest_bytes,
            socket,
        }))
    }

    /// Makes the agent ready for a file of so many bytes. None when there is no straight way; nothing has
    /// happened then.
    pub async fn write_file_straight(
        &self,
        peer: &Peer,
        path: &str,
        user: Option<&str>,
        mode: Option<u32>,
        size_bytes: u64,
    ) -> Result<Option<StraightUpload>, LinkError> {
        let size = HeaderValue::from(size_bytes);
        let call = asks(Method::PUT, &files_path(path, user, mode))
            .header(HeaderName::from_static(SIZE_HEADER), size)
            .once();
        let to = Destination::agent(peer);
        let Some(answer) = self.call_inside(&to, call).await? else {
            return Ok(None);
        };
        let upgraded = match upgraded(answer).await {
            // So an agent of an older version refuses what it takes for a file without bytes.
            Err(LinkError::Refused { problem, .. }) if problem.code == "digest_missing" => {
                return Ok(None);
            }
            upgraded => upgraded?,
        };
        let socket = socket_of(upgraded).map_err(|e| nothing_ran(&to, e))?;
        let peer = to.name().to_owned();
        Ok(Some(StraightUpload {
            peer,
            socket,
            size_bytes,
        }))
    }
}

impl StraightUpload {
    /// Leads a file to the agent: its bytes, then their SHA-256. What `from` may pause is its own time limit.
    pub async fn take(self, from: UnixStream) -> Result<Written, LinkError> {
        let Self {
            peer,
            socket,
            size_bytes,
        } = self;
        let led = tokio::task::spawn_blocking(move || lead(&from, socket, size_bytes)).await;
        let led = led.unwrap_or_else(|e| Err(Broken::Agent(e.to_string())));
        let (end, sha256) = led.map_err(|broken| match broken {
            Broken::Source(reason) => LinkError::NothingRan {
                peer: peer.clone(),
                reason: format!("the content broke off: {reason}"),
            },
            Broken::Agent(reason) => LinkError::OutcomeUnknown {
                peer: peer.clone(),
                reason,
            },
        })?;
        match (end, sha256) {
            (UploadEnd::Written(written), Some(sha256))
                if written.size_bytes == size_bytes && written.sha256 == hex::encode(sha256) =>
            {
                Ok(Written { size_bytes, sha256 })
            }
            (UploadEnd::Written(_), _) => Err(LinkError::Garbage {
                peer,
                reason: "it wrote something else than what was sent".into(),
            }),
            (UploadEnd::Problem(problem), _) => Err(LinkError::Refused {
                peer,
                problem: Box::new(bounded(problem)),
            }),
        }
    }
}

fn asks(method: Method, path: &str) -> Call {
    Call::new(method, path, HEAD_DEADLINE)
        .scope(Scope::Files)
        .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
        .header(header::UPGRADE, HeaderValue::from_static(STRAIGHT))
}

/// The socket below an upgraded connection, for threads.
fn socket_of(upgraded: TokioIo<hyper::upgrade::Upgraded>) -> io::Result<UnixStream> {
    let parts = upgraded.into_inner().downcast::<TokioIo<Inside>>();
    let parts = parts.map_err(|_| io::Error::other("it is no connection made inside"))?;
    let socket = parts.io.into_inner().into_socket();
    let socket = socket.filter(|_| parts.read_buf.is_empty());
    let socket = socket.ok_or_else(|| io::Error::other("the agent did not wait to be told"))?;
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(STALL))?;
    socket.set_write_timeout(Some(STALL))?;
    Ok(socket)
}

/// Bytes, digest, and what the agent says to it. Without a digest it refused before it had all.
fn lead(
    mut from: &UnixStream,
    mut to: UnixStream,
    size_bytes: u64,
) -> Result<(UploadEnd, Option<[u8; 32]>), Broken> {
    let refusal = |to: UnixStream, reason: String| match end_of(to) {
        Ok(end @ UploadEnd::Problem(_)) => Ok((end, None)),
        Ok(UploadEnd::Written(_)) | Err(_) => Err(Broken::Agent(reason)),
    };
    match pump(from, &to, size_bytes) {
        Ok(()) => {}
        Err(PumpError::Sink(error)) => return refusal(to, error.to_string()),
        Err(error) => return Err(Broken::Source(error.to_string())),
    }
    let mut sha256 = [0; 32];
    from.read_exact(&mut sha256)
        .map_err(|e| Broken::Source(e.to_string()))?;
    if let Err(error) = to.write_all(&sha256) {
        return refusal(to, error.to_string());
    }
    let end = end_of(to).map_err(|e| Broken::Agent(format!("it did not say how it ended: {e}")))?;
    Ok((end, Some(sha256)))
}

fn end_of(socket: UnixStream) -> io::Result<UploadEnd> {
    socket.set_read_timeout(Some(FLUSH_DEADLINE))?;
    UploadEnd::read(socket)
}

fn nothing_ran(to: &Destination, error: io::Error) -> LinkError {
    LinkError::NothingRan {
        peer: to.name().to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that does this with an upload of four bytes, and a caller who sends them with a digest.
    async fn upload(agent: impl FnOnce(UnixStream) + Send + 'static) -> Result<Written, LinkError> {
        let (socket, other) = UnixStream::pair().unwrap();
        std::thread::spawn(move || agent(other));
        let (mut caller, from) = UnixStream::pair().unwrap();
        caller.write_all(b"four").unwrap();
        caller.write_all(&[7; 32]).unwrap();
        let ready = StraightUpload {
            peer: "i-1".into(),
            socket,
            size_bytes: 4,
        };
        ready.take(from).await
    }

    fn takes(mut socket: &UnixStream) {
        let mut taken = [0; 36];
        socket.read_exact(&mut taken).unwrap();
        assert_eq!(&taken[..5], b"four\x07");
    }

    fn says(mut socket: &UnixStream, text: &str) {
        socket.write_all(text.as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn an_agent_is_believed_only_what_was_sent() {
        let good = format!(
            r#"{{"written":{{"size_bytes":4,"sha256":"{}"}}}}"#,
            "07".repeat(32)
        );
        let said = good.clone();
        let written = upload(move |socket| {
            takes(&socket);
            says(&socket, &said);
        });
        assert_eq!(written.await.unwrap().sha256, [7; 32]);
        for (text, unknown) in [
            (good.replace("07", "08"), false),
            (good.replace(":4", ":5"), false),
            (good[..20].to_owned(), true),
            (String::new(), true),
            ("[".repeat(100_000), true),
        ] {
            let shown = text.chars().take(80).collect::<String>();
            let failed = upload(move |socket| {
                takes(&socket);
                // It is not read to its end.
                let _ = (&socket).write_all(text.as_bytes());
            });
            let failed = failed.await.unwrap_err();
            assert!(failed.may_have_run(), "{shown}: {failed}");
            let is_unknown = matches!(failed, LinkError::OutcomeUnknown { .. });
            assert_eq!(is_unknown, unknown, "{shown}: {failed}");
        }
    }

    #[tokio::test]
    async fn a_refusal_halfway_is_heard() {
        // It closes with bytes unread, which the kernel tells as an error behind its words.
        let refused = upload(|socket| {
            let problem = api::Problem::new(507, "no_space", "the disk is full".repeat(1000));
            says(
                &socket,
                &serde_json::to_string(&UploadEnd::Problem(problem)).unwrap(),
            );
        });
        match refused.await.unwrap_err() {
            LinkError::Refused { problem, .. } => {
                assert_eq!((problem.status, problem.code.as_str()), (507, "no_space"));
                assert!(problem.detail.chars().count() <= 2001);
            }
            other => panic!("{other}"),
        }
        // One that claims a whole file of which it took nothing is none the less not believed.
        let lied = upload(|socket| says(&socket, r#"{"written":{"size_bytes":4,"sha256":""}}"#));
        assert!(lied.await.unwrap_err().may_have_run());
    }
}
