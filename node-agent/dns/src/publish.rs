//! Puts this node's DNS server behind the kube-dns Service, as an EndpointSlice of its own for each family.
//!
//! Owned by who the server lives and dies with: the Node or, where it runs in a pod of a DaemonSet, that pod. Whoever
//! removes that one, with all its rights, has not to be told of the slice. The ordinary Service machinery then leads
//! clients here, on this node first (the Service's trafficDistribution), elsewhere while this one does not serve.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
/// Who made the slice; policies take its endpoints for what the Service's pods would be.
pub const MANAGED_BY: &str = "dns.windlass.dev";

/// CoreDNS' port.
pub const METRICS_PORT: u16 = 9153;

/// What is said of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    Yes,
    /// It still answers, for those who have no other.
    Leaving,
    No,
}

/// A pod in kube-system.
#[derive(Clone, Debug)]
pub struct OwnPod {
    pub name: String,
    pub uid: String,
}

/// A node's DNS server, as clients find it.
#[derive(Clone, Debug)]
pub struct Publication {
    pub node_name: String,
    /// The pod that the server runs in, if it does.
    pub pod: Option<OwnPod>,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
}

impl Publication {
    /// Says whether the server serves. Without it, clients go to other nodes' servers.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn set(&self, client: &Client, serving: Serving) -> kube::Result<()> {
        let owner = self.owner(client).await?;
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
        let params = PatchParams::apply("windlass-dns").force();
        for address in &self.addresses {
            let slice = self.slice(*address, &owner, serving);
            slices
                .patch(&self.name(*address), &params, &Patch::Apply(&slice))
                .await?;
        }
        Ok(())
    }

    /// Takes the server out of the Service.
    ///
    /// # Errors
    /// What the API server answers; a slice that is not there is withdrawn.
    pub async fn withdraw(&self, client: &Client) -> kube::Result<()> {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
        for address in &self.addresses {
            match slices
                .delete(&self.name(*address), &DeleteParams::default())
                .await
            {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }

    async fn owner(&self, client: &Client) -> kube::Result<Value> {
        let (kind, name, uid) = match &self.pod {
            Some(pod) => ("Pod", &pod.name, pod.uid.clone()),
            None => {
                let nodes: Api<Node> = Api::all(client.clone());
                let uid = nodes.get(&self.node_name).await?.metadata.uid;
                ("Node", &self.node_name, uid.unwrap_or_default())
            }
        };
        Ok(json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}))
    }

    fn name(&self, address: IpAddr) -> String {
        let family = if address.is_ipv4() { "" } else { "-ipv6" };
        format!("{SERVICE}-{}{family}", self.node_name)
    }

    fn slice(&self, address: IpAddr, owner: &Value, serving: Serving) -> Value {
        let is = |those: &[Serving]| those.contains(&serving);
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.name(address),
                "namespace": NAMESPACE,
                "labels": {
                    "kubernetes.io/service-name": SERVICE,
                    "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
                },
                "ownerReferences": [owner],
            },
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{
                "addresses": [address.to_string()],
                "conditions": {
                    "ready": is(&[Serving::Yes]),
                    "serving": is(&[Serving::Yes, Serving::Leaving]),
                    "terminating": is(&[Serving::Leaving]),
                },
                "nodeName": self.node_name,
            }],
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": self.port},
                {"name": "dns-tcp", "protocol": "TCP", "port": self.port},
                {"name": "metrics", "protocol": "TCP", "port": METRICS_PORT},
            ],
        })
    }
}
