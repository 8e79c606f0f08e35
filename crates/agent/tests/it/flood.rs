//! A hundred thousand requests of strangers: the agent's memory stays flat, and somebody with a
//! token is heard all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::door::Agent;

const REQUESTS: u32 = 100_000;
const STRANGERS: u32 = 200;
/// What the agent may grow by: buffers of the connections that it takes at a time.
const GROWTH_MAX_KIB: u64 = 12 << 10;

/// Sends requests without a token, over one connection after the other, until enough were answered.
async fn stranger(agent: Arc<Agent>, answered: Arc<AtomicU32>) {
    while answered.load(Ordering::Relaxed) < REQUESTS {
        let Ok(mut caller) = agent.caller().await else {
            continue;
        };
        while let Ok(answer) = caller.call("PUT", "/identity", &[], "").await {
            assert_eq!(answer.status, 401);
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn unauthenticated_requests_cost_no_memory_and_starve_nobody() {
    let agent = Arc::new(Agent::start());
    agent.answers().await;
    let before = agent.resident_kib();
    let began = Instant::now();
    let answered = Arc::new(AtomicU32::new(0));
    // In an event loop of their own: they must not stand in the way of the caller on its own side.
    let elsewhere = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let strangers: Vec<_> = (0..STRANGERS)
        .map(|_| elsewhere.spawn(stranger(agent.clone(), answered.clone())))
        .collect();
    let (mut peak, mut slowest, mut callers) = (before, Duration::ZERO, 0);
    while answered.load(Ordering::Relaxed) < REQUESTS {
        slowest = slowest.max(agent.answers().await);
        peak = peak.max(agent.resident_kib());
        callers += 1;
    }
    for stranger in strangers {
        stranger.await.unwrap();
    }
    elsewhere.shutdown_background();
    println!(
        "{REQUESTS} requests in {:?}; resident {before} KiB, at most {peak} KiB; {callers} new callers with a token, the slowest heard after {slowest:?}",
        began.elapsed()
    );
    assert!(callers > 0);
    assert!(peak < before + GROWTH_MAX_KIB, "{before} to {peak} KiB");
}
