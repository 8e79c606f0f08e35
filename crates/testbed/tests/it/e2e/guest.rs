//! The world as a guest sees it: what it can connect to, what its resolver answers. Tried from inside.

use std::net::Ipv4Addr;

use super::controller::Controller;

/// Tries all targets (`ADDRESS/PORT`) at once and prints those that take a connection.
const CONNECT: &str = r#"
for target; do
  timeout 1 bash -c 'exec 3<>"/dev/tcp/$0"' "$target" 2>/dev/null && echo "$target" &
done
wait
"#;

/// Those of the targets (`ADDRESS/PORT`) that take a TCP connection of the guest.
pub fn reachable(controller: &Controller, guest: &str, targets: &[String]) -> Vec<String> {
    let words = ["bash", "-c", CONNECT, "connect"].into_iter();
    let printed = controller.exec(guest, words.chain(targets.iter().map(String::as_str)));
    let mut reached: Vec<String> = printed.lines().map(str::to_owned).collect();
    reached.sort();
    reached
}

/// Of the targets the guest reaches the `open` ones and no other; those may take their time on a busy machine.
pub fn assert_reaches(controller: &Controller, guest: &str, targets: &[String], open: &[&str]) {
    let mut missing: Vec<_> = open.to_vec();
    super::eventually(&format!("{guest} reaches {open:?}"), || {
        let reached = reachable(controller, guest, targets);
        let closed = reached
            .iter()
            .find(|target| !open.contains(&target.as_str()));
        assert_eq!(closed, None, "{guest} reaches it");
        missing.retain(|target| !reached.iter().any(|one| one == target));
        missing.is_empty()
    });
}

/// The body of a page that the guest asks for by address.
pub fn page(controller: &Controller, guest: &str, address: &str, path: &str) -> String {
    let ask = r#"exec 3<>"/dev/tcp/$0/80"; printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&3; cat <&3"#;
    let answer = controller.exec(guest, ["timeout", "5", "bash", "-c", ask, address, path]);
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{address}: {answer:?}"));
    body.trim_end().to_owned()
}

/// What a name server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Address(Ipv4Addr),
    NoSuchName,
    Other(u8),
}

/// Asks the guest's name server for a name's address: a query of ours, the answer byte by byte.
pub fn ask(controller: &Controller, guest: &str, name: &str) -> Answer {
    let send = "exec 3<>/dev/udp/$(sed -n 's/^nameserver //p' /etc/resolv.conf)/53
        cat >&3; exec timeout 5 dd bs=512 count=1 status=none <&3";
    let words = ["exec", guest, "--", "bash", "-c", send];
    let answer = controller.run_with(words, &query(name)).expect(0).out;
    assert_eq!(
        answer[..2],
        query(name)[..2],
        "{name}: the answer to something else"
    );
    match answer[3] & 0x0f {
        0 => {
            let address: [u8; 4] = answer[answer.len() - 4..].try_into().unwrap();
            Answer::Address(address.into())
        }
        3 => Answer::NoSuchName,
        code => Answer::Other(code),
    }
}

/// A query of type A, recursion desired (RFC 1035, 4.1).
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0x4d, 0x2a, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}
