//! What is legal in a pod's spec and yet probably a mistake, or goes away (`k8s.io/kubernetes/pkg/api/pod`).

use std::collections::HashMap;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::Path;

use super::affinity::{PREFERRED, REQUIRED};
use super::{annotations, container, projected};
use crate::tree::Tree;
use crate::validate::quantities::{parse, show};

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
pub const OLD_VOLUMES: &[(&str, &str)] = &[
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
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
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
    let path = path.child("spec");
    for (key, _) in spec.entries("nodeSelector") {
        if let Some(text) = old_label(key) {
            found.push(format!("{}: {text}", path.child("nodeSelector").key(key)));
        }
    }
    node_affinity(spec, &path, &mut found);
    spreading(spec, &path, &mut found);
    for (key, text) in OLD_ANNOTATIONS {
        if annotations::get(holder, key).is_some() {
            found.push(format!("{}: {text}", annotations.key(key)));
        }
    }
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        let path = path.child("volumes").index(i);
        for (source, text) in OLD_VOLUMES.iter().filter(|(source, _)| volume.has(source)) {
            let field = match *source {
                "storageos" => "storageOS",
                other => other,
            };
            found.push(format!("{}: {text}", path.child(field)));
        }
        let claim = volume.at("ephemeral.volumeClaimTemplate.spec.resources.requests");
        let claim_path = path
            .child("ephemeral")
            .child("volumeClaimTemplate")
            .child("spec")
            .child("resources")
            .child("requests");
        fractional(claim, "storage", &claim_path, &mut found);
    }
    over_tokens(spec, &path, &mut found);
    repeated(spec, "hostAliases", "ip", &path, &mut found);
    repeated(spec, "imagePullSecrets", "name", &path, &mut found);
    for (i, secret) in spec.list("imagePullSecrets").iter().enumerate() {
        if secret.text("name").is_empty() {
            let path = path.child("imagePullSecrets").index(i).child("name");
            found.push(format!("{path}: invalid empty name \"\""));
        }
    }
    for name in ["memory", "ephemeral-storage"] {
        fractional(
            spec.at("overhead"),
            name,
            &path.child("overhead"),
            &mut found,
        );
    }
    let has_profile = spec.has("securityContext.seccompProfile");
    let key = annotations::SECCOMP_POD;
    if !has_profile && annotations::get(holder, key).is_some() {
        found.push(format!("{}: {SECCOMP}", annotations.key(key)));
    }
    container::visit(spec, &path, |container, path| {
        of_container(container, holder, (&annotations, path), &mut found);
    });
    ports(spec, &path, &mut found);
    if spec
        .int("terminationGracePeriodSeconds")
        .is_some_and(|seconds| seconds < 0)
    {
        found.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    selectors_of_nothing(spec, &path, &mut found);
    found
}

const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

fn node_affinity(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let affinity = spec.at("affinity.nodeAffinity");
    let path = path.child("affinity").child("nodeAffinity");
    let terms = path.child(REQUIRED).child("nodeSelectorTerms");
    let required = affinity.at(REQUIRED).list("nodeSelectorTerms");
    for (i, term) in required.iter().enumerate() {
        node_term(term, &terms.index(i), found);
    }
    for (i, preferred) in affinity.list(PREFERRED).iter().enumerate() {
        let path = path.child(PREFERRED).index(i).child("preference");
        node_term(preferred.at("preference"), &path, found);
    }
}

/// What is said of a label's old name, if it is one.
pub fn old_label(key: &str) -> Option<&'static str> {
    let found = OLD_LABELS.iter().find(|(old, _)| key == *old);
    found.map(|(_, text)| *text)
}

/// Old names of labels in what nodes are chosen by.
pub fn node_term(term: &Value, path: &Path, found: &mut Vec<String>) {
    for (i, expression) in term.list("matchExpressions").iter().enumerate() {
        let key = expression.text("key");
        if let Some(text) = old_label(key) {
            let path = path.child("matchExpressions").index(i).child("key");
            found.push(format!("{path}: {key} is {text}"));
        }
    }
}

fn spreading(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for (i, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(i);
        let key = constraint.text("topologyKey");
        if let Some(text) = old_label(key) {
            found.push(format!("{}: {key} is {text}", path.child("topologyKey")));
        }
        if !constraint.has("labelSelector") {
            found.push(format!("{}: {NO_SELECTOR}", path.child("labelSelector")));
        }
    }
}

/// Pod affinity to nobody.
fn selectors_of_nothing(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = spec.at("affinity").at(kind);
        let path = path.child("affinity").child(kind);
        for (i, term) in affinity.list(REQUIRED).iter().enumerate() {
            if !term.has("labelSelector") {
                let path = path.child(REQUIRED).index(i).child("labelSelector");
                found.push(format!("{path}: {NO_SELECTOR}"));
            }
        }
        for (i, weighted) in affinity.list(PREFERRED).iter().enumerate() {
            if !weighted.has("podAffinityTerm.labelSelector") {
                let path = path.child(PREFERRED).index(i).child("podAffinityTerm");
                found.push(format!("{}: {NO_SELECTOR}", path.child("labelSelector")));
            }
        }
    }
}

