//! Policies reach the appliance before the guest they are for runs, and whenever they change.

use api::egress::Egress;
use api::sandbox::SandboxRequest;

use crate::ruled::{Ruled, code};

fn request(name: &str, egress: Egress) -> SandboxRequest {
    SandboxRequest {
        name: Some(name.into()),
        egress,
        ..SandboxRequest::default()
    }
}

#[tokio::test]
async fn a_guest_with_a_policy_does_not_start_before_the_appliance_knows() {
    let ruled = Ruled::up().await;
    ruled.node.fail("apply", "the relay does not answer");
    let (operation, _) = ruled
        .controller
        .create_sandbox(&request("lab", Egress::Off))
        .await
        .unwrap();
    let failure = ruled.end(&operation).await.failure.unwrap();
    assert_eq!(failure.step, "start");
    assert_eq!(ruled.guest(&ruled.id("lab").await), Some(false));
    ruled.node.mend("apply");

    let (operation, _) = ruled
        .controller
        .create_sandbox(&request("box", Egress::Off))
        .await
        .unwrap();
    assert_eq!(ruled.end(&operation).await.failure, None);
    let told: Vec<_> = ruled.gateway().egress.iter().map(|r| r.source).collect();
    let own = ruled.record("box").await.address;
    assert!(told.contains(&own), "{told:?}");
    let shown = ruled.controller.sandbox("box").await.unwrap();
    assert_eq!(shown.egress, Egress::Off);
}

#[tokio::test]
async fn a_new_policy_is_told_at_once_or_when_the_appliance_is_back() {
    let ruled = Ruled::up().await;
    let operation = ruled.deploy("web").await.unwrap();
    assert_eq!(ruled.end(&operation).await.failure, None);
    assert_eq!(ruled.gateway().egress, []);
    assert_eq!(ruled.gateway().published.len(), 1);

    let listed: Egress = "example.com,8.8.8.8".parse().unwrap();
    ruled.controller.set_egress("web", &listed).await.unwrap();
    assert_eq!(
        ruled.gateway().egress[0].destinations,
        listed.destinations()
    );
    assert_eq!(ruled.controller.egress("web").await.unwrap().egress, listed);

    ruled.node.fail("apply", "the relay does not answer");
    let told = ruled.controller.set_egress("web", &Egress::Off).await;
    let problem = told.unwrap_err().problem();
    assert!(problem.hint.unwrap().contains("written down"));
    assert_eq!(ruled.record("web").await.egress, Egress::Off);
    ruled.node.mend("apply");
    let ruled = ruled.restarted().await;
    ruled
        .node
        .until(|node| {
            let gateways = node.gateways.lock().unwrap();
            gateways
                .values()
                .all(|g| g.egress.iter().all(|r| r.destinations.is_empty()))
        })
        .await;
    let internet = Egress::Internet;
    ruled.controller.set_egress("web", &internet).await.unwrap();
    assert_eq!(ruled.gateway().egress, []);
    let nobody = ruled.controller.set_egress("nobody", &internet).await;
    assert_eq!(code(nobody), "unknown_instance");
}
