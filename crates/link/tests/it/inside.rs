//! Guests of the controller's own machine: the way inside is taken where it leads to the agent, and believed no more
//! than the way through the relay.

use axum::Router;
use axum::routing::get;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixListener};

use crate::lab::{Inside, Lab, healthy};

async fn lab() -> Lab {
    Lab::with(Router::new().route("/health", get(async || healthy()))).await
}

/// Listens as the socket inside and does this with each connection.
fn inside<F>(lab: &Lab, answer: impl Fn(tokio::net::UnixStream) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let path = lab.directory.path().join("inside");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    *lab.inside.lock().unwrap() = Inside::Socket(path);
}

#[tokio::test]
async fn an_agent_inside_is_reached_without_the_relay() {
    let lab = lab().await;
    let agent = lab.agent().unwrap();
    inside(&lab, move |mut stream| async move {
        let mut agent = TcpStream::connect(agent).await.unwrap();
        // The end of a connection is no failure of the test.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut agent).await;
    });
    lab.link.health(&lab.peer).await.unwrap();
    assert_eq!(lab.seen.tunnels(), 0);
}

#[tokio::test]
async fn whoever_took_the_agents_name_inside_is_passed_by() {
    let lab = lab().await;
    inside(&lab, async |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    });
    lab.link.health(&lab.peer).await.unwrap();
    assert_eq!(lab.seen.tunnels(), 1);
}

#[tokio::test]
async fn an_agent_that_has_its_port_alone_is_reached_by_the_relay() {
    let lab = lab().await;
    for (inside, tunnels) in [(Inside::Nobody, 1), (Inside::NoWay, 2)] {
        *lab.inside.lock().unwrap() = inside;
        lab.link.forget(&lab.peer.instance);
        lab.link.health(&lab.peer).await.unwrap();
        assert_eq!(lab.seen.tunnels(), tunnels);
    }
}
