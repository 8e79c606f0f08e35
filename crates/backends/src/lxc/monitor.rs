//! What a guest's monitor process knows, asked over its socket instead of by a program: a start or a
//! look at a guest then costs no process.
//!
//! LXC's monitor listens on the abstract unix socket `LXCPATH/NAME/command` from before the guest's first
//! process until after its last one (`lxc_cmd_init` of LXC; `lxc-info` asks the same socket and says
//! STOPPED when nobody listens). Longer paths are hashed by LXC; then there is no answer here.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use api::InstanceId;

/// `sun_path` with its leading NUL (unix(7)), and the NUL that LXC counts at the end.
const NAME_MAX_BYTES: usize = 106;

/// How long a monitor may take to answer: it has nothing else to do, except while it starts the guest.
const ANSWER_DEADLINE: Duration = Duration::from_millis(200);
/// `LXC_CMD_GET_INIT_PID` (LXC's `commands.h`, whose numbers are fixed).
const GET_INIT_PID: i32 = 4;

/// Whether a guest's monitor listens; none when this way can't tell.
pub(super) fn answers(guests: &Path, id: &InstanceId) -> Option<bool> {
    match connect(guests, id) {
        Ok(_) => Some(true),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Some(false),
        Err(_) => None,
    }
}

/// The guest's first process as the node sees it. It may end at any moment, and its number be another
/// process's then: nothing may be trusted to it.
pub(super) fn init(guests: &Path, id: &InstanceId) -> io::Result<u32> {
    let mut monitor = connect(guests, id)?;
    monitor.set_read_timeout(Some(ANSWER_DEADLINE))?;
    monitor.set_write_timeout(Some(ANSWER_DEADLINE))?;
    // `struct lxc_cmd_req` and `struct lxc_cmd_rsp`: two ints, and a pointer that holds the number itself.
    let mut request = [0; HEAD_BYTES];
    request[..4].copy_from_slice(&GET_INIT_PID.to_ne_bytes());
    monitor.write_all(&request)?;
    let mut answer = [0; HEAD_BYTES];
    monitor.read_exact(&mut answer)?;
    pid(&answer).ok_or_else(|| io::Error::other("the guest has no first process yet"))
}

/// Two ints and a pointer.
const HEAD_BYTES: usize = 8 + size_of::<usize>();

fn pid(answer: &[u8; HEAD_BYTES]) -> Option<u32> {
    let (head, data) = answer.split_at(8);
    let (failed, _) = head.split_first_chunk::<4>()?;
    let pid = usize::from_ne_bytes(data.try_into().ok()?);
    if i32::from_ne_bytes(*failed) != 0 {
        return None;
    }
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    u32::try_from(pid).ok()
}

fn connect(guests: &Path, id: &InstanceId) -> io::Result<UnixStream> {
    let name = format!("{}/{id}/command", guests.display());
    if name.len() > NAME_MAX_BYTES {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)
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

    #[test]
    fn a_first_process_is_a_number_that_the_monitor_vouches_for() {
        let answer = |failed: i32, pid: usize| {
            let head = [failed.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
            super::pid(
                &[head, pid.to_ne_bytes().to_vec()]
                    .concat()
                    .try_into()
                    .unwrap(),
            )
        };
        assert_eq!(answer(0, 4711), Some(4711));
        assert_eq!(answer(-1, 4711), None);
        assert_eq!(answer(0, 0), None, "it starts");
        assert_eq!(answer(0, usize::MAX), None, "-1");

        let dir = tempfile::tempdir().unwrap();
        let id = InstanceId::from_bytes([8; 8]);
        assert!(init(dir.path(), &id).is_err(), "nobody is there");
        let name = format!("{}/{id}/command", dir.path().display());
        let silent = SocketAddr::from_abstract_name(&name).unwrap();
        let _silent = UnixListener::bind_addr(&silent).unwrap();
        assert!(init(dir.path(), &id).is_err(), "a monitor that is busy");
    }
}
