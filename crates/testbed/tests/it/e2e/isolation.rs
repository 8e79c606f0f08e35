//! Guests of one zone are closed to each other, and the appliance to all of them but for what they need.
//! Tried from inside a sandbox and from inside an app, as root of the guest.

use serde_json::Value;

use super::controller::Controller;
use super::forgery::{PORT_RULES, counted};
use super::guest::{assert_reaches, reachable};

/// By which a guest's way of trying is known to work.
const INTERNET: &str = "8.8.8.8/80";
const AGENT: u16 = 39383;
/// What a server of a guest's own listens on.
const SERVER: u16 = 9000;

/// Asks on the link for each address and prints those for which anybody answered, and who did.
const ARP: &str = r#"
import socket, struct, sys, time
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
link.bind(("eth0", 0))
mac = link.getsockname()[4]
own, *targets = map(socket.inet_aton, sys.argv[1:])
for target in targets:
    head = b"\xff" * 6 + mac + struct.pack("!H", 0x0806)
    link.send(head + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + own + b"\0" * 6 + target)
end = time.monotonic() + 1
while (rest := end - time.monotonic()) > 0:
    link.settimeout(rest)
    try:
        frame = link.recv(100)
    except TimeoutError:
        break
    if frame[20:22] == b"\0\2":
        print(socket.inet_ntoa(frame[28:32]), frame[22:28].hex(":"))
"#;

/// Sends a datagram in a frame that is addressed to another guest's interface.
const FRAME: &str = r#"
import socket, struct, sys
own, target, mac = socket.inet_aton(sys.argv[1]), socket.inet_aton(sys.argv[2]), sys.argv[3]
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
head = bytes.fromhex(mac.replace(":", "")) + link.getsockname()[4] + struct.pack("!H", 0x0800)
data = struct.pack("!HHHH", 9000, 9000, 12, 0) + b"mark"
words = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 0, 0, 64, 17, 0, own, target)
total = sum(struct.unpack("!10H", words))
total = (total & 0xFFFF) + (total >> 16)
check = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
for _ in range(3):
    link.send(head + words[:10] + check + words[12:] + data)
"#;

/// Prints what comes within two seconds to port 9000, whoever sends it.
const HEARD: &str = r#"
import socket, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("", 9000))
heard.settimeout(2)
try:
    print(heard.recv(100))
except TimeoutError:
    print("nothing")
"#;

