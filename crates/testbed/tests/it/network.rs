//! The LAN and the internet of a host, and the way out that there is not.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::{get, script, start, text};

#[test]
fn everyone_on_the_lan_and_the_internet_answers() {
    let (_place, host) = start();
    assert_eq!(
        get(&host, "192.168.50.20", 80, "/"),
        "LAN machine 192.168.50.20"
    );
    assert_eq!(get(&host, "8.8.8.8", 80, "/"), "internet machine 8.8.8.8");
    assert_eq!(get(&host, "1.1.1.1", 80, "/"), "internet machine 1.1.1.1");
    assert_eq!(get(&host, "127.0.0.1", 8006, "/"), "node 8006");
    assert_eq!(get(&host, "192.168.50.10", 8006, "/"), "node 8006");
    assert_eq!(get(&host, "::1", 8006, "/"), "node 8006");
    assert_eq!(
        get(&host, "8.8.8.8", 80, "/cgi-bin/client"),
        "192.168.50.10"
    );
}

#[test]
fn names_of_the_internet_resolve_and_no_others() {
    let (_place, host) = start();
    let answer = script(&host, "busybox nslookup -type=a internet.test 8.8.8.8");
    assert!(answer.contains("Address: 8.8.8.8\n"), "{answer}");
    let answer = script(
        &host,
        "busybox nslookup -type=a second.internet.test 1.1.1.1",
    );
    assert!(answer.contains("Address: 1.1.1.1\n"), "{answer}");
    // The resolver that /etc/resolv.conf names: the router.
    let answer = script(&host, "busybox nslookup -type=a internet.test");
    assert!(answer.contains("Address: 8.8.8.8\n"), "{answer}");
    let answer = host
        .run(["busybox", "nslookup", "example.com", "8.8.8.8"])
        .unwrap();
    assert!(text(&answer.stdout).contains("NXDOMAIN"), "{answer:?}");
}

#[test]
fn the_lan_gives_leases() {
    let (_place, host) = start();
    let output = script(
        &host,
        "ip link add port0 type veth peer name client0
         ip link set port0 master vmbr0 up
         ip link set client0 up
         busybox udhcpc -i client0 -n -q -f -t 10 -T 1 -s /bin/true 2>&1",
    );
    assert!(output.contains("lease of 192.168.50.1"), "{output}");
    assert!(output.contains("obtained from 192.168.50.1,"), "{output}");
}

#[test]
fn the_machine_is_untouched_and_out_of_reach() {
    let links = || {
        text(
            &Command::new("ip")
                .args(["-oneline", "address"])
                .output()
                .unwrap()
                .stdout,
        )
    };
    let before = links();
    let (place, host) = start();
    assert_eq!(links(), before);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(place.dir.path().to_str().unwrap()),
        "{mounts}"
    );
    assert!(!mounts.contains(place.name()), "{mounts}");

    // No link leads out: every peer of a veth of the node is in one of the host's own namespaces.
    assert_eq!(
        script(&host, "ls /sys/class/net"),
        "lan0\nlo\nrouter0\nvmbr0\n"
    );
    let on_machine = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = on_machine.local_addr().unwrap().port().to_string();
    let reached = host
        .run(["busybox", "nc", "-w", "2", "127.0.0.1", &port])
        .unwrap();
    assert!(!reached.status.success());
    // What is behind the router is the internet machine and nothing else.
    let beyond = host
        .run(["busybox", "ping", "-c", "1", "-W", "1", "9.9.9.9"])
        .unwrap();
    assert!(!beyond.status.success());

    host.stop().unwrap();
    assert_eq!(links(), before);
}

#[test]
fn a_host_has_its_own_view() {
    let (place, host) = start();
    assert_eq!(script(&host, "hostname").trim(), place.name());
    // Only its own processes, and cgroups that look like the top.
    assert!(script(&host, "cat /proc/1/cmdline").contains("host-init"));
    for line in script(&host, "cat /proc/self/cgroup").lines() {
        assert!(line.ends_with(":/") || line.ends_with(":/init"), "{line}");
    }
    assert_eq!(
        script(&host, "cat /proc/sys/net/ipv4/ip_forward").trim(),
        "1"
    );
    let instances: u64 = script(&host, "cat /proc/sys/fs/inotify/max_user_instances")
        .trim()
        .parse()
        .unwrap();
    assert!(instances >= 8192);
    assert_eq!(script(&host, "cat /etc/subuid"), "root:100000:1000000000\n");
    assert_eq!(script(&host, "ls -A /var/lib/proximity-testbed"), "");
    assert!(script(&host, "cat /var/lib/lxcfs/proc/meminfo").contains("MemTotal"));

    script(
        &host,
        "echo one > /var/lib/proximity/state; echo two > /etc/proximity/config",
    );
    assert_eq!(
        fs::read_to_string(host.state().join("node/state")).unwrap(),
        "one\n"
    );
    assert_eq!(
        fs::read_to_string(host.state().join("etc/config")).unwrap(),
        "two\n"
    );
    assert!(!Path::new("/var/lib/proximity/state").exists());
}

#[test]
fn a_port_of_the_host_reaches_the_machine() {
    let (_place, mut host) = start();
    let lan = host.forward(([192, 168, 50, 20], 80).into()).unwrap();
    let mut client = TcpStream::connect(lan).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    // Half closed: the answer still comes.
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("LAN machine 192.168.50.20\n"), "{answer}");

    // A port that nobody serves closes the connection.
    let nobody = host.forward(([127, 0, 0, 1], 9).into()).unwrap();
    let mut client = TcpStream::connect(nobody).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
}
