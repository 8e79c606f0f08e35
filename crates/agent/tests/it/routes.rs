//! Route sockets with real TCP servers behind them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use agent::relay::route::{RouteTable, Target};
use api::HostName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;

/// A server that answers each piece it reads with its name and that piece, and ends after the
/// client does with `bye`.
async fn echo(name: &'static str) -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
        panic!("not IPv4");
    };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let answer = [name.as_bytes(), b":", &buffer[..length]].concat();
                    stream.write_all(&answer).await.unwrap();
                }
                let _ = stream.write_all(b"bye").await;
            });
        }
    });
    address
}

struct Lab {
    table: RouteTable,
    dir: tempfile::TempDir,
    targets: BTreeMap<HostName, Target>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            table: RouteTable::new(dir.path(), None).unwrap(),
            dir,
            targets: BTreeMap::new(),
        }
    }

    fn set(&mut self, host: &str, address: SocketAddrV4) -> Vec<String> {
        let target = Target {
            instance: "i-0000000000000001".parse().unwrap(),
            address,
            policy: Default::default(),
        };
        self.targets.insert(host.parse().unwrap(), target);
        let (opened, failed) = self.table.open(&self.targets);
        assert!(failed.is_empty(), "{failed:?}");
        opened.iter().map(ToString::to_string).collect()
    }

    fn close(&mut self, host: &str) {
        self.targets.remove(&host.parse::<HostName>().unwrap());
        let closed = self.table.close_others(&self.targets);
        assert_eq!(closed.len(), 1);
    }

    async fn connect(&self, host: &str) -> UnixStream {
        UnixStream::connect(self.dir.path().join(host))
            .await
            .unwrap()
    }

    async fn connections(&self) -> u32 {
        self.table
            .report()
            .await
            .iter()
            .map(|r| r.connections)
            .sum()
    }
}

async fn ask(stream: &mut UnixStream, what: &str) -> String {
    stream.write_all(what.as_bytes()).await.unwrap();
    hear(stream).await
}

/// The next piece, empty at the end of the connection.
async fn hear(stream: &mut UnixStream) -> String {
    let mut buffer = vec![0; 4096];
    let read = timeout(Duration::from_secs(5), stream.read(&mut buffer));
    // A reset is an end, too.
    let length = read.await.expect("an answer in time").unwrap_or(0);
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn a_route_leads_to_its_target_and_others_do_not_notice_changes() {
    let mut lab = Lab::new();
    let (a, b) = (echo("a").await, echo("b").await);
    assert_eq!(lab.set("a.x", a), ["a.x"]);
    let mut open = lab.connect("a.x").await;
    assert_eq!(ask(&mut open, "1").await, "a:1");
    for _ in 0..3 {
        assert_eq!(lab.set("b.x", b), ["b.x"]);
        assert_eq!(ask(&mut lab.connect("b.x").await, "2").await, "b:2");
        lab.close("b.x");
        assert_eq!(ask(&mut open, "3").await, "a:3");
    }
    assert!(lab.set("a.x", a).is_empty(), "nothing changed");
}

#[tokio::test]
async fn sockets_are_for_caddys_group_and_stale_ones_go() {
    let mut lab = Lab::new();
    lab.set("a.x", echo("a").await);
    let metadata = std::fs::metadata(lab.dir.path().join("a.x")).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let directory = std::fs::metadata(lab.dir.path()).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o750);
    RouteTable::new(lab.dir.path(), None).unwrap();
    assert_eq!(std::fs::read_dir(lab.dir.path()).unwrap().count(), 0);
    // The first table finds its socket gone and makes it anew.
    assert_eq!(lab.table.open(&lab.targets).0.len(), 1);
    assert_eq!(ask(&mut lab.connect("a.x").await, "1").await, "a:1");
}

#[tokio::test]
async fn after_a_change_the_next_request_goes_to_the_new_target() {
    let mut lab = Lab::new();
    let (a, b) = (echo("a").await, echo("b").await);
    lab.set("a.x", a);
    let mut open = lab.connect("a.x").await;
    assert_eq!(ask(&mut open, "1").await, "a:1");
    assert_eq!(lab.set("a.x", b), ["a.x"]);
    assert_eq!(ask(&mut lab.connect("a.x").await, "2").await, "b:2");
    assert_eq!(ask(&mut open, "3").await, "b:3");
    assert_eq!(ask(&mut open, "4").await, "b:4");
}

