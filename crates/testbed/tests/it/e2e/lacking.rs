//! What the node lacks for a while: a program that does not come back, room on its disk.

use std::time::{Duration, Instant};

use super::controller::{Controller, GUESTS};
use super::eventually;

#[test]
fn an_lxc_start_that_hangs_holds_up_its_guest_only() {
    let mut controller = Controller::up();
    // The first to come hangs; everybody else gets the real one. Mounted in this host alone.
    let stand_in = controller.write_etc(
        "lxc-start",
        "#!/bin/sh\n/usr/bin/mkdir /etc/proximity/hung 2>/dev/null && exec /usr/bin/sleep 1000\nexec /etc/proximity/real \"$@\"\n",
    );
    controller.script(&format!(
        "cp $(command -v lxc-start) /etc/proximity/real; chmod 755 {stand_in}
         mount --bind {stand_in} $(command -v lxc-start)"
    ));
    controller.ok(["app", "deploy", "nginx", "web", "--no-wait"]);
    let hangs = |controller: &Controller| {
        eventually("lxc-start hangs", || {
            controller.run_in_host("test -d /etc/proximity/hung") == 0
        });
    };
    hangs(&controller);
    controller.deploy("other");
    assert_eq!(controller.page("other.prox.local").0, 200);
    // Killed meanwhile, the next controller starts the guest anew.
    controller.crash();
    controller.until_running("web");

    // Left alone it is given up, and the deploy can be taken up again.
    controller.script("rmdir /etc/proximity/hung");
    let began = Instant::now();
    let told = controller
        .run(["app", "deploy", "nginx", "slow"])
        .expect(1)
        .err;
    assert!(told.contains("did not end within"), "{told}");
    assert!(
        began.elapsed() < Duration::from_secs(55),
        "{:?}",
        began.elapsed()
    );
    controller.ok(["app", "deploy", "nginx", "slow", "--resume"]);
    assert_eq!(controller.page("slow.prox.local").0, 200);
}

#[test]
fn a_full_disk_loses_nothing() {
    let mut controller = Controller::on_a_host();
    // A data directory on a small file system of its own, seen in this host only.
    controller.script(
        "truncate -s 256M /etc/proximity/small; mkfs.ext4 -q -m 0 /etc/proximity/small
         mount -o loop /etc/proximity/small /var/lib/proximity",
    );
    controller.serve_inside();
    controller.ok(["up"]);
    controller.deploy("web");
    let leftovers = format!("ls -A {GUESTS} | wc -l; grep -c {GUESTS} /proc/mounts");
    let before = controller.script(&leftovers);
    let page = "curl --silent --output /dev/null --write-out '%{http_code}' --header 'Host: web.prox.local' http://10.19.255.2/";
    assert_eq!(controller.script(page), "200");

    controller.script(
        "dd if=/dev/zero of=/var/lib/proximity/filler bs=64k status=none || true
        dd if=/dev/zero of=/var/lib/proximity/filler2 bs=512 status=none || true",
    );
    for round in 0..2 {
        // Refused as a whole or begun and failed; never half believed, and told.
        let ran = controller
            .run(["app", "deploy", "nginx", "second"])
            .expect(1);
        let told = ran.err.to_lowercase();
        assert!(
            ["full", "no space", "audit", "disk i/o"]
                .iter()
                .any(|word| told.contains(word)),
            "round {round}: {told}"
        );
        assert_eq!(controller.script(page), "200", "round {round}");
        assert_eq!(controller.run(["app", "list"]).code, 0, "round {round}");
    }
    controller.end(rustix::process::Signal::KILL);
    controller.script("rm /var/lib/proximity/filler /var/lib/proximity/filler2");
    controller.serve_inside();
    eventually("the zone is well", || {
        controller.json(["infrastructure"])["available"] == true
    });
    let apps = controller.json(["app", "list"]);
    for app in apps.as_array().unwrap() {
        if app["name"] == "second" {
            controller.ok(["app", "delete", "second", "--yes"]);
        }
    }
    assert_eq!(controller.script(page), "200");
    assert_eq!(controller.script(&leftovers), before);
    controller.deploy("second");
    controller.ok(["down", "--with-instances", "--yes"]);
    assert_eq!(controller.script(&format!("ls -A {GUESTS} | wc -l")), "0\n");
}