/// Files in projected volumes where a token is to be.
fn over_tokens(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let volumes = spec.list("volumes");
    let tokens: Vec<_> = volumes
        .iter()
        .flat_map(|volume| volume.list("projected.sources"))
        .map(|source| source.text("serviceAccountToken.path"))
        .filter(|file| !file.is_empty())
        .collect();
    for (i, volume) in volumes.iter().enumerate() {
        let path = projected::sources(path, i);
        for source in volume.list("projected.sources") {
            for (field, shown) in [
                ("configMap", "configMap"),
                ("secret", "secrets"),
                ("downwardAPI", "downwardAPI"),
            ] {
                for (j, item) in source.at(field).list("items").iter().enumerate() {
                    let file = item.text("path");
                    if tokens.contains(&file) {
                        let path = path.child(shown).index(j);
                        found.push(format!(
                            "{path}: has duplicated path with ServiceAccountToken {file:?}"
                        ));
                    }
                }
            }
        }
    }
}

fn repeated(spec: &Value, list: &str, field: &str, path: &Path, found: &mut Vec<String>) {
    let mut seen = Vec::new();
    for (i, entry) in spec.list(list).iter().enumerate() {
        let text = entry.text(field);
        if seen.contains(&text) {
            let path = path.child(list).index(i).child(field);
            found.push(format!("{path}: duplicate {field} {text:?}"));
        } else {
            seen.push(text);
        }
    }
}

/// An amount of bytes that is no whole number.
pub fn fractional(amounts: &Value, name: &str, path: &Path, found: &mut Vec<String>) {
    let amount = amounts.get(name);
    if let Some(value) = amount.filter(|value| parse(value).is_some_and(|q| !q.is_integer())) {
        found.push(format!(
            "{}: fractional byte value {:?} is invalid, must be an integer",
            path.key(name),
            show(value),
        ));
    }
}

/// `places` are the paths of the holder's annotations and of the container.
fn of_container(
    container: &Value,
    holder: &Value,
    places: (&Path, &Path),
    found: &mut Vec<String>,
) {
    let (annotations_path, path) = places;
    let name = container.text("name");
    let key = format!("{}{name}", annotations::SECCOMP_CONTAINER);
    let has_profile = container.has("securityContext.seccompProfile");
    if !has_profile && annotations::get(holder, &key).is_some() {
        found.push(format!("{}: {SECCOMP}", annotations_path.key(&key)));
    }
    let key = format!("{}{name}", annotations::APP_ARMOR);
    let annotation = annotations::get(holder, &key);
    let of_pod = holder.has("spec.securityContext.appArmorProfile");
    if annotation.is_some_and(|text| !of_pod && annotations::only_annotated(container, text)) {
        let text = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
        found.push(format!("{}: {text}", annotations_path.key(&key)));
    }
    for name in ["memory", "ephemeral-storage"] {
        for list in ["limits", "requests"] {
            let amounts = container.at("resources").at(list);
            fractional(amounts, name, &path.child("resources").child(list), found);
        }
    }
    let mut seen = Vec::new();
    for (i, variable) in container.list("env").iter().enumerate() {
        let name = variable.text("name");
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        // `A=$(A):x` extends the earlier definition on purpose.
        let (value, reference) = (variable.text("value"), format!("$({name})"));
        let extends = value.contains(&reference) && value != reference;
        if variable.has("valueFrom") || !extends {
            found.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.child("env").index(i)
            ));
        }
    }
}

/// Definitions of one port: apply merges them by number, so that one of them may vanish.
fn ports(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let mut seen: HashMap<_, Vec<(Path, (String, i64))>> = HashMap::new();
    container::visit(spec, path, |container, path| {
        for (i, port) in container.list("ports").iter().enumerate() {
            let path = path.child("ports").index(i);
            let host = (
                port.text("hostIP").to_owned(),
                port.int("hostPort").unwrap_or_default(),
            );
            if !host.0.is_empty() && host.1 == 0 {
                found.push(format!("{path}: hostIP set without hostPort: {port}"));
            }
            let key = (port.int("containerPort"), port.text("protocol").to_owned());
            let others = seen.entry(key).or_default();
            for (other, (ip, number)) in others.iter() {
                let what = if (ip, number) == (&host.0, &host.1) {
                    "duplicate"
                } else if *number == 0 || host.1 == 0 {
                    "overlapping"
                } else if *number == host.1 && ip.is_empty() != host.0.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                found.push(format!("{path}: {what} port definition with {other}"));
            }
            others.push((path, host));
        }
    });
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
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \
                 \"kubernetes.io/os\" instead",
                "spec.volumes[0].gitRepo: deprecated in v1.11",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, \
                 must be an integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when \
                 using apply",
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
