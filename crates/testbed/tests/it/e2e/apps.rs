//! Apps from deploy to page: address, name, route, limits, and what other apps notice of it (nothing).

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::controller::{Controller, GUESTS};

/// One entry of a list that says this about an app.
fn only(list: &Value, key: &str, value: &str) -> Value {
    let found: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry[key] == value)
        .collect();
    let [one] = found[..] else {
        panic!("{key}={value}: {list}")
    };
    one.clone()
}

#[test]
fn apps_are_served_by_name_at_their_reserved_address() {
    let controller = Controller::up();
    let page = controller.write_etc("page.html", "<h1>naïve & sound</h1>\n");
    let site = controller.json([
        "app",
        "deploy",
        "static-site",
        "site",
        "--set-file",
        &format!("index_html={page}"),
    ]);
    let web = controller.deploy("web");
    assert_eq!(controller.infrastructure()["connected_apps"], 2);

    let wan = controller.wan_address();
    assert_eq!(
        controller.page("site.prox.local"),
        (200, "<h1>naïve & sound</h1>\n".to_owned())
    );
    let (status, body) = controller.page("web.prox.local");
    assert!(
        status == 200 && body.contains("Welcome to nginx!"),
        "{status} {body}"
    );
    let here = format!("site.prox.local:443:{wan}");
    let (status, body) = controller.page_at(
        "https://site.prox.local/",
        &["--insecure", "--resolve", &here],
    );
    assert_eq!((status, body.as_str()), (200, "<h1>naïve & sound</h1>\n"));
    assert_eq!(controller.page("nobody.prox.local").0, 404);

    let (leases, names, routes) = (
        controller.json(["lease", "list"]),
        controller.json(["dns", "list"]),
        controller.json(["route", "list"]),
    );
    for (app, name, port) in [(&site, "site", 8080), (&web, "web", 80)] {
        let (address, host) = (app["ip"].as_str().unwrap(), format!("{name}.prox.local"));
        assert_eq!(only(&leases, "instance", name)["ip"], address);
        assert_eq!(only(&leases, "instance", name)["mac"], app["mac"]);
        assert_eq!(only(&names, "name", &host)["ip"], address);
        let route = only(&routes, "host", &host);
        assert_eq!(
            (&route["instance"], &route["port"], &route["health"]),
            (&name.into(), &port.into(), &"healthy".into())
        );
        // The guest asked for its address and got the one that was kept for it.
        let own = controller.exec(
            name,
            ["ip", "-json", "-4", "address", "show", "dev", "eth0"],
        );
        let own: Value = serde_json::from_str(&own).unwrap();
        assert_eq!(own[0]["addr_info"][0]["local"], address);
        assert_eq!(own[0]["addr_info"][0]["dynamic"], true);
        assert_eq!(
            controller
                .exec(name, ["cat", "/sys/class/net/eth0/address"])
                .trim(),
            app["mac"]
        );
    }
    assert_ne!(site["ip"], web["ip"]);
    let log = controller.ok(["app", "logs", "web"]);
    assert!(log.contains("nginx.service"), "{log}");
}

#[test]
fn guests_are_unprivileged_and_limited() {
    let controller = Controller::up();
    let words = [
        "app", "deploy", "nginx", "web", "--memory", "200M", "--cpu", "0.5", "--pids", "100",
    ];
    let id = controller.json(words)["id"].as_str().unwrap().to_owned();

    let first = controller.script(&format!("lxc-info -P {GUESTS} -n {id} -p -H"));
    let first = first.trim();
    assert_eq!(
        controller.script(&format!("stat -c %u:%g /proc/{first}")),
        "100000:100000\n"
    );
    let map = controller.exec("web", ["cat", "/proc/1/uid_map", "/proc/1/gid_map"]);
    let words: Vec<_> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "100000", "65536"]);
    // The appliance is no exception.
    let map = controller.exec("prox-appliance", ["cat", "/proc/1/uid_map"]);
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "65536"]
    );
    let status = controller.exec("web", ["grep", "-E", "^Seccomp:", "/proc/1/status"]);
    assert_eq!(status.split_whitespace().last(), Some("2"), "{status}");
    assert_eq!(limits(&controller, &id), [200 << 20, 50_000, 100]);
    // The guest feels it, too.
    let bomb = "for i in $(seq 200); do sleep 5 & done 2>/dev/null; true";
    let ran = controller.run(["exec", "web", "--timeout", "20s", "--", "bash", "-c", bomb]);
    assert_ne!(ran.code, 0, "200 processes within a limit of 100");
    assert_eq!(controller.page("web.prox.local").0, 200);
}

/// Memory in bytes, CPU time in microseconds of each 100 000, and processes: what a guest is limited to
/// by the node's own cgroup files, whichever version it has.
pub fn limits(controller: &Controller, id: &str) -> [u64; 3] {
    let files = [
        ("memory/{}/memory.limit_in_bytes", "{}/memory.max"),
        ("cpu/{}/cpu.cfs_quota_us", "{}/cpu.max"),
        ("pids/{}/pids.max", "{}/pids.max"),
    ];
    files.map(|(v1, v2)| {
        let [v1, v2] = [v1, v2].map(|file| file.replace("{}", &format!("lxc.payload.{id}")));
        let both = format!("cd /sys/fs/cgroup; cat {v1} 2>/dev/null || cat {v2}");
        let printed = controller.script(&both);
        printed.split_whitespace().next().unwrap().parse().unwrap()
    })
}

/// A connection that stays open between requests.
struct KeepAlive(TcpStream);

impl KeepAlive {
    fn head(&mut self, host: &str) -> String {
        write!(self.0, "HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            assert_eq!(
                self.0.read(&mut byte).unwrap(),
                1,
                "the connection was closed: {answer:?}"
            );
            answer.push(byte[0]);
        }
        String::from_utf8(answer)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned()
    }
}

/// What would change if Caddy were restarted, reloaded or given another configuration.
fn caddy(controller: &Controller) -> String {
    let look = "systemctl show caddy --property=MainPID,NRestarts,ActiveEnterTimestampMonotonic
        sha256sum /etc/proximity/Caddyfile; find /etc/proximity/sites-enabled
        journalctl --unit=caddy --output=cat | grep -c -e reload -e 'config.*load' || true";
    controller.exec("prox-appliance", ["sh", "-c", look])
}

#[test]
fn routes_come_and_go_without_touching_caddy() {
    let mut controller = Controller::up();
    controller.deploy("web");
    let before = caddy(&controller);
    assert!(
        before.contains("MainPID=") && !before.contains("MainPID=0\n"),
        "{before}"
    );
    let gateway = (controller.wan_address(), 80).into();
    let forward = controller.host.forward(gateway).unwrap();
    let mut connection = KeepAlive(TcpStream::connect(forward).unwrap());
    connection
        .0
        .set_read_timeout(Some(super::PATIENCE))
        .unwrap();
    assert_eq!(connection.head("web.prox.local"), "HTTP/1.1 200 OK");

    controller.deploy("other");
    assert_eq!(controller.page("other.prox.local").0, 200);
    assert_eq!(connection.head("web.prox.local"), "HTTP/1.1 200 OK");
    controller.ok(["app", "stop", "other"]);
    assert_eq!(controller.page("other.prox.local").0, 404);
    controller.ok(["app", "delete", "other", "--yes"]);
    assert_eq!(connection.head("web.prox.local"), "HTTP/1.1 200 OK");
    assert_eq!(
        connection.head("other.prox.local"),
        "HTTP/1.1 404 Not Found"
    );
    assert_eq!(caddy(&controller), before);
}
