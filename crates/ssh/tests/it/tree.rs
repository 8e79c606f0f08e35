//! Directories: whole, proved, links kept and never followed; and hosts that lie about theirs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use ssh::{Error, Progress, Remote, Transferred};

use crate::relay::{Relay, through};
use crate::sshd::{Sshd, can_run, keygen};

async fn up(remote: &Remote, source: &Path, target: &Path) -> Result<Transferred, Error> {
    remote
        .upload_tree("vm01", source, target.to_str().unwrap(), |_| {})
        .await
}

async fn down(remote: &Remote, source: &Path, target: &Path) -> Result<Transferred, Error> {
    remote
        .download_tree("vm01", source.to_str().unwrap(), target, |_| {})
        .await
}

fn at_time(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Every kind of name and content, with modes and times.
fn plant(top: &Path) {
    fs::create_dir_all(top.join("sub/deep")).unwrap();
    fs::create_dir(top.join("empty")).unwrap();
    fs::create_dir(top.join("sub-")).unwrap();
    let long = "n".repeat(200);
    let names: [&[u8]; 9] = [
        b"plain",
        b"-rf",
        b"it's a $name `x` \"y\"",
        b"new\nline",
        b"back\\slash\r",
        b"not-utf8-\xff\xfe",
        b"sub/deep/\xf0\n",
        b"sub-/x",
        long.as_bytes(),
    ];
    for (place, name) in names.iter().enumerate() {
        let path = top.join(OsStr::from_bytes(name));
        fs::write(&path, format!("content {place}").repeat(place * 100)).unwrap();
        mode(&path, 0o600 + u32::try_from(place).unwrap());
        at_time(&path, 1_000_000_000 + place as u64);
    }
    fs::write(top.join("large"), vec![7; 9 * 1024 * 1024]).unwrap();
    mode(&top.join("large"), 0o444);
    at_time(&top.join("large"), 1_100_000_000);
    symlink("../outside", top.join("sub/link")).unwrap();
    symlink("/etc/passwd", top.join("absolute")).unwrap();
    symlink(OsStr::from_bytes(b"odd\n\xff"), top.join("odd link")).unwrap();
    symlink("l".repeat(300), top.join("long link")).unwrap();
    for directory in ["sub/deep", "sub", "empty", "sub-", ""] {
        mode(
            &top.join(directory),
            if directory == "empty" { 0o555 } else { 0o750 },
        );
        at_time(&top.join(directory), 1_200_000_000);
    }
}

/// Everything below a directory that a copy keeps.
fn seen(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes();
        let content = if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            "directory".to_owned()
        } else if meta.is_symlink() {
            format!("link {:?}", fs::read_link(&path).unwrap())
        } else if meta.is_file() {
            let content = fs::read(&path).unwrap();
            format!(
                "{} {:?}",
                content.len(),
                content.iter().map(|b| u64::from(*b)).sum::<u64>()
            )
        } else {
            format!("{:?}", meta.file_type())
        };
        let time = if meta.is_symlink() { 0 } else { meta.mtime() };
        found.push(format!(
            "{:?} {:o} {time} {content}",
            OsStr::from_bytes(name),
            meta.mode()
        ));
    }
    found.sort();
    found
}

