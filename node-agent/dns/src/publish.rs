//! Puts this node's DNS server behind the kube-dns Service, as an EndpointSlice of its own.
//!
//! One slice a node, owned by the Node object, so that it goes with it; the ordinary Service machinery then
//! leads clients here, on this node first (the Service's trafficDistribution), elsewhere when this one is gone.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::DnsOptions;

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Publishes the endpoint, and takes it back when `stop` is asked for.
pub(crate) async fn keep(client: Client, options: DnsOptions, stop: CancellationToken) {
    let name = format!("{SERVICE}-{}", options.node_name);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    loop {
        match publish(&client, &slices, &name, &options).await {
            Ok(()) => break,
            Err(error) => {
                tracing::warn!(slice = name, %error, "kube-dns endpoint not published yet");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    stop.cancelled().await;
    if let Err(error) = slices.delete(&name, &DeleteParams::default()).await {
        tracing::warn!(slice = name, %error, "kube-dns endpoint not withdrawn");
    }
}

async fn publish(
    client: &Client,
    slices: &Api<EndpointSlice>,
    name: &str,
    options: &DnsOptions,
) -> kube::Result<()> {
    let node = Api::<Node>::all(client.clone())
        .get(&options.node_name)
        .await?;
    let port = options.listen.port();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": SERVICE,
                "endpointslice.kubernetes.io/managed-by": "dns.windlass.dev",
            },
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "Node",
                "name": options.node_name,
                "uid": node.metadata.uid.unwrap_or_default(),
            }],
        },
        "addressType": if options.listen.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{
            "addresses": [options.listen.ip().to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": options.node_name,
        }],
        "ports": [
            {"name": "dns", "protocol": "UDP", "port": port},
            {"name": "dns-tcp", "protocol": "TCP", "port": port},
        ],
    });
    let params = PatchParams::apply("windlass-dns").force();
    slices
        .patch(name, &params, &Patch::Apply(&slice))
        .await
        .map(drop)
}
