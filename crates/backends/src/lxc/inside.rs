//! Sockets inside the network of a guest of this machine.
//!
//! A socket belongs to the network namespace of the thread that makes it, and stays there whoever uses
//! it afterwards. So a thread enters the guest's network, makes a socket and ends; the controller itself
//! stays where it is. Who answers on the socket is told by TLS, not by the way there: the guest's
//! root can lead its own loopback wherever it likes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use api::InstanceId;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::monitor;

/// A TCP socket in the guest's network, not connected; an error when the guest does not run.
pub(super) async fn tcp_socket(guests: &Path, guest: &InstanceId) -> io::Result<OwnedFd> {
    let (done, made) = oneshot::channel();
    let (guests, guest) = (guests.to_owned(), guest.clone());
    // A thread of its own that ends here: none of a pool, which would go on in the guest's network.
    thread::Builder::new()
        .name("inside-a-guest".into())
        .spawn(move || drop(done.send(make(&guests, &guest))))?;
    made.await.map_err(io::Error::other)?
}

fn make(guests: &Path, guest: &InstanceId) -> io::Result<OwnedFd> {
    let init = monitor::init(guests, guest)?;
    let network = File::open(format!("/proc/{init}/ns/net"))?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        flags,
        None,
    )?)
}
