//! One guest that asks and connects as fast as it can does not keep the others from it.

use std::thread;
use std::time::Duration;

use super::controller::Controller;

/// Asks for ever new names for three seconds, and begins connections between, without waiting for anything.
const FLOOD: &str = r#"
import socket, time
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ask.connect(("10.20.0.1", 53)); ask.setblocking(False)
end, n, held = time.monotonic() + 3, 0, []
while time.monotonic() < end:
    n += 1
    name = b"".join(bytes([len(l)]) + l for l in (b"n%d" % n, b"nowhere", b"test")) + b"\0\0\1\0\1"
    try:
        ask.send(b"\0\7\1\0\0\1\0\0\0\0\0\0" + name)
    except OSError:
        pass
    if n % 4 == 0:
        link = socket.socket(); link.setblocking(False)
        link.connect_ex(("8.8.8.8", 9)); held.append(link)
        if len(held) > 800:
            held.pop(0).close()
print(n)
"#;

#[test]
fn one_guest_asks_all_and_the_others_are_answered() {
    let controller = Controller::up();
    controller.sandbox("lab");
    controller.sandbox("den");
    let resolve = || controller.exec("den", ["getent", "ahostsv4", "second.internet.test"]);
    assert!(resolve().starts_with("1.1.1.1"));
    let (answered, asked) = thread::scope(|scope| {
        let flood = scope.spawn(|| controller.exec("lab", ["python3", "-c", FLOOD]));
        let mut answered = 0;
        while !flood.is_finished() {
            assert!(resolve().starts_with("1.1.1.1"));
            answered += 1;
            thread::sleep(Duration::from_millis(50));
        }
        (
            answered,
            flood.join().unwrap().trim().parse::<u64>().unwrap(),
        )
    });
    assert!(
        answered > 0 && asked > 2000,
        "{answered} of the other's, {asked} asked"
    );
    // It was the limits that did it.
    for chain in ["of_guests", "limited"] {
        let list = [
            "exec",
            "prox-appliance",
            "--",
            "nft",
            "list",
            "chain",
            "inet",
            "proximity",
            chain,
        ];
        let rules = controller.ok(list);
        let dropped = rules.split_once("packets ").unwrap().1;
        let dropped = rules
            .lines()
            .find(|l| l.contains("limit rate over"))
            .unwrap_or(dropped);
        let mut words = dropped.split(' ').skip_while(|w| *w != "counter").skip(2);
        assert_ne!(words.next(), Some("0"), "{chain}: {rules}");
    }
}
