"""Tries, as root of a guest, what only the node's root may do to the kernel. Prints what succeeded, one a line."""
import ctypes, os, stat, subprocess

libc = ctypes.CDLL(None, use_errno=True)
tries = {}


def attempt(function):
    tries[function.__name__.replace("_", " ")] = function
    return function


def syscall(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def shell(line):
    subprocess.run(["sh", "-ec", line], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def write(path, text=None):
    def function():
        with open(path) if text is None else open(os.devnull) as old:
            value = text if text is not None else old.read()
        with open(path, "w") as file:
            file.write(value)
    tries["write " + path] = function


def node(kind, major, minor):
    def function():
        path = "/tmp/node"
        os.mknod(path, 0o600 | kind, os.makedev(major, minor))
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        finally:
            os.unlink(path)
    tries["device %d:%d" % (major, minor)] = function


# What a guest may do: by this the rest is known to be tried in earnest.
write("/tmp/own", "")
for key in ("core_pattern", "modprobe", "panic", "printk", "randomize_va_space", "kptr_restrict", "pid_max", "sysrq",
            "dmesg_restrict", "threads-max", "unprivileged_bpf_disabled", "poweroff_cmd", "ctrl-alt-del"):
    write("/proc/sys/kernel/" + key)
for key in ("overcommit_memory", "swappiness", "panic_on_oom", "min_free_kbytes", "mmap_min_addr"):
    write("/proc/sys/vm/" + key)
for key in ("file-max", "suid_dumpable", "protected_symlinks", "nr_open", "inotify/max_user_watches"):
    write("/proc/sys/fs/" + key)
write("/proc/sys/vm/drop_caches", "1")
write("/proc/sysrq-trigger", "h")
write("/proc/self/oom_score_adj", "-1000")
write("/proc/irq/default_smp_affinity")
write("/proc/sys/net/core/somaxconn_of_the_node", "1")
for path in ("kernel/uevent_helper", "kernel/mm/transparent_hugepage/enabled", "power/state", "power/mem_sleep",
             "kernel/profiling", "kernel/kexec_crash_size", "module/printk/parameters/time"):
    write("/sys/" + path)
for path in ("mem", "kmem", "port", "kmsg", "kvm", "loop-control", "mapper/control", "fuse", "sda", "vda", "nvram"):
    tries["open /dev/" + path] = lambda path=path: os.close(os.open("/dev/" + path, os.O_RDWR))
for minor in (1, 2, 4, 11):
    node(stat.S_IFCHR, 1, minor)
for major in (7, 8, 253, 254, 259):
    node(stat.S_IFBLK, major, 0)
node(stat.S_IFCHR, 10, 232)
for kind in ("debugfs", "tracefs", "securityfs", "devtmpfs", "configfs", "efivarfs", "pstore"):
    tries["mount " + kind] = lambda kind=kind: shell("mkdir -p /tmp/m; mount -t %s none /tmp/m" % kind)
for group in ("memory", "cpu", "pids", "devices", "rdma", "freezer"):
    tries["release_agent of " + group] = lambda group=group: shell(
        "unshare -UrmC sh -ec 'mkdir -p /tmp/cg; mount -t cgroup -o %s none /tmp/cg; echo /bin/true > /tmp/cg/release_agent'" % group)
tries["release_agent of the first"] = lambda: shell(
    "for f in $(find /sys/fs/cgroup -name release_agent); do echo /bin/true > $f && exit 0; done; exit 1")
limits = ("memory.limit_in_bytes", "memory.max", "memory.memsw.limit_in_bytes", "pids.max", "cpu.cfs_quota_us", "cpu.max",
          "cpu.shares", "devices.allow", "cpuset.cpus")
for where, _, files in os.walk("/sys/fs/cgroup"):
    for name in files:
        if name in limits:
            write(where + "/" + name, "a" if name == "devices.allow" else "-1" if "bytes" in name or "quota" in name else "max")

buffer = ctypes.create_string_buffer(4096)
for name, call in {
    "bpf": (321, 5, buffer, 120), "perf_event_open": (298, buffer, -1, 0, -1, 0), "init_module": (175, buffer, 16, b""),
    "finit_module": (313, 0, b"", 0), "delete_module": (176, b"dummy", 0), "kexec_load": (246, 0, 0, 0, 0),
    "kexec_file_load": (320, 0, 0, 0, b"", 4), "open_by_handle_at": (304, -100, buffer, 0), "iopl": (172, 3),
    "ioperm": (173, 0x70, 1, 1), "clock_settime": (227, 0, buffer), "settimeofday": (164, buffer, 0),
    "swapon": (167, b"/tmp/x", 0), "swapoff": (168, b"/tmp/x"), "acct": (163, b"/etc/hostname"), "syslog": (103, 3, buffer, 4096),
    "quotactl": (179, 0x800002, b"/dev/sda", 0, buffer), "setpriority": (141, 0, 0, -20),
    "sched_setscheduler": (144, 0, 1, ctypes.byref(ctypes.c_int(50))), "bdflush": (134, 0, 0),
}.items():
    tries["call " + name] = lambda call=call: syscall(*call)

for name, function in tries.items():
    try:
        function()
    except (OSError, ValueError, subprocess.CalledProcessError):
        continue
    print(name)
