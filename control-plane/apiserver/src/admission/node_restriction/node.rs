//! What a node may do to Nodes: register and report itself, but not choose what is scheduled to it.

use std::collections::BTreeSet;

use serde_json::Value;
use windlass_machinery::meta;

use super::Write;
use crate::admission::Operation;

/// Labels in Kubernetes' own domains that a kubelet sets.
const KUBELET_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Label domains that are a kubelet's.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Labels by which administrators keep workloads apart (KEP-279).
const RESTRICTED_DOMAIN: &str = "node-restriction.kubernetes.io";

pub(super) fn check(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.name != node {
        return Err(format!(
            "node {node:?} is not allowed to modify node {:?}",
            write.name
        ));
    }
    let Some(object) = write.object else {
        return Ok(());
    };
    let empty = Value::Null;
    let old = write.old.unwrap_or(&empty);
    if meta::owner_references(object) != meta::owner_references(old) {
        // The garbage collector would delete the Node for it.
        return Err(format!(
            "node {node:?} is not allowed to modify ownerReferences"
        ));
    }
    let forbidden: Vec<_> = changed_labels(object, old)
        .into_iter()
        .filter(|label| !is_allowed(label))
        .collect();
    let list = forbidden.join(", ");
    if write.operation == Operation::Create {
        return if forbidden.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "node {node:?} is not allowed to set the following labels: {list}"
            ))
        };
    }
    // A node registers with taints; to take them off is to draw workloads to itself.
    if object["spec"]["taints"] != old["spec"]["taints"] {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if forbidden.is_empty() {
        Ok(())
    } else {
        Err(format!("is not allowed to modify labels: {list}"))
    }
}

fn changed_labels<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let keys = |object: &'a Value| {
        meta::labels(object)
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
    };
    keys(new)
        .chain(keys(old))
        .filter(|key| meta::label(new, key) != meta::label(old, key))
        .map(String::as_str)
        .collect()
}

fn is_allowed(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| {
        let above = domain.strip_suffix(parent);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    };
    if within(RESTRICTED_DOMAIN) {
        return false;
    }
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    !of_kubernetes || KUBELET_LABELS.contains(&label) || KUBELET_DOMAINS.iter().any(|d| within(d))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_of_kubernetes_are_refused_but_for_a_kubelet_s() {
        let table = [
            ("kubernetes.io/hostname", true),
            ("node.kubernetes.io/anything", true),
            ("example.com/rack", true),
            ("plain", true),
            ("windlass.dev/x", true),
            ("notkubernetes.io/x", true),
            ("node-restriction.kubernetes.io/fips", false),
            ("team.node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("other.k8s.io/x", false),
        ];
        for (label, allowed) in table {
            assert_eq!(is_allowed(label), allowed, "{label}");
        }
    }

    #[test]
    fn a_node_writes_itself_but_not_its_taints() {
        let node = |labels: Value, taints: Value, owners: Value| {
            json!({
                "metadata": {"name": "n1", "labels": labels, "ownerReferences": owners}, "spec": {"taints": taints},
            })
        };
        let plain = node(json!({}), json!([{"key": "a"}]), json!([]));
        let (no, owners) = (json!([]), json!([{"name": "x"}]));
        let restricted = json!({"node-restriction.kubernetes.io/x": "y"});
        let table = [
            (Operation::Create, "n1", plain.clone(), None, true),
            (Operation::Create, "n2", plain.clone(), None, false),
            (
                Operation::Create,
                "n1",
                node(restricted.clone(), no.clone(), no.clone()),
                None,
                false,
            ),
            (
                Operation::Create,
                "n1",
                node(json!({}), no.clone(), owners),
                None,
                false,
            ),
            (Operation::Update, "n1", plain.clone(), Some(&plain), true),
            (
                Operation::Update,
                "n1",
                node(json!({}), no.clone(), no.clone()),
                Some(&plain),
                false,
            ),
            (
                Operation::Update,
                "n1",
                node(restricted, json!([{"key": "a"}]), no.clone()),
                Some(&plain),
                false,
            ),
            (
                Operation::Update,
                "n1",
                node(json!({"example.com/x": "y"}), json!([{"key": "a"}]), no),
                Some(&plain),
                true,
            ),
        ];
        for (i, (operation, name, object, old, allowed)) in table.iter().enumerate() {
            let write = Write {
                operation: *operation,
                subresource: "",
                name,
                object: Some(object),
                old: *old,
            };
            let found = check("n1", &write);
            assert_eq!(found.is_ok(), *allowed, "case {i}: {found:?}");
        }
    }
}
