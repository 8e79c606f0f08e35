//! Waits until an instance of the zone answers: a TCP connection, or an HTTP request with a status
//! below 400. Tries again and again until the deadline, and tells what it saw last.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use wire::gateway::{ProbeReport, ProbeRequest, Readiness};

/// One attempt ends after this, so that a guest that accepts and says nothing is asked again.
const ATTEMPT: Duration = Duration::from_secs(5);
/// One try to connect ends after this. A guest that is just starting drops or does not hear the first
/// packet, and the kernel sends the next one only after a second.
const CONNECT: Duration = Duration::from_millis(60);
/// Pause between attempts. A refused connection costs next to nothing, and every pause is waiting.
const PAUSE: Duration = Duration::from_millis(10);

/// Probes until the instance is ready or the deadline has passed.
pub async fn run(request: &ProbeRequest) -> ProbeReport {
    let began = Instant::now();
    let deadline = Duration::from_millis(request.deadline_ms);
    let mut last = String::from("nothing was tried");
    loop {
        let left = deadline.saturating_sub(began.elapsed());
        if left.is_zero() {
            return report(false, last, began);
        }
        match tokio::time::timeout(left.min(ATTEMPT), attempt(request)).await {
            Ok(Ok(seen)) => return report(true, seen, began),
            Ok(Err(seen)) => last = seen,
            Err(_) => last = "no answer in time".into(),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn report(ready: bool, last: String, began: Instant) -> ProbeReport {
    ProbeReport {
        ready,
        last,
        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

async fn attempt(request: &ProbeRequest) -> Result<String, String> {
    let address = SocketAddr::from((request.address, request.port));
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| "nobody takes the connection".to_owned())?
        .map_err(|e| e.to_string())?;
    let Readiness::Http { path } = &request.readiness else {
        return Ok("it takes connections".into());
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let question = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, "proximity-probe")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    // Driven apart: a peer that answers and hangs up at once has answered all the same.
    let driver = tokio::spawn(connection);
    let answer = sender
        .send_request(question)
        .await
        .map_err(|e| e.to_string());
    // Only the status counts; the body is never read.
    driver.abort();
    let answer = answer?;
    let status = answer.status();
    if status.as_u16() < 400 {
        Ok(format!("status {status}"))
    } else {
        Err(format!("status {status}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn probed(
        answers: &'static [&'static str],
        readiness: Readiness,
        deadline_ms: u64,
    ) -> ProbeReport {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers.iter().chain(answers.last().into_iter().cycle()) {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0u8; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        run(&ProbeRequest {
            address: [127, 0, 0, 1].into(),
            port,
            readiness,
            deadline_ms,
        })
        .await
    }

    #[tokio::test]
    async fn an_error_page_is_no_answer_until_it_ends() {
        let http = Readiness::Http { path: "/".into() };
        let bad = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let seen = probed(
            Box::leak(Box::new([bad, "garbage", good])),
            http.clone(),
            5000,
        )
        .await;
        assert!(seen.ready, "{seen:?}");
        let seen = probed(Box::leak(Box::new([bad])), http, 1000).await;
        assert!(!seen.ready && seen.last.contains("503"), "{seen:?}");
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on() {
        let request = ProbeRequest {
            address: [127, 0, 0, 1].into(),
            port: 9,
            readiness: Readiness::Tcp,
            deadline_ms: 50,
        };
        let seen = run(&request).await;
        assert!(!seen.ready && seen.last.contains("refused"), "{seen:?}");
        assert!(probed(&[""], Readiness::Tcp, 5000).await.ready);
    }
}