#[tokio::test]
async fn a_request_under_way_finishes_where_it_began() {
    let mut lab = Lab::new();
    let slow = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let SocketAddr::V4(address) = slow.local_addr().unwrap() else {
        panic!("not IPv4");
    };
    lab.set("a.x", address);
    let mut client = lab.connect("a.x").await;
    client.write_all(b"head").await.unwrap();
    let (mut app, _) = slow.accept().await.unwrap();
    let mut buffer = [0; 8];
    app.read_exact(&mut buffer[..4]).await.unwrap();
    lab.set("a.x", echo("b").await);
    client.write_all(b"body").await.unwrap();
    app.read_exact(&mut buffer[4..]).await.unwrap();
    assert_eq!(&buffer, b"headbody");
    app.write_all(b"done").await.unwrap();
    assert_eq!(hear(&mut client).await, "done");
    assert_eq!(ask(&mut client, "next").await, "b:next");
}

#[tokio::test]
async fn a_closed_route_ends_its_connections_and_its_socket() {
    let mut lab = Lab::new();
    lab.set("a.x", echo("a").await);
    let mut open = lab.connect("a.x").await;
    assert_eq!(ask(&mut open, "1").await, "a:1");
    lab.close("a.x");
    assert_eq!(hear(&mut open).await, "");
    assert!(
        UnixStream::connect(lab.dir.path().join("a.x"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let mut lab = Lab::new();
    lab.set("a.x", echo("a").await);
    let mut open = lab.connect("a.x").await;
    assert_eq!(ask(&mut open, "1").await, "a:1");
    open.shutdown().await.unwrap();
    assert_eq!(hear(&mut open).await, "bye");
    assert_eq!(hear(&mut open).await, "");
    while lab.connections().await > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_reader_stalls_nobody_else() {
    let mut lab = Lab::new();
    lab.set("a.x", echo("a").await);
    let mut deaf = lab.connect("a.x").await;
    let flood = async {
        let piece = vec![b'x'; 64 * 1024];
        while deaf.write_all(&piece).await.is_ok() {}
    };
    assert!(
        timeout(Duration::from_millis(300), flood).await.is_err(),
        "it is held back"
    );
    let mut other = lab.connect("a.x").await;
    assert_eq!(ask(&mut other, "1").await, "a:1");
    assert_eq!(lab.connections().await, 2);
}

#[tokio::test]
async fn many_bytes_arrive_whole() {
    let mut lab = Lab::new();
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let SocketAddr::V4(address) = sink.local_addr().unwrap() else {
        panic!("not IPv4");
    };
    lab.set("a.x", address);
    let mut client = lab.connect("a.x").await;
    let sent: Vec<u8> = (0..5_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let expected = sent.clone();
    let sender = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        hear(&mut client).await
    });
    let (mut app, _) = sink.accept().await.unwrap();
    let mut received = Vec::new();
    app.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
    app.write_all(b"thanks").await.unwrap();
    drop(app);
    assert_eq!(sender.await.unwrap(), "thanks");
}

#[tokio::test]
async fn health_is_tried_when_asked() {
    let mut lab = Lab::new();
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let SocketAddr::V4(closed) = gone.local_addr().unwrap() else {
        panic!("not IPv4");
    };
    drop(gone);
    lab.set("dead.x", closed);
    lab.set("live.x", echo("a").await);
    let report = lab.table.report().await;
    let healthy: Vec<_> = report
        .iter()
        .map(|r| (r.host.as_str(), r.healthy))
        .collect();
    assert_eq!(healthy, [("dead.x", false), ("live.x", true)]);
    for (host, healthy) in [
        ("dead.x", Some(false)),
        ("live.x", Some(true)),
        ("no.x", None),
    ] {
        let one = lab.table.report_of(&host.parse().unwrap()).await;
        assert_eq!(one.map(|r| r.healthy), healthy, "{host}");
    }
    let mut client = lab.connect("dead.x").await;
    assert_eq!(
        hear(&mut client).await,
        "",
        "a dead app ends the connection at once"
    );
}
