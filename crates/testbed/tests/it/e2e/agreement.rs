//! Everything that tells of guests tells the same: records, directories, containers, mounts, interfaces,
//! reservations, leases, names and routes. Reads; changes nothing.

use serde_json::Value;

use super::controller::Controller;

/// What the node has, one `KIND ID` a line.
const NODE: &str = r#"
cd /var/lib/proximity/guests
for entry in * .[!.]*; do [ ! -e "$entry" ] || echo "directory $entry"; done
grep -l '"complete": true' */guest.json | sed 's|/.*||; s|^|complete |'
grep -o '@/var/lib/proximity/guests/[^/]*/command' /proc/net/unix | sort -u | sed 's|.*guests/||; s|/.*||; s|^|container |'
grep -o '/var/lib/proximity/guests/[^ ]*' /proc/mounts | sed 's|.*guests/||; s|/disk$||; s|^|mount |'
ip -o link show type veth | sed -n 's|^[0-9]*: \(px[^@]*\)@.* master \([^ ]*\) .*|interface \1 \2|p'
ls /var/lib/proximity | grep -v -e '^proximity.db' -e '^audit' | sed 's|^|file |'
"#;

/// What the appliance has.
const APPLIANCE: &str = r#"
for id in /var/lib/proximity/dnsmasq/dhcp/*; do [ ! -e "$id" ] || echo "reservation ${id##*/}"; done
for id in /var/lib/proximity/dnsmasq/hosts/*; do [ ! -e "$id" ] || echo "name ${id##*/}"; done
for host in /run/proximity/routes/*; do [ ! -e "$host" ] || echo "route ${host##*/}"; done
for mark in /run/proximity/pending/*; do [ ! -e "$mark" ] || echo "pending $mark"; done
cut -d' ' -f3 /var/lib/proximity/dnsmasq.leases | sed 's|^|lease |'
"#;

/// Compares; fails the test and names what differs. The zone is up, and nothing is under way. Files of the
/// controller are compared with `files`, which [`files`] gave before.
pub fn check(controller: &Controller, files: &[String], what: &str) {
    let appliance = controller.appliance_id();
    let mut expected = vec![
        format!("directory {appliance}"),
        format!("complete {appliance}"),
        format!("container {appliance}"),
        format!("mount {appliance}"),
        format!("interface {} proximity-wan", interface(&appliance, 0)),
        format!("interface {} proximity-lan", interface(&appliance, 1)),
    ];
    expected.extend(files.iter().cloned());
    for app in list(controller, "/apps") {
        let (id, running) = guest(&mut expected, &app);
        expected.extend([format!("reservation {id}"), format!("name {id}")]);
        if running {
            expected.push(format!("route {}.prox.local", text(&app, "name")));
        }
        // A guest keeps its lease while it is stopped; it had one, since it was running.
        expected.push(format!("lease {}", text(&app, "ip")));
    }
    for sandbox in list(controller, "/sandboxes") {
        guest(&mut expected, &sandbox);
    }
    let mut found = lines(&controller.script(NODE));
    found.extend(lines(
        &controller.exec("prox-appliance", ["sh", "-c", APPLIANCE]),
    ));
    expected.sort();
    found.sort();
    let only = |these: &[String], others: &[String]| -> Vec<String> {
        let missing = these.iter().filter(|line| !others.contains(line));
        missing.cloned().collect()
    };
    assert_eq!(
        found,
        expected,
        "{what}: only in the records: {:#?}, only on the node: {:#?}",
        only(&expected, &found),
        only(&found, &expected)
    );
    if let Some(operation) = list(controller, "/operations")
        .iter()
        .find(|operation| operation["status"] == "running")
    {
        panic!("{what}: {operation} is under way");
    }
}

/// The controller's files in its data directory.
pub fn files(controller: &Controller) -> Vec<String> {
    let mut files = lines(&controller.script(NODE));
    files.retain(|line| line.starts_with("file "));
    files
}

/// Adds what the node has of a guest that is running or stopped; its id, and whether it is running.
fn guest(expected: &mut Vec<String>, guest: &Value) -> (String, bool) {
    let id = text(guest, "id");
    let running = guest["status"] == "running";
    assert!(running || guest["status"] == "stopped", "{guest}");
    expected.extend(["directory", "complete", "mount"].map(|kind| format!("{kind} {id}")));
    if running {
        expected.push(format!("container {id}"));
        expected.push(format!("interface {} proximity-lan", interface(&id, 0)));
    }
    (id, running)
}

/// The node's end of a guest's interface.
fn interface(id: &str, index: usize) -> String {
    format!("px{index}{}", &id[2..14])
}

fn list(controller: &Controller, path: &str) -> Vec<Value> {
    let (status, list) = controller.api("GET", path, None);
    assert_eq!(status, 200, "{path}: {list}");
    list.as_array().unwrap().clone()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap().to_owned()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}
