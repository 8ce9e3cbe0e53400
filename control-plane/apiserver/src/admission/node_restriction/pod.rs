//! What a node may do to pods: show its own static pods as mirror pods, report on those bound to it, and
//! remove or evict them.

use serde_json::Value;
use windlass_machinery::meta;

use super::Write;
use crate::admission::Operation;

const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn check(node: &str, write: &Write<'_>) -> Result<(), String> {
    let mine = |pod: Option<&Value>| pod.is_some_and(|pod| pod["spec"]["nodeName"] == node);
    let refused = |why: &str| Err(format!("node {node:?} {why}"));
    match (write.subresource, write.operation) {
        ("", Operation::Create) => mirror(node, write.object.unwrap_or(&Value::Null)),
        ("", Operation::Delete) if mine(write.old) => Ok(()),
        ("", Operation::Delete) => refused("can only delete pods with spec.nodeName set to itself"),
        ("", Operation::Update) => Err(format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        )),
        ("status", Operation::Update) if !mine(write.old) => {
            refused("can only update pod status for pods with spec.nodeName set to itself")
        }
        ("status", Operation::Update) => {
            let labels = |pod: Option<&Value>| pod.and_then(meta::labels).cloned();
            if labels(write.object) == labels(write.old) {
                return Ok(());
            }
            refused("cannot update labels through pod status")
        }
        ("resize", Operation::Update) if mine(write.old) => Ok(()),
        (other, _) => Err(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
    }
}

fn mirror(node: &str, pod: &Value) -> Result<(), String> {
    let refused = |why: &str| Err(format!("node {node:?} {why}"));
    if meta::annotation(pod, MIRROR).is_none() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    let spec = &pod["spec"];
    if spec["nodeName"] != node {
        return refused("can only create pods with spec.nodeName set to itself");
    }
    // What a pod references, its node may read: a node must not choose it.
    if spec["serviceAccountName"]
        .as_str()
        .is_some_and(|name| !name.is_empty())
    {
        return refused("can not create pods that reference a service account");
    }
    let owned = match meta::owner_references(pod) {
        [owner] => owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node,
        _ => false,
    };
    if !owned {
        return refused("can only create pods with an owner reference set to itself");
    }
    match referenced(spec) {
        Some(what) => refused(&format!("can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// The first kind of API object that a pod's volumes or environment reference.
fn referenced(spec: &Value) -> Option<&'static str> {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    for volume in volumes {
        let known = [
            ("secret", "secrets"),
            ("configMap", "configmaps"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
            ("ephemeral", "persistentvolumeclaims"),
        ];
        if let Some((_, what)) = known.iter().find(|(source, _)| volume[source].is_object()) {
            return Some(what);
        }
        for source in volume["projected"]["sources"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let known = [
                ("secret", "secrets"),
                ("configMap", "configmaps"),
                ("serviceAccountToken", "serviceaccounts"),
                ("clusterTrustBundle", "clustertrustbundles"),
            ];
            if let Some((_, what)) = known.iter().find(|(kind, _)| source[kind].is_object()) {
                return Some(what);
            }
        }
    }
    let has_items = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    if has_items(&spec["imagePullSecrets"]) {
        return Some("secrets");
    }
    if has_items(&spec["resourceClaims"]) {
        return Some("resourceclaims");
    }
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let containers = lists
        .iter()
        .filter_map(|list| spec[list].as_array())
        .flatten();
    for container in containers {
        let from = container["envFrom"].as_array().into_iter().flatten();
        let env = container["env"].as_array().into_iter().flatten();
        let sources = from
            .map(|from| (&from["secretRef"], &from["configMapRef"]))
            .chain(env.map(|entry| {
                let from = &entry["valueFrom"];
                (&from["secretKeyRef"], &from["configMapKeyRef"])
            }));
        for (secret, map) in sources {
            if secret.is_object() {
                return Some("secrets");
            }
            if map.is_object() {
                return Some("configmaps");
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write<'a>(
        operation: Operation,
        subresource: &'a str,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> Write<'a> {
        Write {
            operation,
            subresource,
            name: "p",
            object,
            old,
        }
    }

    #[test]
    fn a_node_touches_only_pods_bound_to_it() {
        let mine = json!({"spec": {"nodeName": "n1"}});
        let labelled = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n1"}});
        let other = json!({"spec": {"nodeName": "n2"}});
        use Operation::{Delete, Update};
        let table = [
            (write(Delete, "", None, Some(&mine)), true),
            (write(Delete, "", None, Some(&other)), false),
            (write(Update, "", Some(&mine), Some(&mine)), false),
            (write(Update, "status", Some(&mine), Some(&mine)), true),
            (write(Update, "status", Some(&labelled), Some(&mine)), false),
            (write(Update, "status", Some(&other), Some(&other)), false),
            (
                write(Update, "ephemeralcontainers", Some(&mine), Some(&mine)),
                false,
            ),
            (write(Update, "binding", Some(&mine), Some(&mine)), false),
        ];
        for (write, allowed) in table {
            assert_eq!(
                check("n1", &write).is_ok(),
                allowed,
                "{:?} {:?}",
                write.operation,
                write.subresource
            );
        }
    }

    #[test]
    fn a_node_creates_only_mirrors_of_its_static_pods() {
        let good = json!({
            "metadata": {
                "annotations": {MIRROR: "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1"}],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "a"}], "volumes": [{"hostPath": {"path": "/"}}]},
        });
        assert_eq!(mirror("n1", &good), Ok(()));
        let table = [
            ("/metadata/annotations", json!({})),
            ("/metadata/ownerReferences", json!([])),
            ("/metadata/ownerReferences/0/name", json!("n2")),
            ("/spec/nodeName", json!("n2")),
            ("/spec/volumes/0", json!({"secret": {"secretName": "s"}})),
            (
                "/spec/volumes/0",
                json!({"projected": {"sources": [{"serviceAccountToken": {}}]}}),
            ),
            (
                "/spec/containers/0",
                json!({"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}),
            ),
        ];
        for (at, bad) in table {
            let mut pod = good.clone();
            *pod.pointer_mut(at).unwrap() = bad;
            assert!(mirror("n1", &pod).is_err(), "{at}");
        }
        let mut account = good;
        account["spec"]["serviceAccountName"] = "default".into();
        assert!(mirror("n1", &account).is_err());
    }
}
