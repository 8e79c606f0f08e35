//! Everything that a hostile root of a sandbox can knock at: every port of the appliance and the node, headers in
//! pieces, and what of the kernel belongs to the node.

use serde_json::Value;

use super::controller::Controller;

/// Knocks at every port and prints who answered.
const SCAN: &str = include_str!("scan.py");
/// Tries what only the node's root may do to the kernel and prints what succeeded.
const SURFACE: &str = include_str!("surface.py");

/// Adds a key to the keyring of its user; looks for it there.
const ADD_KEY: &str = "import ctypes; c = ctypes.CDLL(None)
print(c.syscall(248, b'user', b'proximity-probe', b'x', 1, -4) >= 0)";
const FIND_KEY: &str = "import ctypes; c = ctypes.CDLL(None)
print(c.syscall(250, 10, -4, b'user', b'proximity-probe', 0) >= 0)";

/// What of the node a guest could change for all, as far as the kernel has it.
const NODE: &str = "cat /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/sysrq \
    /proc/sys/kernel/pid_max /proc/sys/vm/overcommit_memory /proc/sys/fs/suid_dumpable /proc/sys/fs/protected_symlinks 2>&1 || true";

#[test]
fn a_hostile_root_finds_the_name_server_and_nothing_else() {
    let controller = Controller::up();
    let web = controller.deploy("web");
    let lab = controller.sandbox("lab");
    let den = controller.sandbox("den");
    let text = |guest: &Value| guest["ip"].as_str().unwrap().to_owned();
    let mac = controller.exec("prox-appliance", ["cat", "/sys/class/net/eth1/address"]);
    let wan = controller.wan_address().to_string();
    let (own, web, den) = (text(&lab), text(&web), text(&den));

    let words = [
        "python3",
        "-c",
        SCAN,
        &own,
        mac.trim(),
        "10.20.0.1",
        &wan,
        "192.168.50.10",
        "--",
        &web,
        &den,
    ];
    let ran = controller.run(
        ["exec", "lab", "--timeout", "120s", "--"]
            .into_iter()
            .chain(words),
    );
    assert_eq!(ran.expect(0).text(), "tcp 10.20.0.1 53\nudp 10.20.0.1 53\n");

    let before = controller.script(NODE);
    let limits = |name: &str| controller.exec(name, ["cat", "/proc/meminfo"]);
    let memory = limits("lab").lines().next().unwrap().to_owned();
    let succeeded = controller.exec("lab", ["python3", "-c", SURFACE]);
    assert_eq!(succeeded, "write /tmp/own\n");
    assert_eq!(controller.script(NODE), before);
    assert_eq!(limits("lab").lines().next().unwrap(), memory);
    // Guests have one range of ids, and yet no keyring in common.
    controller.exec("lab", ["python3", "-c", ADD_KEY]);
    assert_eq!(
        controller.exec("den", ["python3", "-c", FIND_KEY]),
        "False\n"
    );
}
