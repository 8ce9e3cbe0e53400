//! The Node authorizer: a node's agent reads the Secrets, ConfigMaps and claims of the pods that are bound to its
//! node, and of no other.
//!
//! It decides by the pods as the cache has them. An agent learns of a pod from that cache, so what it asks for
//! next is known; and it asks once for an object that it then watches, so looking through the node's pods is
//! cheaper than keeping a graph of all pods.

use std::sync::Arc;

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::selector::FieldSelector;

use super::{Attributes, Authorizer, Decision};
use crate::authn::GROUP_NODES;
use crate::cacher::{Caches, Filter};

const USER_PREFIX: &str = "system:node:";
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(crate) struct NodeAuthorizer {
    caches: Arc<Caches>,
}

impl NodeAuthorizer {
    pub(crate) fn new(caches: Arc<Caches>) -> Self {
        Self { caches }
    }

    /// The pods that are bound to `node`, of one namespace or of all.
    fn pods(&self, node: &str, namespace: Option<&str>) -> Vec<Value> {
        let Some(pods) = self.caches.get("/registry/pods") else {
            return Vec::new();
        };
        let Ok(of_node) = FieldSelector::parse(&format!("spec.nodeName={node}")) else {
            return Vec::new();
        };
        let Ok(filter) = Filter::new(&pods.resource, namespace, None, Some(&of_node)) else {
            return Vec::new();
        };
        let found = pods.entries(&filter);
        found
            .iter()
            .filter_map(|entry| entry.decode().ok())
            // What an agent says of a static pod must not open anything to it.
            .filter(|pod| pod["metadata"]["annotations"].get(MIRROR).is_none())
            .collect()
    }

    fn refers(&self, node: &str, wanted: Kind, namespace: &str, name: &str) -> bool {
        let pods = self.pods(node, Some(namespace));
        pods.iter()
            .any(|pod| references(pod).any(|(kind, found)| kind == wanted && found == name))
    }

    /// The volumes to which claims of the node's pods are bound.
    fn volumes(&self, node: &str) -> Vec<String> {
        let Some(claims) = self.caches.get("/registry/persistentvolumeclaims") else {
            return Vec::new();
        };
        let pods = self.pods(node, None);
        let bound = pods.iter().flat_map(|pod| {
            let namespace = meta::namespace(pod).to_owned();
            let claims = &claims;
            references(pod)
                .filter(|(kind, _)| *kind == Kind::Claim)
                .filter_map(move |(_, name)| claims.get(&namespace, &name)?.decode().ok())
        });
        bound
            .filter_map(|claim: Value| claim["spec"]["volumeName"].as_str().map(str::to_owned))
            .collect()
    }

    /// Whether a claim of the node's pods is bound to the volume.
    fn mounts(&self, node: &str, volume: &str) -> bool {
        self.volumes(node).iter().any(|name| name == volume)
    }

