//! LXC in a host: a container boots, is on the bridge, and ends with the host.

use crate::{get, script, start, until};

/// A root file system of busybox and the configuration for it, made in the host.
const MAKE: &str = r#"
ct=/var/lib/lxc/web
mkdir -p $ct/rootfs
cd $ct/rootfs
mkdir -p bin sbin dev proc sys etc tmp run www var/lib/lxcfs
cp "$(command -v busybox)" bin/busybox
for applet in sh httpd sleep ip cat free; do ln -s busybox bin/$applet; done
ln -s ../bin/busybox sbin/init
echo container > www/index.html
echo '::respawn:/bin/httpd -f -p 80 -h /www' > etc/inittab
cat > $ct/config <<CONFIG
lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = web
lxc.arch = linux64
lxc.rootfs.path = dir:$ct/rootfs
lxc.apparmor.profile = unconfined
lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed
lxc.tty.max = 0
lxc.net.0.type = veth
lxc.net.0.link = vmbr0
lxc.net.0.flags = up
lxc.net.0.name = eth0
lxc.net.0.ipv4.address = 192.168.50.30/24
CONFIG
"#;

#[test]
fn a_privileged_container_boots_on_the_bridge() {
    let (place, host) = start();
    script(&host, MAKE);
    script(
        &host,
        "echo 'lxc.cgroup.memory.limit_in_bytes = 64M' >> /var/lib/lxc/web/config; lxc-start -n web",
    );
    until("the container answers", || {
        host.run([
            "busybox",
            "nc",
            "-w",
            "1",
            "192.168.50.30",
            "80",
            "-e",
            "/bin/true",
        ])
        .unwrap()
        .status
        .success()
    });
    assert_eq!(get(&host, "192.168.50.30", 80, "/"), "container");
    assert_eq!(script(&host, "lxc-info -n web -sH").trim(), "RUNNING");
    // The host's own lxcfs shows the container its limit.
    let memory = script(&host, "lxc-attach -n web -- /bin/cat /proc/meminfo");
    assert!(
        memory.starts_with("MemTotal:          65536 kB"),
        "{memory}"
    );
    host.stop().unwrap();
    assert!(place.traces().is_empty(), "{:?}", place.traces());
}

#[test]
fn an_unprivileged_container_runs() {
    let (_place, host) = start();
    script(&host, MAKE);
    script(
        &host,
        "cat >> /var/lib/lxc/web/config <<CONFIG
lxc.include = /usr/share/lxc/config/userns.conf
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.rootfs.options = idmap=container
CONFIG
         lxc-start -n web; lxc-wait -n web -s RUNNING -t 10",
    );
    assert_eq!(
        script(&host, "lxc-attach -n web -- /bin/cat /proc/self/uid_map")
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["0", "100000", "65536"]
    );
}
