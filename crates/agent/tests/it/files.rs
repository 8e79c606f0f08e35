//! Files through the router, on real file systems.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{HeaderMap, Method, header};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::served::{Answer, PATIENCE, TestBody, call, request, send, serve, with_body};

const NOBODY: u32 = 65534;
const TRAILERS: [(&str, &str); 1] = [("te", "trailers")];

struct Lab {
    agent: SocketAddr,
    dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Self {
            agent: serve(agent::files::router()).await,
            dir,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self, name: &str, more: &str) -> String {
        format!("/files?path={}{more}", self.path(name).display())
    }

    async fn get(&self, name: &str, more: &str, headers: &[(&str, &str)]) -> Answer {
        let request = request(Method::GET, &self.uri(name, more), headers, "");
        call(self.agent, request).await
    }

    async fn put(&self, name: &str, more: &str, bytes: &[u8]) -> Answer {
        let headers = [("repr-digest", digest(bytes))];
        let headers = headers.each_ref().map(|(n, v)| (*n, v.as_str()));
        let body = bytes.to_vec();
        let request = request(Method::PUT, &self.uri(name, more), &headers, body);
        call(self.agent, request).await
    }

    /// Everything in the directory.
    fn names(&self) -> Vec<String> {
        names(self.dir.path())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn digest(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(bytes)))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Bytes in a chunked body, with the digest after them if there is one.
fn chunked(bytes: &[u8], digest: Option<String>) -> TestBody {
    let mut frames = vec![Frame::data(Bytes::copy_from_slice(bytes))];
    frames.extend(digest.map(|digest| {
        let value = digest.parse().unwrap();
        Frame::trailers(HeaderMap::from_iter([(
            header::HeaderName::from_static("repr-digest"),
            value,
        )]))
    }));
    StreamBody::new(futures::stream::iter(frames.into_iter().map(Ok))).boxed()
}

#[tokio::test]
async fn what_was_written_is_read() {
    let lab = Lab::new().await;
    let large: Vec<u8> = (0..50u32 << 18).flat_map(u32::to_le_bytes).collect();
    for bytes in [&b""[..], b"a\0\xff\r\n\n", &large] {
        let written = lab.put("f", "", bytes).await;
        assert_eq!(written.status, if bytes.is_empty() { 201 } else { 200 });
        let said: wire::agent::Written = serde_json::from_slice(&written.body).unwrap();
        assert_eq!(said.size_bytes, bytes.len() as u64);
        assert_eq!(
            format!("sha-256=:{}:", base64_of_hex(&said.sha256)),
            digest(bytes)
        );
        assert!(fs::read(lab.path("f")).unwrap() == bytes);

        let read = lab.get("f", "", &TRAILERS).await;
        assert_eq!(read.status, 200);
        assert!(read.body == bytes);
        assert_eq!(read.trailer("repr-digest"), Some(digest(bytes).as_str()));
        assert_eq!(read.header("x-file-mode"), Some("0644"));
        assert_eq!(
            read.header("x-file-size"),
            Some(bytes.len().to_string().as_str())
        );
        assert_eq!(read.header("content-length"), None);
        assert!(read.header("last-modified").unwrap().ends_with(" GMT"));
    }
    assert_eq!(lab.names(), ["f"]);
}

fn base64_of_hex(hex: &str) -> String {
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect();
    STANDARD.encode(bytes)
}

#[tokio::test]
async fn a_caller_without_trailers_gets_the_length_and_a_part_when_asked() {
    let lab = Lab::new().await;
    fs::write(lab.path("f"), "0123456789").unwrap();
    fs::set_permissions(lab.path("f"), Permissions::from_mode(0o4751)).unwrap();
    let read = lab.get("f", "", &[]).await;
    assert_eq!(
        (&read.body[..], read.header("content-length")),
        (&b"0123456789"[..], Some("10"))
    );
    assert_eq!(read.header("x-file-mode"), Some("4751"));
    assert!(read.trailers.is_none());

    let part = lab
        .get("f", "", &[("range", "bytes=4-"), ("te", "trailers")])
        .await;
    assert_eq!(
        (part.status.as_u16(), &part.body[..]),
        (206, &b"456789"[..])
    );
    assert_eq!(part.header("content-range"), Some("bytes 4-9/10"));
    assert_eq!(
        part.trailer("repr-digest"),
        Some(digest(b"456789").as_str())
    );
    let part = lab.get("f", "", &[("range", "bytes=9-")]).await;
    assert_eq!(
        (&part.body[..], part.header("content-length")),
        (&b"9"[..], Some("1"))
    );
    let past = lab.get("f", "", &[("range", "bytes=10-")]).await;
    assert_eq!(past.code(), "range_not_satisfiable");
    assert_eq!(past.header("content-range"), Some("bytes */10"));

    let look = call(lab.agent, request(Method::HEAD, &lab.uri("f", ""), &[], "")).await;
    assert_eq!((look.status.as_u16(), look.body.len()), (200, 0));
    assert_eq!(look.header("content-length"), Some("10"));
    assert_eq!(look.header("x-file-mode"), Some("4751"));
    // A file of the kernel has no size and has bytes.
    let uri = "/files?path=/proc/self/stat";
    assert!(
        !call(lab.agent, request(Method::GET, uri, &[], ""))
            .await
            .body
            .is_empty()
    );
}

#[tokio::test]
async fn a_digest_is_needed_and_compared_and_the_old_file_stays() {
    let lab = Lab::new().await;
    fs::write(lab.path("f"), "old").unwrap();
    let put = async |more: &str, headers: &[(&str, &str)], body: TestBody| {
        let request = with_body(Method::PUT, &lab.uri("f", more), headers, body);
        let answer = call(lab.agent, request).await;
        let now = fs::read_to_string(lab.path("f")).unwrap();
        assert_eq!(lab.names(), ["f"], "nothing else is left");
        let code = if answer.status.is_success() {
            String::new()
        } else {
            answer.code()
        };
        (code, now)
    };
    let ok = |now: &str| (String::new(), now.to_owned());
    let refused = |code: &str, now: &str| (code.to_owned(), now.to_owned());
    let other = digest(b"other");
    let trailer = [("trailer", "repr-digest")];
    assert_eq!(
        put("", &[], chunked(b"new", None)).await,
        refused("digest_missing", "old")
    );
    let header = [("repr-digest", other.as_str())];
    assert_eq!(
        put("", &header, chunked(b"new", None)).await,
        refused("digest_mismatch", "old")
    );
    let body = chunked(b"new", Some(other.clone()));
    assert_eq!(
        put("", &trailer, body).await,
        refused("digest_mismatch", "old")
    );
    // Even where none is asked for, a wrong one counts.
    let body = chunked(b"new", Some(other.clone()));
    assert_eq!(
        put("&digest=none", &trailer, body).await,
        refused("digest_mismatch", "old")
    );
    let header = [("repr-digest", "sha-256=x")];
    assert_eq!(
        put("", &header, chunked(b"new", None)).await,
        refused("bad_digest", "old")
    );
    assert_eq!(
        put("&mode=9", &[], chunked(b"new", None)).await,
        refused("bad_mode", "old")
    );
    assert_eq!(
        put("&digest=no", &[], chunked(b"new", None)).await,
        refused("bad_request", "old")
    );
    let body = chunked(b"new", Some(digest(b"new")));
    assert_eq!(put("", &trailer, body).await, ok("new"));
    assert_eq!(
        put("&digest=none", &[], chunked(b"newer", None)).await,
        ok("newer")
    );
}

#[tokio::test]
async fn an_upload_that_is_cut_leaves_nothing_behind() {
    let lab = Lab::new().await;
    fs::write(lab.path("f"), "old").unwrap();
    for head in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let mut stream = TcpStream::connect(lab.agent).await.unwrap();
        let head = format!(
            "PUT {} HTTP/1.1\r\nhost: g\r\n{head}\r\n\r\n10\r\n",
            lab.uri("f", "")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[b'x'; 12]).await.unwrap();
        until(|| lab.names().len() == 2, "the temporary file is there").await;
        let temporary = lab.names().remove(0);
        assert_eq!(mode(&lab.path(&temporary)), 0o600, "{temporary}");
        drop(stream);
        until(|| lab.names() == ["f"], "the temporary file is gone").await;
        assert_eq!(fs::read(lab.path("f")).unwrap(), b"old");
    }
}