    /// Whether a volume that the node mounts is mounted with this Secret, wherever that lies.
    fn opens(&self, node: &str, namespace: &str, name: &str) -> bool {
        let Some(volumes) = self.caches.get("/registry/persistentvolumes") else {
            return false;
        };
        let mounted = self.volumes(node).into_iter();
        let mut mounted = mounted.filter_map(|volume| volumes.get("", &volume)?.decode().ok());
        mounted.any(|volume: Value| {
            let csi = &volume["spec"]["csi"];
            let refs = [
                "nodeStageSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ];
            refs.iter()
                .any(|field| csi[*field]["namespace"] == namespace && csi[*field]["name"] == name)
        })
    }

    fn attaches(&self, node: &str, attachment: &str) -> bool {
        let prefix = "/registry/volumeattachments";
        let found = self
            .caches
            .get(prefix)
            .and_then(|all| all.get("", attachment));
        let object = found.and_then(|entry| entry.decode().ok());
        object.is_some_and(|object| object["spec"]["nodeName"] == node)
    }

    fn allows(&self, node: &str, asked: &Attributes<'_>) -> bool {
        let (namespace, name) = (asked.namespace, asked.name);
        if name.is_empty() {
            return false;
        }
        let reads = matches!(asked.verb, "get" | "list" | "watch");
        match (asked.group, asked.resource, asked.subresource) {
            ("", "secrets", "") => {
                reads
                    && (self.refers(node, Kind::Secret, namespace, name)
                        || self.opens(node, namespace, name))
            }
            ("", "configmaps", "") => reads && self.refers(node, Kind::ConfigMap, namespace, name),
            ("", "persistentvolumeclaims", "") => {
                reads && self.refers(node, Kind::Claim, namespace, name)
            }
            ("", "persistentvolumeclaims", "status") => {
                matches!(asked.verb, "get" | "update" | "patch")
                    && self.refers(node, Kind::Claim, namespace, name)
            }
            ("resource.k8s.io", "resourceclaims", "") => {
                asked.verb == "get" && self.refers(node, Kind::ResourceClaim, namespace, name)
            }
            ("", "persistentvolumes", "") => reads && self.mounts(node, name),
            ("", "serviceaccounts", "token") => {
                asked.verb == "create" && self.refers(node, Kind::ServiceAccount, namespace, name)
            }
            ("storage.k8s.io", "volumeattachments", "") => {
                asked.verb == "get" && self.attaches(node, name)
            }
            ("coordination.k8s.io", "leases", "") => {
                namespace == "kube-node-lease"
                    && name == node
                    && matches!(asked.verb, "get" | "update" | "patch" | "delete")
            }
            ("storage.k8s.io", "csinodes", "") => {
                name == node && matches!(asked.verb, "get" | "update" | "patch" | "delete")
            }
            _ => false,
        }
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if !attributes.user.in_group(GROUP_NODES) {
            return Decision::NoOpinion;
        }
        match attributes.user.name.strip_prefix(USER_PREFIX) {
            Some(node) if self.allows(node, attributes) => Decision::Allow,
            // What every agent may do stands in the role `system:node`.
            _ => Decision::NoOpinion,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// What a pod refers to in its own namespace.
fn references(pod: &Value) -> impl Iterator<Item = (Kind, String)> {
    let mut found = Vec::new();
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.push((kind, name.to_owned()));
        }
    };
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let spec = &pod["spec"];
    add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    for claim in list(&spec["resourceClaims"]) {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    for made in list(&pod["status"]["resourceClaimStatuses"]) {
        add(Kind::ResourceClaim, &made["resourceClaimName"]);
    }
    for secret in list(&spec["imagePullSecrets"]) {
        add(Kind::Secret, &secret["name"]);
    }
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(&spec[containers]) {
            for source in list(&container["envFrom"]) {
                add(Kind::Secret, &source["secretRef"]["name"]);
                add(Kind::ConfigMap, &source["configMapRef"]["name"]);
            }
            for variable in list(&container["env"]) {
                let from = &variable["valueFrom"];
                add(Kind::Secret, &from["secretKeyRef"]["name"]);
                add(Kind::ConfigMap, &from["configMapKeyRef"]["name"]);
            }
        }
    }
    for volume in list(&spec["volumes"]) {
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        add(Kind::Secret, &volume["azureFile"]["secretName"]);
        add(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        for kind in [
            "cephfs",
            "cinder",
            "flexVolume",
            "iscsi",
            "rbd",
            "scaleIO",
            "storageos",
        ] {
            add(Kind::Secret, &volume[kind]["secretRef"]["name"]);
        }
        if volume["ephemeral"].is_object() {
            let claim = format!(
                "{}-{}",
                meta::name(pod),
                volume["name"].as_str().unwrap_or_default()
            );
            add(Kind::Claim, &claim.into());
        }
        for source in list(&volume["projected"]["sources"]) {
            add(Kind::Secret, &source["secret"]["name"]);
            add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_refers_to_what_its_containers_and_volumes_name() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "all"}}],
                "env": [{"valueFrom": {"secretKeyRef": {"name": "one"}}}]}],
            "volumes": [
                {"projected": {"sources": [{"configMap": {"name": "root-ca"}}]}},
                {"name": "scratch", "ephemeral": {}},
                {"persistentVolumeClaim": {"claimName": "data"}},
            ],
        }});
        let found: Vec<_> = references(&pod).collect();
        for wanted in [
            (Kind::ServiceAccount, "sa"),
            (Kind::Secret, "pull"),
            (Kind::ConfigMap, "all"),
            (Kind::Secret, "one"),
            (Kind::ConfigMap, "root-ca"),
            (Kind::Claim, "p-scratch"),
            (Kind::Claim, "data"),
        ] {
            assert!(
                found.iter().any(|(k, n)| (*k, n.as_str()) == wanted),
                "{wanted:?}"
            );
        }
        assert_eq!(found.len(), 7);
    }
}
