//! A pseudoterminal: our end, through which a command with a terminal is read, fed and resized.
//!
//! The runtime's pipes serve as its two directions; they read and write whatever they are given.
//! Only with their `try_` methods, though: the others take a read that did not fill its buffer for the end of
//! what is there, which is true of pipes and not of terminals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use api::session::WindowSize;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

use super::order::Order;
use super::spawn::give;

/// Our end. When the last part of it goes, the command's session is hung up.
pub struct Terminal {
    /// What the command writes.
    pub screen: Screen,
    /// What the command reads.
    pub keyboard: Keyboard,
    /// Its window.
    pub window: Window,
}

impl Terminal {
    /// Makes one, and its other end as the streams of a command, which has to take it as its
    /// controlling terminal.
    pub fn open(order: &Order, size: WindowSize) -> io::Result<(Self, [OwnedFd; 3])> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        // By the descriptor and not by name: the name means what the guest mounted at /dev/pts.
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        give(&theirs, order);
        rustix::io::ioctl_fionbio(&ours, true)?;
        let terminal = Self {
            screen: Screen(pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?)?),
            keyboard: Keyboard(pipe::Sender::from_owned_fd_unchecked(ours.try_clone()?)?),
            window: Window(Arc::new(ours)),
        };
        tcsetwinsize(&*terminal.window.0, winsize(size))?;
        let streams = [theirs.try_clone()?, theirs.try_clone()?, theirs];
        Ok((terminal, streams))
    }
}

/// See [`Terminal`]. Reading fails when nobody has the other end open any more.
pub struct Screen(pipe::Receiver);

impl AsFd for Screen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsyncRead for Screen {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(n) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if again(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// See [`Terminal`].
pub struct Keyboard(pipe::Sender);

impl Keyboard {
    /// Types these bytes.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.0.writable().await?;
            match self.0.try_write(bytes) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Types the end of input, unless a program has switched such keys off.
    pub async fn write_end(&self) -> io::Result<()> {
        let settings = tcgetattr(&self.0)?;
        if settings.local_modes.contains(LocalModes::ICANON) {
            let key = settings.special_codes[SpecialCodeIndex::VEOF];
            self.write_all(&[key]).await?;
        }
        Ok(())
    }
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// See [`Terminal`]. Clones are the same window.
#[derive(Clone)]
pub struct Window(Arc<OwnedFd>);

impl Window {
    /// Changes its size; the kernel tells the foreground group.
    pub fn resize(&self, size: WindowSize) {
        if let Err(error) = tcsetwinsize(&*self.0, winsize(size)) {
            tracing::debug!(%error, "a terminal could not be resized");
        }
    }
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
