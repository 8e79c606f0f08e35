//! Identities are renewed before they end, and never forgotten half-way.

use crate::ruled::Ruled;

fn calls(ruled: &Ruled, name: &str) -> Vec<String> {
    let calls = ruled.node.calls.lock().unwrap();
    let of = |call: &&String| call.split(' ').next() == Some(name);
    calls.iter().filter(of).cloned().collect()
}

#[tokio::test]
async fn a_guest_is_told_before_its_identity_is_put_in_place() {
    let ruled = Ruled::with_app("web").await;
    let id = ruled.id("web").await;
    ruled.node.fail("renew", "its agent does not answer");
    ruled.node.due.lock().unwrap().insert(id.clone());
    // The timer looks again and again; nothing is put in place that nobody was told.
    ruled
        .node
        .until(|_| calls(&ruled, "renew").len() >= 2)
        .await;
    assert!(calls(&ruled, "place").is_empty());
    ruled.node.mend("renew");
    ruled
        .node
        .until(|node| node.due.lock().unwrap().is_empty())
        .await;
    assert_eq!(calls(&ruled, "place"), [format!("place {id}")]);
}

#[tokio::test]
async fn a_relay_is_renewed_too() {
    let ruled = Ruled::up().await;
    let appliance = ruled
        .node
        .gateways
        .lock()
        .unwrap()
        .keys()
        .next()
        .unwrap()
        .clone();
    ruled.node.due.lock().unwrap().insert(appliance.clone());
    ruled
        .node
        .until(|node| node.due.lock().unwrap().is_empty())
        .await;
    assert_eq!(calls(&ruled, "renew"), [format!("renew {appliance}")]);
}