async fn until(condition: impl Fn() -> bool, what: &str) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn modes_are_given_or_kept_and_links_are_replaced_themselves() {
    let lab = Lab::new().await;
    let check = async |name: &str, more: &str, expect: u32| {
        assert!(
            lab.put(name, more, b"x").await.status.is_success(),
            "{name}"
        );
        assert_eq!(mode(&lab.path(name)), expect, "{name}");
    };
    check("new", "", 0o644).await;
    check("new", "&mode=4750", 0o4750).await;
    // The set-user-id bit belonged to the old owner.
    check("new", "", 0o750).await;
    fs::write(lab.path("real"), "real").unwrap();
    symlink("real", lab.path("link")).unwrap();
    check("link", "", 0o644).await;
    assert!(fs::symlink_metadata(lab.path("link")).unwrap().is_file());
    assert_eq!(fs::read(lab.path("real")).unwrap(), b"real");
}

#[tokio::test]
async fn what_is_no_file_is_refused() {
    let lab = Lab::new().await;
    fs::create_dir(lab.path("dir")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        lab.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o644),
        0,
    )
    .unwrap();
    let codes = async |name: &str| {
        let get = lab.get(name, "", &TRAILERS).await.code();
        let put = lab.put(name, "", b"x").await.code();
        (get, put)
    };
    let both = |code: &str| (code.to_owned(), code.to_owned());
    assert_eq!(codes("dir").await, both("is_a_directory"));
    assert_eq!(codes("dir/").await, both("is_a_directory"));
    assert_eq!(codes("fifo").await, both("not_a_file"));
    assert_eq!(codes("none/f").await, both("not_found"));
    assert_eq!(codes("fifo/f").await, both("not_found"));
    assert_eq!(codes(&"x".repeat(300)).await, both("bad_path"));
    let get = async |uri: &str| {
        call(lab.agent, request(Method::GET, uri, &[], ""))
            .await
            .code()
    };
    assert_eq!(get("/files?path=/dev/zero").await, "not_a_file");
    assert_eq!(get("/files?path=etc/passwd").await, "bad_path");
    assert_eq!(get("/files?path=/etc/pass%00wd").await, "bad_path");
    assert_eq!(get("/files").await, "bad_request");
    assert_eq!(
        get("/files?path=/etc/passwd&user=nobody-here").await,
        "no_such_user"
    );
    assert_eq!(lab.names(), ["dir", "fifo"]);
}

