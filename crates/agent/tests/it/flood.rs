//! More strangers than there are seats: the agent's memory stays flat, and somebody with a token is heard
//! all the while. A stranger who was refused loses its seat to the next one, so that almost every request
//! comes with a connection of its own. The testbed sends a hundred thousand to the agent as it is shipped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::door::Agent;

/// Requests over TLS.
const ENCRYPTED: u32 = 1_000;
/// Requests to the unix socket, which has the same seats and the same checks.
const PLAIN: u32 = 3_000;
/// More than there are seats.
const STRANGERS: u32 = 200;
/// What the agent may grow by: buffers of the connections that it takes at a time.
const GROWTH_MAX_KIB: u64 = 12 << 10;

/// Sends requests without a token, over one connection after the other, until enough were answered.
async fn stranger(agent: Arc<Agent>, encrypted: bool, left: Arc<AtomicU32>) {
    while left.load(Ordering::Relaxed) > 0 {
        let caller = if encrypted {
            agent.caller().await
        } else {
            agent.plain_caller().await
        };
        let Ok(mut caller) = caller else {
            // Pushed out, or too many wait to be let in.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        while let Ok(answer) = caller.call("PUT", "/identity", &[], "").await {
            assert_eq!(answer.status, 401);
            let one_less = |left: u32| Some(left.saturating_sub(1));
            let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        }
    }
}

#[tokio::test]
async fn unauthenticated_requests_cost_no_memory_and_starve_nobody() {
    let agent = Arc::new(Agent::start());
    agent.answers().await;
    let before = agent.resident_kib();
    // In an event loop of their own: they must not stand in the way of the caller on its own side.
    let elsewhere = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    for (encrypted, requests) in [(true, ENCRYPTED), (false, PLAIN)] {
        let began = Instant::now();
        let left = Arc::new(AtomicU32::new(requests));
        let strangers: Vec<_> = (0..STRANGERS)
            .map(|_| elsewhere.spawn(stranger(agent.clone(), encrypted, left.clone())))
            .collect();
        let (mut peak, mut slowest, mut callers) = (before, Duration::ZERO, 0);
        while left.load(Ordering::Relaxed) > 0 {
            slowest = slowest.max(agent.answers().await);
            peak = peak.max(agent.resident_kib());
            callers += 1;
        }
        for stranger in strangers {
            stranger.await.unwrap();
        }
        println!(
            "{requests} requests in {:?}; resident {before} KiB, at most {peak} KiB; {callers} new callers with a token, the slowest heard after {slowest:?}",
            began.elapsed()
        );
        assert!(callers > 0);
        assert!(peak < before + GROWTH_MAX_KIB, "{before} to {peak} KiB");
    }
    elsewhere.shutdown_background();
}
