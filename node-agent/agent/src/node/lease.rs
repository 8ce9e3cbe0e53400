//! The heartbeat: a Lease in kube-node-lease, renewed every ten seconds.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, ObjectMeta, PostParams};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-node-lease";
const RENEW: Duration = Duration::from_secs(10);
/// After a failure the next try comes soon: the node counts as lost after 40 seconds.
const RETRY: Duration = Duration::from_secs(1);
const DURATION_SECONDS: i32 = 40;

/// Renews the node's Lease until told to stop.
pub(crate) async fn keep(client: kube::Client, node: String, stop: CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let nodes: Api<Node> = Api::all(client);
    // The last one written: with its version a renewal is a single request.
    let mut held: Option<Lease> = None;
    loop {
        let pause = match renew(&leases, &nodes, &node, held.take()).await {
            Ok(lease) => {
                held = Some(lease);
                RENEW
            }
            Err(error) => {
                tracing::warn!(node, %error, "lease not renewed");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn renew(
    leases: &Api<Lease>,
    nodes: &Api<Node>,
    name: &str,
    held: Option<Lease>,
) -> kube::Result<Lease> {
    let known = match held {
        Some(lease) => Some(lease),
        None => leases.get_opt(name).await?,
    };
    let params = PostParams::default();
    match known {
        Some(mut lease) => {
            let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
            spec.holder_identity = Some(name.to_owned());
            spec.lease_duration_seconds = Some(DURATION_SECONDS);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            leases.replace(name, &params, &lease).await
        }
        None => {
            // Owned by the Node, so that it goes with it.
            let node = nodes.get(name).await?;
            let owner = OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid: node.metadata.uid.unwrap_or_default(),
                ..OwnerReference::default()
            };
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    namespace: Some(NAMESPACE.to_owned()),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(name.to_owned()),
                    lease_duration_seconds: Some(DURATION_SECONDS),
                    renew_time: Some(MicroTime(Timestamp::now())),
                    ..LeaseSpec::default()
                }),
            };
            leases.create(&params, &lease).await
        }
    }
}
