//! Connections to ports of this machine's loopback, through a real server with upgrades.

use std::net::SocketAddr;

use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::served::{call, request, send, serve};

const UPGRADE: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "tcp")];

async fn open(address: SocketAddr, port: u16) -> Response<hyper::body::Incoming> {
    let uri = format!("/forward?port={port}");
    send(address, request(Method::POST, &uri, &UPGRADE, ""))
        .await
        .unwrap()
}

/// Reads all, then answers it doubled.
async fn doubler(bind: &str) -> u16 {
    let listener = TcpListener::bind(bind).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    port
}

#[tokio::test]
async fn bytes_pass_both_ways_after_one_way_has_ended() {
    let agent = serve(agent::forward::router()).await;
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let answer = open(agent, doubler(bind).await).await;
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS, "{bind}");
        assert_eq!(answer.headers()["upgrade"], "tcp");
        let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let sent: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
        tunnel.write_all(&sent).await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut received = Vec::new();
        tunnel.read_to_end(&mut received).await.unwrap();
        assert!(received == [sent.as_slice(), &sent].concat());
    }
}

#[tokio::test]
async fn nobody_there_and_wrong_requests_are_problems() {
    let agent = serve(agent::forward::router()).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let uri = format!("/forward?port={port}");
    let refused = call(agent, request(Method::POST, &uri, &UPGRADE, "")).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (502, "connection_refused")
    );
    let plain = call(agent, request(Method::POST, &uri, &[], "")).await;
    assert_eq!(plain.code(), "upgrade_required");
    assert_eq!(plain.header("upgrade"), Some("tcp"));
    for query in ["", "?port=0", "?port=65536", "?port=80&host=10.0.0.1"] {
        let uri = format!("/forward{query}");
        let wrong = call(agent, request(Method::POST, &uri, &UPGRADE, "")).await;
        assert_eq!(wrong.code(), "bad_request", "{query}");
    }
}

#[tokio::test]
async fn more_connections_than_the_bound_are_refused_and_closed_ones_count_no_more() {
    let agent = serve(agent::forward::router()).await;
    let port = doubler("127.0.0.1:0").await;
    let mut tunnels = Vec::new();
    for _ in 0..256 {
        let answer = open(agent, port).await;
        tunnels.push(hyper::upgrade::on(answer).await.unwrap());
    }
    assert_eq!(open(agent, port).await.status(), 503);
    drop(tunnels);
    while open(agent, port).await.status() == 503 {
        tokio::task::yield_now().await;
    }
}
