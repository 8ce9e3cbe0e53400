//! Of several candidates one leads; another follows when it steps down, fails or is shut out.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windlass_informers::leader::{LeaderConfig, lead};

use crate::world::{World, eventually};

struct Candidate {
    leads: watch::Receiver<bool>,
    cancel: CancellationToken,
}

/// A candidate whose work lasts as long as its term.
fn candidate(client: Client, identity: &str) -> Candidate {
    let (tell, leads) = watch::channel(false);
    let (tell, cancel) = (Arc::new(tell), CancellationToken::new());
    let config = LeaderConfig {
        // Nobody waits for these: what ends here is released or stolen, and on a busy machine no term may end by itself.
        lease_duration: Duration::from_secs(60),
        renew_deadline: Duration::from_secs(40),
        retry_period: Duration::from_millis(100),
        ..LeaderConfig::new("test", identity)
    };
    let stop = cancel.clone();
    tokio::spawn(async move {
        lead(client, config, stop, |term| {
            let tell = Arc::clone(&tell);
            async move {
                tell.send_replace(true);
                term.cancelled().await;
                tell.send_replace(false);
            }
        })
        .await;
    });
    Candidate { leads, cancel }
}

impl Candidate {
    async fn becomes(&mut self, leading: bool) {
        let waiting = self.leads.wait_for(|leads| *leads == leading);
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .expect("in time")
            .unwrap();
    }
}

#[tokio::test]
async fn one_leads_at_a_time_and_a_released_lease_is_taken_at_once() {
    let world = World::start(0).await;
    let mut first = candidate(world.client.clone(), "first");
    first.becomes(true).await;
    let mut second = candidate(world.client.clone(), "second");
    // Long enough for the second to have tried several times.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!*second.leads.borrow());
    first.cancel.cancel();
    first.becomes(false).await;
    second.becomes(true).await;
}

#[tokio::test]
async fn a_leader_whose_lease_was_taken_stops_its_work_and_comes_back_when_it_expires() {
    let world = World::start(0).await;
    let mut leader = candidate(world.client.clone(), "leader");
    leader.becomes(true).await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "kube-system");
    let theft = json!({"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 1}});
    leases
        .patch("test", &PatchParams::default(), &Patch::Merge(theft))
        .await
        .unwrap();
    leader.becomes(false).await;
    leader.becomes(true).await;
    eventually("the transition is counted", async || {
        let spec = leases.get("test").await.unwrap().spec.unwrap();
        spec.holder_identity.as_deref() == Some("leader") && spec.lease_transitions == Some(1)
    })
    .await;
}
