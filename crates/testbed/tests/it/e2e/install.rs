//! Installed on a machine that systemd runs: the controller as a unit, guests in scopes of their own, and all
//! of it gone again. The machine is a container that sees the real one's programs through an overlay, so what
//! is installed in it changes nothing outside.

use std::path::Path;

use super::controller::{Controller, Ran, finish};
use super::{eventually, programs};

/// Where the machine keeps what it writes; the host's own disk.
const PLACE: &str = "/var/lib/proximity/machine";
const MACHINES: &str = "/var/lib/proximity/machines";
/// What its interfaces were before.
const INTERFACES: &str = "auto lo\niface lo inet loopback\n";

/// A machine with systemd as process 1 in a virtual host, and what was built of this repository in `/opt/build`.
struct Machine {
    host: Controller,
}

impl Machine {
    fn boot() -> Self {
        let host = Controller::on_a_host();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .unwrap()
            .display();
        // The second proc and sysfs are whole: without one in sight no user namespace may mount its own, and
        // lxcfs covers parts of the first.
        let config = format!(
            "lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = machine
lxc.rootfs.path = dir:{PLACE}/root
lxc.init.cmd = /lib/systemd/systemd systemd.unit=basic.target
lxc.mount.auto = proc:rw sys:rw cgroup:rw:force
lxc.mount.entry = {PLACE}/data var/lib/proximity none bind,create=dir 0 0
lxc.mount.entry = {PLACE}/cache var/cache/proximity none bind,create=dir 0 0
lxc.mount.entry = {PLACE}/build opt/build none bind,create=dir 0 0
lxc.mount.entry = {repository} opt/repository none bind,ro,create=dir 0 0
lxc.mount.entry = proc opt/proc proc create=dir 0 0
lxc.mount.entry = sys opt/sys sysfs create=dir 0 0
lxc.cap.drop =
lxc.cgroup.devices.allow = a
lxc.cgroup2.devices.allow = a
lxc.apparmor.profile = unconfined
lxc.seccomp.profile =
lxc.net.0.type = veth
lxc.net.0.link = vmbr0
lxc.net.0.flags = up
lxc.net.0.name = eth0
lxc.net.0.ipv4.address = 192.168.50.77/24
lxc.net.0.ipv4.gateway = 192.168.50.1
"
        );
        let (proximity, agent) = (programs::proximity().display(), programs::agent().display());
        host.script(&format!(
            "mkdir -p {MACHINES}/m {PLACE}/root {PLACE}/upper {PLACE}/work {PLACE}/data {PLACE}/build \
                {PLACE}/cache {PLACE}/cache-upper {PLACE}/cache-work
             cp {proximity} {agent} {PLACE}/build/
             mount -t overlay overlay -o lowerdir=/,upperdir={PLACE}/upper,workdir={PLACE}/work {PLACE}/root
             mount -t overlay overlay {PLACE}/cache \
                -o lowerdir=/var/cache/proximity,upperdir={PLACE}/cache-upper,workdir={PLACE}/cache-work
             rm -rf {PLACE}/root/etc/systemd/system/* {PLACE}/root/etc/fstab {PLACE}/root/etc/proximity
             mkdir -p {PLACE}/root/etc/network
             printf '{}' > {PLACE}/root/etc/network/interfaces
             cat > {MACHINES}/m/config <<'END'\n{config}END
             lxc-start -P {MACHINES} -n m -d",
            INTERFACES.replace('\n', "\\n"),
        ));
        let machine = Self { host };
        // The real machine's devices are not for a container to set up. Of its own it needs loops, for disks.
        machine.ok("mknod -m 600 /dev/loop-control c 10 237
             n=0; while [ $n -lt 256 ]; do mknod -m 600 /dev/loop$n b 7 $n; n=$((n + 1)); done");
        eventually("systemd is up", || {
            let state = machine.run("systemctl is-system-running || true").text();
            ["running\n", "degraded\n"].contains(&state.as_str())
        });
        machine
    }

    /// Runs a script in the machine.
    fn run(&self, script: &str) -> Ran {
        let attach = ["lxc-attach", "-P", MACHINES, "-n", "m", "--clear-env", "--"];
        let path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let words = ["env", path, "sh", "-euc", script];
        finish(self.host.command(attach.into_iter().chain(words)))
    }

    fn ok(&self, script: &str) -> String {
        self.run(script).expect(0).text()
    }
}

#[test]
fn it_is_installed_survives_its_own_restart_and_goes_again() {
    let machine = Machine::boot();
    let install = "BUILD=/opt/build /opt/repository/scripts/install";
    let missing = machine.run("BUILD=/opt/nothing /opt/repository/scripts/install");
    let told = missing.expect(1).err;
    assert!(told.contains("make build"), "{told}");

    let said = machine.ok(install);
    assert!(said.contains("proximity up"), "{said}");
    let interfaces = machine.ok("cat /etc/network/interfaces");
    assert!(interfaces.starts_with(INTERFACES), "{interfaces}");
    assert!(
        interfaces.contains("\niface proximity-lan inet manual\n"),
        "{interfaces}"
    );
    assert_eq!(machine.ok("systemctl is-enabled proximity"), "enabled\n");
    machine.ok("proximity up --quiet && proximity --quiet sandbox create --name box");

    // Guests are units that systemd knows, and nothing of them is in the controller's.
    let scopes = machine.ok("systemctl list-units --plain --no-legend 'proximity-i-*.scope'");
    assert_eq!(scopes.lines().count(), 2, "{scopes}");
    let of_unit = "cat $(find /sys/fs/cgroup/systemd/system.slice/proximity.service \
                   /sys/fs/cgroup/system.slice/proximity.service -name cgroup.procs 2>/dev/null) | wc -l";
    assert_eq!(machine.ok(of_unit).trim(), "1");

    // The controller is restarted, killed, and installed once more with a file of the operator's; the
    // process in the guest is the same all the while.
    machine.ok("proximity exec box -- sh -c 'setsid sleep 1234 > /dev/null 2>&1 &'");
    let pid = "proximity exec box -- pidof sleep";
    let before = machine.ok(pid);
    machine.ok("systemctl restart proximity");
    eventually("the controller serves again", || machine.run(pid).code == 0);
    machine.ok("systemctl kill --kill-whom=main --signal=KILL proximity");
    eventually("the killed controller serves again", || {
        machine.run(pid).code == 0
    });
    machine.ok("echo '# mine' >> /etc/proximity/config.yml");
    let said = machine.ok(install);
    assert!(said.contains("stays as it is"), "{said}");
    machine.ok("grep -q '# mine' /etc/proximity/config.yml");
    assert_eq!(machine.ok(pid), before);

    // A guest that stops and starts at once finds its scope's name free again.
    machine.ok("proximity --quiet app deploy nginx web && proximity --quiet app restart web");
    machine.ok("proximity exec web -- true");

    let refused = machine.run("/opt/repository/scripts/uninstall").expect(1);
    assert!(refused.err.contains("box"), "{}", refused.err);
    assert_eq!(machine.ok(pid), before, "nothing was removed");
    machine.ok("proximity --quiet down --with-instances --yes");
    machine.ok("/opt/repository/scripts/uninstall --purge");
    assert_eq!(machine.ok("cat /etc/network/interfaces"), INTERFACES);
    let left = "ls -A /usr/local/bin/proximity* /etc/systemd/system/proximity* /etc/proximity \
                /var/lib/proximity /var/cache/proximity 2>/dev/null | grep -v : || true
                systemctl list-units --all --plain --no-legend 'proximity*.service' 'proximity*.scope'
                ip -br link | grep -c proximity- || true; nft list tables";
    assert_eq!(machine.ok(left).trim(), "0");
}
