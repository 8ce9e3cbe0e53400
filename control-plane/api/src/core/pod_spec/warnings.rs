//! What is legal in a pod's spec and yet probably a mistake, or goes away (`k8s.io/kubernetes/pkg/api/pod`).

use std::collections::HashMap;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::Path;

use crate::tree::Tree;
use crate::validate::quantities::parse;

/// Labels of nodes that have newer names.
const OLD_LABELS: &[(&str, &str)] = &[
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
];

/// Volume sources that are going away.
const OLD_VOLUMES: &[(&str, &str)] = &[
    (
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Annotations that have become fields.
const OLD_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "seccomp.security.alpha.kubernetes.io/pod",
        "non-functional in v1.27+; use the \"seccompProfile\" field instead",
    ),
    (
        "container.seccomp.security.alpha.kubernetes.io/",
        "non-functional in v1.27+; use the \"seccompProfile\" field instead",
    ),
    (
        "container.apparmor.security.beta.kubernetes.io/",
        "deprecated since v1.30; use the \"appArmorProfile\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

/// For workloads, whose pods' host names are made of their names.
pub fn pod_name_prefix(object: &Value) -> Vec<String> {
    name_in_host_names(object, "this is used in Pod names and hostnames")
}

/// For Pods themselves.
pub fn pod_name(object: &Value) -> Vec<String> {
    name_in_host_names(object, "this is used in the Pod's hostname")
}

fn name_in_host_names(object: &Value, what: &str) -> Vec<String> {
    let problems = names::is_dns1123_label(object.text("metadata.name"));
    if problems.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: {what}, which can result in surprising behavior; a DNS label is recommended: [{}]",
        problems.join(" ")
    )]
}

/// Of a Pod or template: `holder` has `metadata` and `spec`, `path` is its own.
pub fn warnings(holder: &Value, path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let spec = holder.at("spec");
    let annotations = path.child("metadata").child("annotations");
    for (key, _) in holder.entries("metadata.annotations") {
        if let Some((_, text)) = OLD_ANNOTATIONS
            .iter()
            .find(|(old, _)| key == *old || (old.ends_with('/') && key.starts_with(old)))
        {
            found.push(format!("{}: {text}", annotations.key(key)));
        }
    }
    let path = path.child("spec");
    for (key, _) in spec.entries("nodeSelector") {
        if let Some((_, text)) = OLD_LABELS.iter().find(|(old, _)| key == *old) {
            found.push(format!("{}: {text}", path.child("nodeSelector").key(key)));
        }
    }
    for (i, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let key = constraint.text("topologyKey");
        if let Some((_, text)) = OLD_LABELS.iter().find(|(old, _)| key == *old) {
            let path = path
                .child("topologySpreadConstraints")
                .index(i)
                .child("topologyKey");
            found.push(format!("{path}: {key} is {text}"));
        }
    }
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        for (source, text) in OLD_VOLUMES.iter().filter(|(source, _)| volume.has(source)) {
            found.push(format!(
                "{}: {text}",
                path.child("volumes").index(i).child(source)
            ));
        }
    }
    repeated_secrets(spec, &path, &mut found);
    for field in ["initContainers", "containers"] {
        for (i, container) in spec.list(field).iter().enumerate() {
            of_container(container, &path.child(field).index(i), &mut found);
        }
    }
    repeated_ports(spec, &path, &mut found);
    if spec
        .int("terminationGracePeriodSeconds")
        .is_some_and(|seconds| seconds < 0)
    {
        found.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    found
}

fn repeated_secrets(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let mut seen = Vec::new();
    for (i, secret) in spec.list("imagePullSecrets").iter().enumerate() {
        let name = secret.text("name");
        let path = path.child("imagePullSecrets").index(i);
        if name.is_empty() {
            found.push(format!("{path}: invalid empty name \"\""));
        } else if seen.contains(&name) {
            found.push(format!("{path}: duplicate name {name:?}"));
        } else {
            seen.push(name);
        }
    }
}

fn of_container(container: &Value, path: &Path, found: &mut Vec<String>) {
    let mut seen = Vec::new();
    for (i, variable) in container.list("env").iter().enumerate() {
        let name = variable.text("name");
        // `A=$(A):x` extends the earlier definition on purpose.
        let extends = variable.text("value").contains(&format!("$({name})"));
        if seen.contains(&name) && !extends {
            found.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.child("env").index(i)
            ));
        }
        seen.push(name);
    }
    for list in ["limits", "requests"] {
        for (name, value) in container.at("resources").entries(list) {
            let in_bytes = matches!(name, "memory" | "ephemeral-storage");
            if in_bytes && parse(value).is_some_and(|quantity| !quantity.is_integer()) {
                found.push(format!(
                    "{}: fractional byte value {} is invalid, must be an integer",
                    path.child("resources").child(list).key(name),
                    Value::from(crate::table::plain(value)),
                ));
            }
        }
    }
}

/// Two definitions of one port: apply merges them by number, so that one of them may vanish.
fn repeated_ports(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let mut seen: HashMap<_, Path> = HashMap::new();
    for (i, container) in spec.list("containers").iter().enumerate() {
        for (j, port) in container.list("ports").iter().enumerate() {
            let path = path.child("containers").index(i).child("ports").index(j);
            let key = (
                port.int("containerPort"),
                port.text("protocol"),
                port.text("hostIP"),
                port.int("hostPort").unwrap_or_default(),
            );
            match seen.get(&key) {
                Some(first) => {
                    found.push(format!("{path}: duplicate port definition with {first}"))
                }
                None => {
                    seen.insert(key, path);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn doubtful_specs_are_told() {
        let pod = json!({
            "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "x"}},
            "spec": {
                "nodeSelector": {"beta.kubernetes.io/os": "linux"},
                "containers": [
                    {"env": [{"name": "A"}, {"name": "A"}, {"name": "A", "value": "$(A):x"}],
                     "ports": [{"containerPort": 80, "protocol": "TCP"}],
                     "resources": {"limits": {"memory": "100m"}}},
                    {"ports": [{"containerPort": 80, "protocol": "TCP"}]},
                ],
                "volumes": [{"gitRepo": {}}],
                "terminationGracePeriodSeconds": -1,
            },
        });
        assert_eq!(
            warnings(&pod, &Path::root()),
            [
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since \
                 v1.30; use the \"appArmorProfile\" field instead",
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \
                 \"kubernetes.io/os\" instead",
                "spec.volumes[0].gitRepo: deprecated in v1.11",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when \
                 using apply",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, \
                 must be an integer",
                "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be \
                 treated as 1",
            ]
        );
    }

    #[test]
    fn names_that_are_no_host_names_are_told() {
        assert!(pod_name(&json!({"metadata": {"name": "web-0"}})).is_empty());
        let found = pod_name(&json!({"metadata": {"name": "web.0"}}));
        assert!(
            found[0]
                .starts_with("metadata.name: this is used in the Pod's hostname, which can result")
        );
    }
}
