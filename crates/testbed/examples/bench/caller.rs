//! Calls over one kept connection: HTTP/1.1 by hand, so that next to nothing of a measured time is ours.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// The longest that a peer may be silent.
const DEADLINE: Duration = Duration::from_secs(40);
/// The longest body that is taken.
const BODY_MAX_BYTES: usize = 4 << 20;
const HEAD_MAX_BYTES: u64 = 64 << 10;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub struct Caller {
    stream: BufReader<Box<dyn Stream>>,
    /// Header lines of every request, each with its line end.
    headers: String,
}

/// Status and body.
pub type Answer = (u16, Vec<u8>);

impl Caller {
    /// Over a unix socket.
    pub fn unix(socket: &Path, headers: &str) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self::over(stream, headers))
    }

    /// Over TLS, with `name` in the peer's certificate.
    pub fn tls(
        address: SocketAddr,
        name: &str,
        config: &Arc<ClientConfig>,
        headers: &str,
    ) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let name = ServerName::try_from(name.to_owned()).context("the peer's name")?;
        let session = ClientConnection::new(config.clone(), name).context("begin TLS")?;
        Ok(Self::over(StreamOwned::new(session, stream), headers))
    }

    fn over(stream: impl Stream + 'static, headers: &str) -> Self {
        Self {
            stream: BufReader::new(Box::new(stream)),
            headers: headers.to_owned(),
        }
    }

    /// Sends a request and takes the whole answer.
    pub fn call(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Answer> {
        let (headers, length) = (&self.headers, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let stream = self.stream.get_mut();
        let sent = stream.write_all(request.as_bytes());
        sent.and_then(|()| stream.flush())
            .with_context(|| format!("send {method} {path}"))?;
        self.answer()
            .with_context(|| format!("the answer to {method} {path}"))
    }

    /// The same, for a success only.
    pub fn ok(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Vec<u8>> {
        let (status, answer) = self.call(method, path, body)?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path} answered {status}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(answer)
    }

    fn answer(&mut self) -> anyhow::Result<Answer> {
        let status = self.line()?;
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status in {status:?}"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                _ if line.is_empty() => break,
                Some(("content-length", value)) => length = value.trim().parse()?,
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                _ => {}
            }
        }
        let mut body = Vec::new();
        if !chunked {
            self.take(length, &mut body)?;
            return Ok((status, body));
        }
        loop {
            let size = usize::from_str_radix(self.line()?.trim(), 16).context("a chunk's size")?;
            self.take(size, &mut body)?;
            self.line()?;
            if size == 0 {
                return Ok((status, body));
            }
        }
    }

    fn take(&mut self, length: usize, body: &mut Vec<u8>) -> anyhow::Result<()> {
        ensure!(
            body.len() + length <= BODY_MAX_BYTES,
            "a body of more than {BODY_MAX_BYTES} bytes"
        );
        let before = body.len();
        let limit = length as u64;
        self.stream.by_ref().take(limit).read_to_end(body)?;
        ensure!(body.len() - before == length, "it ends too early");
        Ok(())
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let read = self
            .stream
            .by_ref()
            .take(HEAD_MAX_BYTES)
            .read_line(&mut line)?;
        ensure!(read > 0, "it closed the connection");
        Ok(line.trim_end().to_owned())
    }
}
