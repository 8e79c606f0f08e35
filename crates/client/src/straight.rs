//! Files over the controller's bare unix socket (see [`api::file`], "Straight"): for threads that read and
//! write it themselves, without HTTP between. Over TCP there is no such way; then the calls say so, and
//! [`Client::download`] and [`Client::upload`] carry the file.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use api::InstanceName;
use api::file::{GO, MODE_HEADER, REST_HEADER, SIZE_HEADER, STRAIGHT, UploadEnd, Written};
use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderName, UPGRADE};

use crate::connection::Client;
use crate::endpoint::Endpoint;
use crate::error::{Error, chain};
use crate::files::{Download, Sha256, Target, header};
use crate::stream::unix_below;

/// A controller that neither gives nor takes a byte for so long is gone.
const SILENCE: Duration = Duration::from_secs(90);
/// After the last byte the instance flushes the file to its disk.
const FLUSH: Duration = Duration::from_secs(150);

/// A file that was opened for reading.
#[derive(Debug)]
pub enum Opened {
    /// Its bytes come over HTTP.
    Stream(Download),
    /// Its bytes come on a socket.
    Straight(StraightDownload),
}

/// A file on a socket, on its way out of an instance.
#[derive(Debug)]
pub struct StraightDownload {
    /// The file's size in bytes when it was opened.
    pub size_bytes: Option<u64>,
    /// Its permissions.
    pub mode: Option<u32>,
    left_bytes: u64,
    socket: UnixStream,
}

/// A file on a socket, on its way into an instance. Dropped before its end, nothing is changed there.
#[derive(Debug)]
pub struct StraightUpload {
    socket: UnixStream,
    client: Client,
}

impl Client {
    /// Opens a file of an instance for reading, with the rights of `user`, by the shortest way there is.
    pub async fn open_download(
        &self,
        instance: &InstanceName,
        path: &str,
        user: Option<&str>,
    ) -> Result<Opened, Error> {
        if !self.has_socket() {
            return self
                .download(instance, path, user)
                .await
                .map(Opened::Stream);
        }
        let call = Download::call(instance, path, user)
            .header(CONNECTION, "upgrade, TE")
            .header(UPGRADE, STRAIGHT);
        let response = self.stream(call).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Opened::Stream(Download::of(self, response)));
        }
        let text = |name| header(&response, name);
        let left_bytes = text(REST_HEADER).and_then(|rest| rest.parse().ok());
        let left_bytes =
            left_bytes.ok_or_else(|| self.protocol("a file without a size".to_owned()))?;
        let size_bytes = text(SIZE_HEADER).and_then(|size| size.parse().ok());
        let mode = text(MODE_HEADER).and_then(|mode| u32::from_str_radix(mode, 8).ok());
        let begun = async {
            let mut socket = unix_below(response).await?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.write_all(&[GO]).map(|()| socket)
        };
        Ok(Opened::Straight(StraightDownload {
            size_bytes,
            mode,
            left_bytes,
            socket: begun.await.map_err(|e| self.lost(chain(&e)))?,
        }))
    }

    /// Opens an upload of so many bytes by the unix socket; none where the controller is reached otherwise.
    pub async fn open_upload(
        &self,
        instance: &InstanceName,
        target: Target<'_>,
        size_bytes: u64,
    ) -> Result<Option<StraightUpload>, Error> {
        if !self.has_socket() {
            return Ok(None);
        }
        let size = HeaderName::from_static(SIZE_HEADER);
        let call = target
            .call(instance)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, STRAIGHT)
            .header(size, &size_bytes.to_string());
        let response = match self.stream(call).await {
            // So a controller of an older version refuses what it takes for a file without bytes.
            Err(Error::Problem(problem))
                if ["digest_missing", "body_broken"].contains(&problem.code.as_str()) =>
            {
                return Ok(None);
            }
            answered => answered?,
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.protocol(format!("{} to an upload", response.status())));
        }
        let begun = async {
            let socket = unix_below(response).await?;
            socket.set_write_timeout(Some(SILENCE))?;
            socket.set_read_timeout(Some(FLUSH))?;
            io::Result::Ok(socket)
        };
        Ok(Some(StraightUpload {
            socket: begun.await.map_err(|e| self.lost(chain(&e)))?,
            client: self.clone(),
        }))
    }

    fn has_socket(&self) -> bool {
        matches!(self.endpoint(), Endpoint::Unix(_))
    }
}

/// Ends a transfer when it is dropped, also while a thread waits in it.
#[derive(Debug)]
pub struct Cut(UnixStream);

impl Drop for Cut {
    fn drop(&mut self) {
        // One that has ended is not there to be ended.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl StraightDownload {
    /// For whoever leaves the transfer to a thread.
    pub fn cut(&self) -> io::Result<Cut> {
        self.socket.try_clone().map(Cut)
    }

    /// The next bytes, in `buffer`; 0 when all have come. Waits for them.
    pub fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left_bytes).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self
            .socket
            .read(buffer.get_mut(..most).unwrap_or_default())?
        {
            0 => Err(broke_off()),
            length => {
                self.left_bytes = self.left_bytes.saturating_sub(length as u64);
                Ok(length)
            }
        }
    }

    /// SHA-256 of the bytes as they were sent, when all have come.
    pub fn digest(mut self) -> io::Result<Sha256> {
        let mut digest = Sha256::default();
        self.socket
            .read_exact(&mut digest)
            .map_err(|_| broke_off())?;
        Ok(digest)
    }
}

fn broke_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file broke off; the controller's log says more",
    )
}

impl StraightUpload {
    /// For whoever leaves the transfer to a thread.
    pub fn cut(&self) -> io::Result<Cut> {
        self.socket.try_clone().map(Cut)
    }

    /// Gives the next bytes. An error: nobody takes more, and [`StraightUpload::end`] says why.
    pub fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// What became of it. With the digest when all bytes were given; without one it was not taken to its end.
    pub fn end(mut self, digest: Option<Sha256>) -> Result<Written, Error> {
        if let Some(digest) = digest {
            // Who does not take it says why.
            let _ = self.socket.write_all(&digest);
        }
        match UploadEnd::read(self.socket) {
            Ok(UploadEnd::Written(written)) => Ok(written),
            Ok(UploadEnd::Problem(problem)) => Err(Error::Problem(Box::new(problem))),
            Err(error) => Err(self.client.lost(chain(&error))),
        }
    }
}
