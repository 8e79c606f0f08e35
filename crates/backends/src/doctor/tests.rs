//! The examination over made-up machines, and over this one.

use super::*;

/// A machine made of files.
struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for (path, text) in files {
            let path = tree.dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    fn machine(&self) -> Machine {
        Machine {
            root: self.dir.path().to_owned(),
            programs: vec![self.dir.path().join("bin")],
        }
    }
}

#[test]
fn an_empty_machine_lacks_everything_and_every_lack_can_be_mended() {
    let findings = Tree::new(&[]).machine().examine();
    let lacking: Vec<_> = findings.iter().filter(|f| !f.ok).collect();
    assert_eq!(lacking.len(), findings.len() - 1, "all but AppArmor");
    assert!(lacking.iter().all(|f| f.mend.is_some()));
    assert_eq!(
        install_line(&findings).as_deref(),
        Some("apt-get update && apt-get install -y e2fsprogs lxc mmdebstrap nftables tar uidmap")
    );
}

#[test]
fn a_machine_that_has_everything_is_well() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut files = vec![
        ("/proc/self/status", "Name:\tx\nUid:\t1000\t0\t0\t0\n"),
        ("/etc/subuid", "me:100000:65536\nroot:100000:131072\n"),
        ("/etc/subgid", "0:100000:65536\n0:165536:65536\n"),
        ("/proc/sys/kernel/osrelease", "6.1.0\n"),
        ("/proc/filesystems", "nodev\toverlay\n\text4\n"),
        ("/sys/module/bridge/version", "2.3\n"),
        (
            "/lib/modules/6.1.0/modules.builtin",
            "kernel/drivers/net/veth.ko\n",
        ),
        (
            "/lib/modules/6.1.0/modules.dep",
            "kernel/net/netfilter/nf_tables.ko.xz: kernel/lib/libcrc32c.ko.xz\n",
        ),
        ("/proc/sys/user/max_user_namespaces", "96365\n"),
        (
            "/sys/fs/cgroup/cgroup.controllers",
            "cpuset cpu io memory pids\n",
        ),
        ("/proc/sys/fs/inotify/max_user_instances", "8192\n"),
    ];
    let programs: Vec<String> = PROGRAMS.iter().map(|(p, _)| format!("/bin/{p}")).collect();
    files.extend(programs.iter().map(|p| (p.as_str(), "")));
    let tree = Tree::new(&files);
    for program in &programs {
        let path = tree.dir.path().join(program.trim_start_matches('/'));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let findings = tree.machine().examine();
    let lacking: Vec<_> = findings.iter().filter(|f| !f.ok).collect();
    assert!(lacking.is_empty(), "{lacking:?}");
    assert_eq!(install_line(&findings), None);
}

#[test]
fn a_file_that_nobody_may_execute_is_no_program() {
    let tree = Tree::new(&[("/bin/nft", "")]);
    assert!(!tree.machine().program("nft", "nftables").ok);
}

#[test]
fn subordinate_ranges() {
    const APPS: Option<&str> = Some("usermod --add-subuids 100000-165535 root");
    const SANDBOXES: Option<&str> = Some("usermod --add-subuids 165536-231071 root");
    let check = |text: &str, mend: Option<&str>| {
        let tree = Tree::new(&[("/etc/subuid", text)]);
        let finding = tree
            .machine()
            .subordinate_ids("/etc/subuid", "--add-subuids");
        assert_eq!(finding.ok, mend.is_none(), "{text:?}");
        assert_eq!(finding.mend.as_deref(), mend, "{text:?}");
    };
    check("root:100000:131072\n", None);
    check("root:1000:1000000\n", None);
    check(
        "root:100000:1000\nroot:100000:65536\nroot:165536:65536\n",
        None,
    );
    check("", APPS);
    check("root:100000:65536\n", SANDBOXES);
    check("root:100000:65535\n", APPS);
    check("root:165536:65536\n", APPS);
    check("rooty:100000:131072\n", APPS);
    check("root:x:65536\nroot\n", APPS);
    check("root:18446744073709551615:18446744073709551615\n", APPS);
}

#[test]
fn a_kernel_without_modules_knows_its_symbols() {
    let veth = &KERNEL_PARTS[2];
    let line = "ffffffff81db97e0 t veth_newlink\n";
    assert!(
        Tree::new(&[("/proc/kallsyms", line)])
            .machine()
            .kernel_part(veth)
            .ok
    );
    let other = "ffffffff81db97e0 t veth_newlink_not\n";
    assert!(
        !Tree::new(&[("/proc/kallsyms", other)])
            .machine()
            .kernel_part(veth)
            .ok
    );
}

#[test]
fn modules_are_found_by_their_whole_name() {
    assert!(names_module(
        "kernel/net/bridge/bridge.ko.zst: a b\n",
        "bridge"
    ));
    assert!(names_module(
        "kernel/net/netfilter/nf-tables.ko\n",
        "nf_tables"
    ));
    assert!(!names_module(
        "kernel/net/bridge/br_netfilter.ko: kernel/net/bridge/bridge.ko\n",
        "bridge"
    ));
    assert!(!names_module("kernel/drivers/net/veth.d/x.ko\n", "veth"));
}

#[test]
fn cgroups_of_both_versions() {
    let v1 = "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
              35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
              39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
    assert!(
        Tree::new(&[("/proc/self/mountinfo", v1)])
            .machine()
            .cgroups()
            .ok
    );
    let v2 = [("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")];
    let finding = Tree::new(&v2).machine().cgroups();
    assert_eq!(finding.detail, "v2: no memory");
    assert!(
        finding
            .mend
            .is_some_and(|m| m.contains("cgroup_enable=memory"))
    );
}

#[test]
fn low_limits_come_with_the_line_that_lifts_them() {
    let tree = Tree::new(&[("/proc/sys/fs/inotify/max_user_instances", "128\n")]);
    assert_eq!(
        tree.machine().inotify().mend.as_deref(),
        Some(
            "sysctl -w fs.inotify.max_user_instances=1024 && echo 'fs.inotify.max_user_instances = 1024' >> /etc/sysctl.d/60-proximity.conf"
        )
    );
}

#[test]
fn disk_is_measured_where_the_directory_will_be() {
    let dir = tempfile::tempdir().unwrap();
    let finding = free_disk(&dir.path().join("not/yet/there"));
    assert!(finding.detail.contains("GiB"), "{finding:?}");
}

#[test]
fn this_machine_can_be_examined() {
    assert!(examine().len() > PROGRAMS.len());
}
