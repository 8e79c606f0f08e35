//! Peers that answer garbage, too much, too slowly or not at all: each costs bounded memory and time, and
//! none is taken for an answer.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use api::exec::ExecRequest;
use link::LinkError;
use link::relay::{DialError, dial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::lab::{ADDRESS, APPLIANCE, Lab, conduct, id};

/// An agent that takes any request and then sends `head` once and `rest` for ever, with this pause.
async fn answering(head: &'static str, rest: &'static [u8], pause: Duration) -> Lab {
    let lab = Lab::new().await;
    let conduct = conduct(move |mut stream| async move {
        let mut request = [0; 4096];
        if stream.read(&mut request).await.unwrap_or_default() == 0 {
            return;
        }
        let mut sent = stream.write_all(head.as_bytes()).await;
        while sent.is_ok() && !rest.is_empty() {
            sent = stream.write_all(rest).await;
            let _ = stream.flush().await;
            tokio::time::sleep(pause).await;
        }
        let _ = stream.shutdown().await;
    });
    lab.serve_with(lab.bundle(), conduct).await;
    lab
}

const OK: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn what_is_no_whole_answer_is_an_unknown_outcome() {
    let now = Duration::ZERO;
    let later = Duration::from_millis(20);
    let cases: [(&str, &'static str, &'static [u8], Duration); 9] = [
        ("no HTTP", "220 mail ready\r\n", b"", now),
        (
            "garbage JSON",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
            b"",
            now,
        ),
        (
            "another shape",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            b"",
            now,
        ),
        (
            "cut off",
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
            b"",
            now,
        ),
        (
            "an endless header",
            "HTTP/1.1 200 OK\r\n",
            b"X-A: aaaaaaaaaaaaaaaa\r\n",
            now,
        ),
        (
            "an endless line",
            "HTTP/1.1 200 OK\r\nX-A: ",
            &[b'a'; 4096],
            now,
        ),
        ("a slow header", "HTTP/1.1 200 OK\r\n", b"X-A: a\r\n", later),
        ("a slow body", OK, b"1\r\na\r\n", later),
        ("nothing", "", b"", now),
    ];
    for (case, head, rest, pause) in cases {
        let lab = answering(head, rest, pause).await;
        let begun = Instant::now();
        let deadline = Duration::from_millis(500);
        let answered = lab
            .link
            .exec(&lab.peer, &ExecRequest::default(), deadline)
            .await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{case}");
        assert!(
            matches!(answered, Err(LinkError::OutcomeUnknown { .. })),
            "{case}: {answered:?}"
        );
        assert!(answered.unwrap_err().to_string().len() < 1000, "{case}");
    }
}

/// Whole chunks of one byte.
static CHUNKS: [u8; 60_000] = {
    let chunk = *b"1\r\na\r\n";
    let mut chunks = [0; 60_000];
    let mut at = 0;
    while at < chunks.len() {
        chunks[at] = chunk[at % chunk.len()];
        at += 1;
    }
    chunks
};

#[tokio::test]
async fn an_endless_answer_ends_at_its_bound() {
    // Health may be 64 KiB; this ends long before the deadline of ten seconds.
    let lab = answering(OK, &CHUNKS, Duration::ZERO).await;
    let error = lab.link.health(&lab.peer).await.unwrap_err();
    assert!(
        error.to_string().contains("larger than 65536 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn an_agent_that_says_it_is_another_one_is_not_well() {
    let health = "HTTP/1.1 200 OK\r\nContent-Length: 61\r\n\r\n\
        {\"status\":\"ok\",\"version\":\"1\",\"instance\":\"i-2\",\"uptime_ms\":1}\n";
    let lab = answering(health, b"", Duration::ZERO).await;
    let error = lab.link.health(&lab.peer).await.unwrap_err();
    assert!(matches!(error, LinkError::Garbage { .. }), "{error}");
}

#[tokio::test]
async fn an_agent_that_never_speaks_tls_costs_no_more_than_the_patience() {
    let lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    lab.lead_to(listener.local_addr().unwrap());
    let begun = Instant::now();
    let patience = Duration::from_millis(200);
    let error = lab.link.wait_ready(&lab.peer, patience).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(matches!(error, LinkError::NotReachable { .. }), "{error}");
}

#[tokio::test]
async fn relays_that_refuse_lie_or_hang_open_no_tunnel() {
    let lab = Lab::new().await;
    let target = SocketAddrV4::new(ADDRESS, 39383);
    let nonce = [1; 16];
    let mut refusal = nonce.to_vec();
    refusal.extend_from_slice(b"\x01\xff\xffno such address");
    let check = async |sent: Vec<u8>, hold: bool| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&sent).await.unwrap();
            let mut taken = Vec::new();
            if hold {
                let _ = stream.read_to_end(&mut taken).await;
            } else {
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut taken).await;
            }
        });
        let deadline = Duration::from_millis(300);
        let begun = Instant::now();
        let error = dial(
            lab.authority.tokens(),
            relay,
            &id(APPLIANCE),
            target,
            deadline,
        )
        .await
        .unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(3));
        served.await.unwrap();
        error
    };
    let error = check(refusal, false).await;
    assert!(
        matches!(&error, DialError::Refused { reason, .. } if reason == "no such address"),
        "{error}"
    );
    for (sent, hold) in [
        (Vec::new(), false),
        (Vec::new(), true),
        (nonce.to_vec(), true),
        ([nonce.as_slice(), b"\x02"].concat(), true),
        (b"HTTP/1.1 400".to_vec(), false),
    ] {
        let error = check(sent.clone(), hold).await;
        assert!(
            matches!(error, DialError::NotReachable { .. }),
            "{sent:?}: {error}"
        );
    }
}
