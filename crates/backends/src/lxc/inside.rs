//! Connections made inside the network of a guest of this machine.
//!
//! An abstract unix socket belongs to a network namespace as a port does, and a socket to the namespace of the
//! thread that makes it, whoever uses it afterwards. So a thread enters the guest's network, connects to the
//! agent there and ends; the controller itself stays where it is. Who answers is told by TLS, not by
//! the way there: any process of the guest can listen under that name.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use api::InstanceId;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;
use wire::agent::{AGENT_SOCKET, AGENT_SOCKET_BUFFER_BYTES};

use super::monitor;

/// A connection to the agent; an error when the guest or its agent does not run.
pub(super) async fn agent(guests: &Path, guest: &InstanceId) -> io::Result<UnixStream> {
    let (done, made) = oneshot::channel();
    let (guests, guest) = (guests.to_owned(), guest.clone());
    // A thread of its own that ends here: none of a pool, which would go on in the guest's network.
    thread::Builder::new()
        .name("inside-a-guest".into())
        .spawn(move || drop(done.send(connected(&guests, &guest))))?;
    made.await.map_err(io::Error::other)?
}

fn connected(guests: &Path, guest: &InstanceId) -> io::Result<UnixStream> {
    let init = monitor::init(guests, guest)?;
    let network = File::open(format!("/proc/{init}/ns/net"))?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    // Not blocking: whoever holds the name and accepts nobody must not hold this thread.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_send_buffer_size(&socket, AGENT_SOCKET_BUFFER_BYTES)?;
    connect(
        &socket,
        &SocketAddrUnix::new_abstract_name(AGENT_SOCKET.as_bytes())?,
    )?;
    Ok(socket.into())
}