fn parts(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".part")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_arrive_whole_with_modes_times_and_links() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("Subsystem none /bin/false");
    let remote = sshd.remote().await;
    let (source, far, back) = (
        sshd.path("source"),
        sshd.path("it's far"),
        sshd.path("back"),
    );
    fs::create_dir(&source).unwrap();
    plant(&source);
    let most = Arc::new(AtomicU64::new(0));
    let meter = {
        let most = Arc::clone(&most);
        move |progress: Progress| {
            assert!(progress.done_bytes <= progress.total_bytes);
            most.fetch_max(progress.done_bytes, Ordering::Relaxed);
        }
    };
    let target = format!("{}/", far.display());
    let sent = remote
        .upload_tree("vm01", &source, &target, meter)
        .await
        .unwrap();
    assert_eq!(seen(&far), seen(&source));
    assert_eq!(
        (sent.files, sent.directories, sent.links),
        (10, 4, 4),
        "{sent:?}"
    );
    assert_eq!(most.load(Ordering::Relaxed), sent.bytes);
    let got = down(&remote, &far, &back).await.unwrap();
    assert_eq!(seen(&back), seen(&source));
    assert_eq!(
        (got.sha256, got.bytes, got.files),
        (sent.sha256, sent.bytes, sent.files)
    );
    assert!(parts(sshd.dir.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_there_keeps_what_is_its_own() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let source = sshd.path("source");
    fs::create_dir_all(source.join("new/inner")).unwrap();
    fs::create_dir(source.join("old")).unwrap();
    fs::create_dir(source.join("new-")).unwrap();
    for name in ["new/inner/a", "old/b", "c", "new-/d", "was-link"] {
        fs::write(source.join(name), name).unwrap();
    }
    for upload in [true, false] {
        let target = sshd.path(if upload { "far" } else { "here" });
        let copy = async || {
            if upload {
                up(&remote, &source, &target).await
            } else {
                down(&remote, &source, &target).await
            }
        };
        fs::create_dir_all(target.join("old")).unwrap();
        mode(&target, 0o711);
        fs::write(target.join("old/own"), "own").unwrap();
        fs::write(target.join("c"), "before").unwrap();
        symlink("old", target.join("was-link")).unwrap();
        copy().await.unwrap();
        for name in ["new/inner/a", "old/b", "c", "new-/d", "was-link"] {
            assert_eq!(fs::read_to_string(target.join(name)).unwrap(), name);
        }
        assert!(
            !fs::symlink_metadata(target.join("was-link"))
                .unwrap()
                .is_symlink()
        );
        assert_eq!(fs::read(target.join("old/own")).unwrap(), b"own");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o711);
        assert!(parts(sshd.dir.path()).is_empty());
        // A link where a directory should be, a directory where a file should be: nothing is touched, nothing followed.
        fs::write(target.join("c"), "kept").unwrap();
        let outside = sshd.path("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::remove_dir_all(target.join("new")).unwrap();
        symlink(&outside, target.join("new")).unwrap();
        let error = copy().await.unwrap_err();
        assert!(error.to_string().contains("in the way"), "{error}");
        fs::remove_file(target.join("new")).unwrap();
        fs::remove_file(target.join("was-link")).unwrap();
        fs::create_dir(target.join("was-link")).unwrap();
        let error = copy().await.unwrap_err();
        assert!(error.to_string().contains("in the way"), "{error}");
        assert_eq!(fs::read(target.join("c")).unwrap(), b"kept");
        assert!(fs::read_dir(&outside).unwrap().next().is_none());
        assert!(parts(sshd.dir.path()).is_empty());
        // A target that is a link itself, or a file.
        symlink(&outside, sshd.path("link")).unwrap();
        for (name, says) in [("link", "link"), ("source/c", "no directory")] {
            let to = sshd.path(name);
            let error = if upload {
                up(&remote, &source, &to).await.unwrap_err()
            } else {
                down(&remote, &source, &to).await.unwrap_err()
            };
            let text = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(
                text.contains(says) || text.contains("no directory"),
                "{text}"
            );
        }
        fs::remove_file(sshd.path("link")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_directory_is_refused_and_odd_things_are_left_out() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let source = sshd.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("f"), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let made = Process::new("mkfifo").arg(source.join("pipe")).status();
    assert!(made.unwrap().success());
    for result in [
        up(&remote, &source, &sshd.path("far")).await.unwrap(),
        down(&remote, &source, &sshd.path("back")).await.unwrap(),
    ] {
        assert_eq!(result.files, 1);
        assert!(
            result.warnings[0].contains("2 devices, sockets or pipes"),
            "{result:?}"
        );
    }
    for top in ["far", "back"] {
        let names = fs::read_dir(sshd.path(top)).unwrap();
        assert_eq!(names.count(), 1);
    }
    let says = |error: Error, text: &str| assert!(error.to_string().contains(text), "{error}");
    let file = source.join("f");
    says(
        up(&remote, &file, &sshd.path("x")).await.unwrap_err(),
        "cannot walk",
    );
    says(
        up(&remote, &sshd.path("none"), &sshd.path("x"))
            .await
            .unwrap_err(),
        "cannot walk",
    );
    says(
        up(&remote, &source, &sshd.path("none/x"))
            .await
            .unwrap_err(),
        "could not write",
    );
    says(
        down(&remote, &file, &sshd.path("x")).await.unwrap_err(),
        "no directory",
    );
    says(
        down(&remote, &sshd.path("none"), &sshd.path("x"))
            .await
            .unwrap_err(),
        "no such",
    );
    assert!(!sshd.path("x").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_cost_few_round_trips() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let source = sshd.path("source");
    for directory in 0..20 {
        fs::create_dir_all(source.join(format!("d{directory}"))).unwrap();
        for file in 0..250 {
            let path = source.join(format!("d{directory}/f{file}"));
            fs::write(path, format!("{directory} {file}\n").repeat(file)).unwrap();
        }
    }
    let sessions = || sshd.log().matches("Starting session: command").count();
    let begun = Instant::now();
    let sent = up(&remote, &source, &sshd.path("far")).await.unwrap();
    let (up_took, up_sessions) = (begun.elapsed(), sessions());
    let begun = Instant::now();
    let got = down(&remote, &sshd.path("far"), &sshd.path("back"))
        .await
        .unwrap();
    println!("5000 files: up {up_took:?}, down {:?}", begun.elapsed());
    assert_eq!((sent.files, sent.sha256), (5000, got.sha256));
    assert!(
        up_sessions <= 6 && sessions() - up_sessions <= 6,
        "{up_sessions} {}",
        sessions()
    );
    assert_eq!(seen(&sshd.path("back")), seen(&source));
    // Into what is there: nothing new, and in few orders too.
    let before = sessions();
    up(&remote, &source, &sshd.path("far")).await.unwrap();
    assert!(sessions() - before <= 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_tree_goes_on_where_it_stopped() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let (source, far, back) = (sshd.path("source"), sshd.path("far"), sshd.path("back"));
    fs::create_dir_all(source.join("d")).unwrap();
    for file in 0..12_u8 {
        fs::write(
            source.join(format!("d/{file}")),
            vec![file; 2 * 1024 * 1024],
        )
        .unwrap();
    }
    fs::write(source.join("large"), vec![1; 20 * 1024 * 1024]).unwrap();
    let relay = Relay::to(&sshd.host, sshd.port, 0);
    let remote = through(&sshd, &relay).await;
    for upload in [true, false] {
        let copy = async || {
            if upload {
                up(&remote, &source, &far).await
            } else {
                down(&remote, &far, &back).await
            }
        };
        let target = if upload { &far } else { &back };
        relay.cut_after(34 * 1024 * 1024);
        let error = copy().await.unwrap_err();
        assert!(matches!(error, Error::Transfer { .. }), "{error}");
        assert!(!target.exists());
        assert_eq!(parts(sshd.dir.path()).len(), 1);
        relay.cut_after(usize::MAX);
        let moved = copy().await.unwrap();
        assert!(moved.resumed_bytes >= 20 * 1024 * 1024, "{moved:?}");
        assert_eq!(seen(target), seen(&source));
        assert!(parts(sshd.dir.path()).is_empty());
    }
}

/// An sshd that finds these programs before all others.
async fn with_programs(programs: &[(&str, &str)]) -> (Sshd, Remote) {
    let dir = tempfile::tempdir().unwrap();
    keygen(&dir.path().join("host"), &["-t", "ed25519"]);
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for (name, script) in programs {
        fs::write(bin.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        mode(&bin.join(name), 0o755);
    }
    let at = dir.path().display().to_string();
    let path = format!("PATH={at}/bin:/usr/bin:/bin");
    let sshd = Sshd::start_in(dir, &format!("SetEnv HOME={at}/home {path}"));
    sshd.trust("host");
    let remote = sshd.remote().await;
    (sshd, remote)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_busybox_alone_will_do() {
    if !can_run() {
        return;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let Some(busybox) = busybox.into_iter().find(|path| path.exists()) else {
        println!("SKIPPED: a host with BusyBox needs the package busybox-static");
        return;
    };
    let (sshd, remote) = with_programs(&[]).await;
    let bin = sshd.path("bin");
    for program in [
        "cat",
        "chmod",
        "dd",
        "find",
        "grep",
        "ls",
        "mkdir",
        "mv",
        "readlink",
        "rm",
        "rmdir",
        "sh",
        "sha256sum",
        "sleep",
        "stat",
        "sync",
        "tail",
        "tar",
        "touch",
        "wc",
        "xargs",
    ] {
        symlink(busybox, bin.join(program)).unwrap();
    }
    let told = crate::sshd::exec(&remote, &["tar", "--help"])
        .await
        .unwrap();
    let said = format!("{}{}", told.stdout, told.stderr);
    assert!(said.contains("BusyBox"), "{said}");
    let (source, far, back) = (sshd.path("source"), sshd.path("far"), sshd.path("back"));
    fs::create_dir(&source).unwrap();
    plant(&source);
    for again in [false, true] {
        let times = |top: &Path| {
            // What was there already has a new time, since something came into it.
            for name in ["", "sub-"].into_iter().filter(|_| again) {
                at_time(&top.join(name), 1_200_000_000);
            }
        };
        up(&remote, &source, &far).await.unwrap();
        times(&far);
        assert_eq!(seen(&far), seen(&source));
        down(&remote, &far, &back).await.unwrap();
        times(&back);
        assert_eq!(seen(&back), seen(&source));
        fs::remove_dir_all(far.join("sub")).unwrap();
        fs::remove_dir_all(back.join("sub")).unwrap();
    }
    assert!(parts(sshd.dir.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lists_what_leads_out_writes_nothing_here() {
    if !can_run() {
        return;
    }
    // The double of `find` gets the word that begins each entry as an argument, as the real one does.
    let find = "for a do case $a in *%f*) w=${a%% *};; esac; done; . \"$HOME/list\"";
    let (sshd, remote) = with_programs(&[("find", find)]).await;
    let source = sshd.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("evil"), "evil").unwrap();
    symlink("/etc", source.join("l")).unwrap();
    let secret = sshd.path("evil");
    let top = "echo \"$w 41ed 0 1 .\";";
    let absolute = format!("echo \"$w 81a4 4 1 {}\"", secret.display());
    let lists = [
        format!("{top} echo \"$w 81a4 4 1 ./../evil\""),
        format!("{top} echo \"$w 41ed 4 1 ./..\"; echo \"$w 81a4 4 1 ./../evil\""),
        format!("{top} {absolute}"),
        format!("{top} echo \"$w 81a4 4 1 .//{}\"", secret.display()),
        format!("{top} echo \"$w a1ff 4 1 ./l\"; echo \"$w 81a4 4 1 ./l/evil\""),
        format!(
            "{top} echo \"$w a1ff 4 1 ./l\"; echo \"$w 41ed 4 1 ./l\"; echo \"$w 81a4 4 1 ./l/evil\""
        ),
        format!("{top} echo \"$w 81a4 99999999999999999999999 1 ./evil\""),
        "echo \"$w 81a4 4 1 .\"".to_owned(),
        format!("{top} echo \"$w 81a4 4 1\""),
        "while :; do echo \"$w 81a4 4 1 ./x\"; done".to_owned(),
        "exec cat /dev/zero".to_owned(),
        "exit 3".to_owned(),
    ];
    let before = fs::read_dir(sshd.dir.path()).unwrap().count();
    fs::create_dir(sshd.path("in")).unwrap();
    for list in lists {
        fs::write(sshd.path("home/list"), &list).unwrap();
        let error = down(&remote, &source, &sshd.path("in/back"))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Transfer { .. }), "{list}: {error}");
        assert!(!secret.exists(), "{list}");
        assert_eq!(fs::read_dir(sshd.path("in")).unwrap().count(), 0, "{list}");
    }
    fs::remove_dir(sshd.path("in")).unwrap();
    assert!(fs::read_dir(sshd.dir.path()).unwrap().count() <= before + 1);
    // Devices are not made, whatever they are called.
    let list = format!(
        "{top} echo \"$w 21b6 0 1 ./null\"; echo \"$w 61b0 0 1 ./disk\"; echo \"$w 81a4 4 1 ./evil\""
    );
    fs::write(sshd.path("home/list"), list).unwrap();
    let got = down(&remote, &source, &sshd.path("back")).await.unwrap();
    assert_eq!((got.files, got.warnings.len()), (1, 1));
    for entry in fs::read_dir(sshd.path("back")).unwrap() {
        let kind = entry.unwrap().file_type().unwrap();
        assert!(kind.is_file() && !kind.is_char_device());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_sends_or_proves_other_files_leaves_nothing() {
    if !can_run() {
        return;
    }
    let cases = [
        (
            "cat",
            "/bin/cat \"$@\"; echo more",
            "more than the files' sizes",
        ),
        ("cat", "/bin/cat \"$@\" | head -c 3", "less came"),
        ("cat", "/bin/cat \"$@\" | tr a b", "is not what"),
        (
            "sha256sum",
            "exec /usr/bin/sha256sum \"$@\" | tr 0-9 1-90",
            "is not what",
        ),
        ("sha256sum", "exit 0", "is not what"),
    ];
    for (name, script, says) in cases {
        let (sshd, remote) = with_programs(&[(name, script)]).await;
        let source = sshd.path("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("f"), "aaaa").unwrap();
        fs::create_dir(sshd.path("in")).unwrap();
        let error = down(&remote, &source, &sshd.path("in/back"))
            .await
            .unwrap_err();
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains(says), "{script}: {text}");
        assert_eq!(
            fs::read_dir(sshd.path("in")).unwrap().count(),
            0,
            "{script}"
        );
        if name == "sha256sum" {
            let error = up(&remote, &source, &sshd.path("in/far"))
                .await
                .unwrap_err();
            assert!(error.to_string().contains(says), "{script}: {error}");
            assert_eq!(
                fs::read_dir(sshd.path("in")).unwrap().count(),
                0,
                "{script}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_on_the_way_is_not_put_in_place() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let source = sshd.path("source");
    fs::create_dir(&source).unwrap();
    for name in ["a", "b"] {
        fs::write(source.join(name), vec![1; 3 * 1024 * 1024]).unwrap();
    }
    let changing: Arc<Mutex<Option<PathBuf>>> = Arc::new(Mutex::new(Some(source.join("b"))));
    let meter = move |_: Progress| {
        if let Some(path) = changing.lock().unwrap().take() {
            fs::write(path, "shorter").unwrap();
        }
    };
    let target = sshd.path("far");
    let far = target.to_str().unwrap();
    let error = remote
        .upload_tree("vm01", &source, far, meter)
        .await
        .unwrap_err();
    let text = format!("{error} {:?}", std::error::Error::source(&error));
    assert!(text.contains("changed while it was read"), "{text}");
    assert!(!target.exists());
    assert!(parts(sshd.dir.path()).is_empty());
}
