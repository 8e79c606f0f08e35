//! Whether a guest's monitor process is there, asked of the kernel instead of a program: a start or a
//! look at a guest then costs no process.
//!
//! LXC's monitor listens on the abstract unix socket `LXCPATH/NAME/command` from before the guest's first
//! process until after its last one (`lxc_cmd_init` of LXC; `lxc-info` asks the same socket and says
//! STOPPED when nobody listens). Longer paths are hashed by LXC; then there is no answer here.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use api::InstanceId;

/// `sun_path` with its leading NUL (unix(7)), and the NUL that LXC counts at the end.
const NAME_MAX_BYTES: usize = 106;

/// Whether a guest's monitor listens; none when this way can't tell.
pub(super) fn answers(guests: &Path, id: &InstanceId) -> Option<bool> {
    let name = format!("{}/{id}/command", guests.to_str()?);
    if name.len() > NAME_MAX_BYTES {
        return None;
    }
    let address = SocketAddr::from_abstract_name(name).ok()?;
    match UnixStream::connect_addr(&address) {
        Ok(_) => Some(true),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_listener_counts_and_a_long_path_has_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let id = InstanceId::from_bytes([7; 8]);
        assert_eq!(answers(dir.path(), &id), Some(false));
        let name = format!("{}/{id}/command", dir.path().display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _monitor = UnixListener::bind_addr(&address).unwrap();
        assert_eq!(answers(dir.path(), &id), Some(true));
        assert_eq!(answers(&dir.path().join("d".repeat(90)), &id), None);
    }
}