#[test]
fn guests_reach_neither_each_other_nor_what_is_not_theirs() {
    let controller = Controller::up();
    let guests = [
        controller.deploy("web"),
        controller.deploy("other"),
        controller.sandbox("lab"),
        controller.sandbox("den"),
    ];
    let serve = "setsid python3 -m http.server 9000 > /dev/null 2>&1 &";
    controller.exec("den", ["sh", "-c", serve]);
    let wan = controller.wan_address();
    let gateway = controller.exec("prox-appliance", ["cat", "/sys/class/net/eth1/address"]);
    let gateway = gateway.trim().to_owned();
    let node = ["192.168.50.10", "10.19.255.1"];

    // All of these ports are open: the appliance reaches them.
    let ports = |ports: &[u16]| -> Vec<String> {
        let of_guest = |guest: &Value| {
            let address = guest["ip"].as_str().unwrap().to_owned();
            let each = ports.iter().map(move |port| format!("{address}/{port}"));
            each.collect::<Vec<_>>()
        };
        guests.iter().flat_map(of_guest).collect()
    };
    let mut open = ports(&[AGENT]);
    open.extend([
        format!("{}/80", guests[0]["ip"].as_str().unwrap()),
        format!("{}/{SERVER}", guests[3]["ip"].as_str().unwrap()),
    ]);
    open.sort();
    super::eventually("all ports are open", || {
        reachable(&controller, "prox-appliance", &open) == open
    });

    for (guest, name) in guests.iter().zip(["web", "other", "lab", "den"]) {
        let own = guest["ip"].as_str().unwrap();
        let mut targets = ports(&[AGENT, 22, 80, 8080, SERVER]);
        targets.retain(|target| !target.starts_with(&format!("{own}/")));
        targets.push(INTERNET.to_owned());
        for gateway in ["10.20.0.1", &wan.to_string()] {
            let of_gateway = [22, 80, 443, 9090, AGENT, 39384, 39385];
            targets.extend(of_gateway.map(|port| format!("{gateway}/{port}")));
        }
        for address in node {
            targets.extend([22, 8006, 8765].map(|port| format!("{address}/{port}")));
        }
        // The proxy leads to other guests, so it is for apps alone, and so are the ports that apps publish.
        let proxy = ["10.20.0.1/80", "10.20.0.1/443"];
        let published = |i: usize| format!("{}/80", guests[i]["ip"].as_str().unwrap());
        let (web, other) = (published(0), published(1));
        let open = match name {
            "web" => &[INTERNET, proxy[0], proxy[1], &other][..],
            "other" => &[INTERNET, proxy[0], proxy[1], &web],
            _ => &[INTERNET],
        };
        assert_reaches(&controller, name, &targets, open);
        // The guest's own network says that the others are on its link: nobody but the gateway answered there.
        let neighbours = controller.exec(name, ["ip", "-json", "neighbour", "show"]);
        let neighbours: Value = serde_json::from_str(&neighbours).unwrap();
        for entry in neighbours.as_array().unwrap() {
            let answered = entry
                .get("lladdr")
                .is_none_or(|mac| *mac == gateway.as_str());
            assert!(answered, "{name}: {neighbours}");
        }
    }
    on_the_link(&controller, &guests[2], &guests);
}

/// A sandbox makes its own frames.
fn on_the_link(controller: &Controller, sandbox: &Value, guests: &[Value; 4]) {
    let own = sandbox["ip"].as_str().unwrap();
    let others = guests.iter().filter(|guest| guest["id"] != sandbox["id"]);
    let others = others.map(|guest| guest["ip"].as_str().unwrap());
    let ask = ["python3", "-c", ARP, own, "10.20.0.1"].into_iter();
    let asked = controller.exec("lab", ask.chain(others));
    let answers: Vec<_> = asked
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let gateway = controller.exec("prox-appliance", ["cat", "/sys/class/net/eth1/address"]);
    // For the others too: what is sent to them crosses its firewall.
    assert_eq!(answers.len(), 4);
    assert!(
        answers.iter().all(|(_, mac)| *mac == gateway.trim()),
        "{answers:?}"
    );

    // Its addresses, Ethernet's too, are no secret: a frame to them is dropped all the same. What the
    // appliance sends there is heard.
    let den = guests[3]["ip"].as_str().unwrap();
    let mac = controller.exec("den", ["cat", "/sys/class/net/eth0/address"]);
    let heard = |send: &dyn Fn()| {
        std::thread::scope(|scope| {
            let listener = scope.spawn(|| controller.exec("den", ["python3", "-c", HEARD]));
            super::eventually("it listens", || {
                let look = ["ss", "--udp", "--listening", "--numeric", "--no-header"];
                controller.exec("den", look).contains(":9000")
            });
            send();
            listener.join().unwrap()
        })
    };
    let from_sandbox = || {
        controller.exec("lab", ["python3", "-c", FRAME, own, den, mac.trim()]);
    };
    let before = counted(controller, PORT_RULES);
    assert_eq!(heard(&from_sandbox), "nothing\n");
    let dropped = counted(controller, PORT_RULES) - before;
    assert!(dropped >= 3, "{dropped} frames met the rule");
    let from_appliance = || {
        let send = r#"echo mark > "/dev/udp/$0/9000""#;
        controller.exec("prox-appliance", ["bash", "-c", send, den]);
    };
    assert_eq!(heard(&from_appliance), "b'mark\\n'\n");
}