#[tokio::test]
async fn a_user_reads_and_writes_what_is_the_users() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can act for another user");
        return;
    }
    let lab = Lab::new().await;
    fs::write(lab.path("secret"), "secret").unwrap();
    fs::set_permissions(lab.path("secret"), Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(lab.path("drop")).unwrap();
    let user = format!("&user={NOBODY}");
    assert_eq!(
        lab.get("secret", &user, &[]).await.code(),
        "permission_denied"
    );
    assert_eq!(
        lab.put("secret", &user, b"x").await.code(),
        "permission_denied"
    );
    assert_eq!(
        lab.put("new", &user, b"x").await.code(),
        "permission_denied"
    );
    assert_eq!(
        lab.put("drop/f", &user, b"x").await.code(),
        "permission_denied"
    );
    assert_eq!(fs::read(lab.path("secret")).unwrap(), b"secret");
    // A directory that may be written and not read.
    std::os::unix::fs::chown(lab.path("drop"), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(lab.path("drop"), Permissions::from_mode(0o300)).unwrap();
    assert_eq!(lab.put("drop/f", &user, b"x").await.status, 201);
    let metadata = fs::metadata(lab.path("drop/f")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY));
    assert_eq!(lab.get("drop/f", &user, &[]).await.body, "x");
    assert_eq!(names(&lab.path("drop")), ["f"]);
    // The rights were taken on by one thread only.
    assert!(rustix::process::geteuid().is_root());
    assert_eq!(lab.put("root", "&user=root", b"x").await.status, 201);
    assert_eq!(lab.get("secret", "&user=0", &[]).await.body, "secret");
    assert_eq!(fs::metadata(lab.path("root")).unwrap().uid(), 0);
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_file_and_says_so() {
    let lab = Lab::new().await;
    if let Err(why) = own_mounts().and_then(|()| small_disk(lab.dir.path())) {
        println!("SKIPPED: no file system of its own: {why}");
        return;
    }
    let lab = Lab {
        agent: serve(agent::files::router()).await,
        dir: lab.dir,
    };
    assert_eq!(lab.put("f", "", b"old").await.status, 201);
    let answer = lab.put("f", "", &vec![b'x'; 8 << 20]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (507, "no_space")
    );
    assert_eq!(fs::read(lab.path("f")).unwrap(), b"old");
    assert_eq!(lab.names(), ["f"]);
    assert_eq!(lab.put("f", "", &vec![b'x'; 256 << 10]).await.status, 200);
}

/// A mount namespace for this thread and those it starts: the mounts end with them.
#[expect(
    deprecated,
    reason = "what took its place is unsafe for the sake of file descriptors, which stay shared here"
)]
fn own_mounts() -> std::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    rustix::thread::unshare(
        rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
    )?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", private)?)
}

fn small_disk(path: &Path) -> std::io::Result<()> {
    use rustix::mount::{MountFlags, mount};
    Ok(mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::empty(),
        c"size=1m",
    )?)
}

#[tokio::test]
async fn a_caller_that_goes_while_it_reads_ends_the_thread() {
    let lab = Lab::new().await;
    let sparse = fs::File::create(lab.path("f")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    for _ in 0..3 {
        // More than there are transfers at a time, if one of them stayed.
        let mut answers = Vec::new();
        for _ in 0..30 {
            let request = request(Method::GET, &lab.uri("f", ""), &[], "");
            answers.push(send(lab.agent, request).await.unwrap());
        }
        assert!(answers.iter().all(|answer| answer.status() == 200));
        drop(answers);
        let mut stream = TcpStream::connect(lab.agent).await.unwrap();
        let head = format!("GET {} HTTP/1.1\r\nhost: g\r\n\r\n", lab.uri("f", ""));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 1000]).await.unwrap();
    }
}
