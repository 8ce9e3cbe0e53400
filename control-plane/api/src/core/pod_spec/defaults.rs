//! Defaults of a pod's spec, for Pods and for the templates of workloads alike
//! (`SetDefaults_*` in `k8s.io/kubernetes/pkg/apis/core/v1/defaults.go`).

use serde_json::{Map, Value, json};

use super::compute;
use crate::tree::{self, Tree, each, fill, fill_zero};
use crate::validate::quantities::is_hugepages;

/// Defaults that Pods and templates share.
pub fn pod_spec(spec: &mut Value) {
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    fill(spec, "securityContext", json!({}));
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "schedulerName", "default-scheduler");
    // The old name of the field is served beside the new one, always with the same value.
    let account = match spec.text("serviceAccountName") {
        "" => spec.text("serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        tree::set(spec, "serviceAccountName", account.as_str());
        tree::set(spec, "serviceAccount", account);
    }
    for field in super::container::LISTS {
        each(spec, field).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
    drop_gated(spec);
}

/// Fields whose gates are off in v1.35 are not stored.
fn drop_gated(spec: &mut Value) {
    tree::remove(spec, "workloadRef");
    for field in super::container::LISTS {
        for container in each(spec, field) {
            tree::remove(container, "lifecycle.stopSignal");
            if container.map("lifecycle").is_some_and(Map::is_empty) {
                tree::remove(container, "lifecycle");
            }
        }
    }
    for volume in each(spec, "volumes") {
        for source in each(volume, "projected.sources") {
            tree::remove(source, "clusterTrustBundle");
            tree::remove(source, "podCertificate");
        }
    }
}

/// Defaults that only Pods get, so that a template's owner sees what it wrote.
pub fn pod(spec: &mut Value) {
    fill(spec, "enableServiceLinks", true);
    let host_network = spec.flag("hostNetwork");
    for field in ["initContainers", "containers"] {
        for container in each(spec, field) {
            requests_from_limits(container);
            if host_network {
                each(container, "ports").for_each(host_port);
            }
        }
    }
    pod_level_requests(spec);
}

fn host_port(port: &mut Value) {
    let number = port.int("containerPort").unwrap_or_default();
    fill_zero(port, "hostPort", number);
}

/// A limit without a request is the request, too.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.map("resources.limits").cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = tree::object_at(container, "resources.requests");
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// A pod that states something for itself requests what its containers do together, and what it limits where none of
/// them requests that. Huge pages that containers limit are limits of the pod.
fn pod_level_requests(spec: &mut Value) {
    let has = |spec: &Value, list: &str| spec.at("resources").entries(list).next().is_some();
    if !has(spec, "limits") && !has(spec, "requests") {
        return;
    }
    let of_containers = |spec: &Value, list: &str| {
        let sums = compute::together(spec, list).into_iter();
        sums.map(|(name, sum)| (name.to_owned(), Value::from(sum.to_string())))
            .collect::<Vec<_>>()
    };
    for (name, sum) in of_containers(spec, "limits") {
        if is_hugepages(&name) && spec.at("resources.requests").get(&name).is_none() {
            let limits = tree::object_at(spec, "resources.limits");
            limits.entry(name).or_insert(sum);
        }
    }
    let Some(limits) = spec
        .map("resources.limits")
        .filter(|l| !l.is_empty())
        .cloned()
    else {
        return;
    };
    let mut missing = of_containers(spec, "requests");
    missing.retain(|(name, _)| !is_hugepages(name));
    missing.extend(limits);
    missing.retain(|(name, _)| compute::is_pod_level(name));
    if !missing.is_empty() {
        let requests = tree::object_at(spec, "resources.requests");
        for (name, amount) in missing {
            requests.entry(name).or_insert(amount);
        }
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(container.text("image"));
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    for port in each(container, "ports") {
        fill(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        tree::fill_in(variable, "valueFrom.fieldRef.apiVersion", "v1");
        divisor(variable, "valueFrom.resourceFieldRef");
        tree::fill_in(variable, "valueFrom.fileKeyRef.optional", false);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = tree::at_mut(container, name).filter(|p| p.is_object()) {
            fill_zero(probe, "timeoutSeconds", 1);
            fill_zero(probe, "periodSeconds", 10);
            fill_zero(probe, "successThreshold", 1);
            fill_zero(probe, "failureThreshold", 3);
            http_get(probe);
            tree::fill_in(probe, "grpc.service", "");
        }
    }
    for name in ["lifecycle.postStart", "lifecycle.preStop"] {
        if let Some(handler) = tree::at_mut(container, name) {
            http_get(handler);
        }
    }
}

fn http_get(handler: &mut Value) {
    tree::fill_in(handler, "httpGet.path", "/");
    tree::fill_in(handler, "httpGet.scheme", "HTTP");
}

/// A Quantity is never absent in Go: an unset divisor is served as `"0"`.
fn divisor(holder: &mut Value, field: &str) {
    tree::fill_in(holder, &format!("{field}.divisor"), "0");
}

/// `Always` for the tag `latest` (also when it is only implied), else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (reference, digest) = image.split_once('@').map_or((image, ""), |(r, d)| (r, d));
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let tag = last.split_once(':').map_or("", |(_, tag)| tag);
    if tag == "latest" || (tag.is_empty() && digest.is_empty()) {
        "Always"
    } else {
        "IfNotPresent"
    }
}

/// The mode of files in volumes that are written by the node: 0644.
const FILE_MODE: i64 = 0o644;

fn volume(volume: &mut Value) {
    let has_source = volume.as_object().is_some_and(|fields| {
        fields
            .iter()
            .any(|(name, value)| name != "name" && !value.is_null())
    });
    if !has_source {
        fill(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        tree::fill_in(volume, &format!("{source}.defaultMode"), FILE_MODE);
    }
    each(volume, "downwardAPI.items").for_each(downward_item);
    for source in each(volume, "projected.sources") {
        each(source, "downwardAPI.items").for_each(downward_item);
        tree::fill_in(source, "serviceAccountToken.expirationSeconds", 3600);
    }
    if let Some(host_path) = volume.get_mut("hostPath").filter(|v| v.is_object())
        && !host_path.has("type")
    {
        tree::set(host_path, "type", "");
    }
    let image_policy = pull_policy(volume.text("image.reference"));
    for (field, value) in [
        ("image.pullPolicy", json!(image_policy)),
        ("iscsi.iscsiInterface", json!("default")),
        ("rbd.pool", json!("rbd")),
        ("rbd.user", json!("admin")),
        ("rbd.keyring", json!("/etc/ceph/keyring")),
        ("azureDisk.cachingMode", json!("ReadWrite")),
        ("azureDisk.kind", json!("Shared")),
        ("azureDisk.fsType", json!("ext4")),
        ("azureDisk.readOnly", json!(false)),
        ("scaleIO.storageMode", json!("ThinProvisioned")),
        ("scaleIO.fsType", json!("xfs")),
        (
            "ephemeral.volumeClaimTemplate.spec.volumeMode",
            json!("Filesystem"),
        ),
    ] {
        tree::fill_in(volume, field, value);
    }
}

fn downward_item(item: &mut Value) {
    tree::fill_in(item, "fieldRef.apiVersion", "v1");
    divisor(item, "resourceFieldRef");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides_the_pull_policy() {
        for (image, policy) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1.35", "IfNotPresent"),
            ("registry:5000/busybox", "Always"),
            ("registry:5000/a/busybox:v1", "IfNotPresent"),
            ("busybox@sha256:0123", "IfNotPresent"),
            ("busybox:latest@sha256:0123", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_bare_spec_gets_what_kubernetes_gives_it() {
        let mut spec = json!({
            "serviceAccountName": "x",
            "containers": [{
                "name": "c",
                "image": "i:1",
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}},
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            }],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "s"}}],
        });
        pod_spec(&mut spec);
        pod(&mut spec);
        assert_eq!(
            spec,
            json!({
                "containers": [{
                    "name": "c",
                    "image": "i:1",
                    "imagePullPolicy": "IfNotPresent",
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {
                        "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                        "timeoutSeconds": 1,
                        "periodSeconds": 10,
                        "successThreshold": 1,
                        "failureThreshold": 3,
                    },
                    "resources": {
                        "limits": {"cpu": "1", "memory": "1Gi"},
                        "requests": {"cpu": "500m", "memory": "1Gi"},
                    },
                }],
                "dnsPolicy": "ClusterFirst",
                "enableServiceLinks": true,
                "restartPolicy": "Always",
                "schedulerName": "default-scheduler",
                "securityContext": {},
                "serviceAccount": "x",
                "serviceAccountName": "x",
                "terminationGracePeriodSeconds": 30,
                "volumes": [
                    {"name": "e", "emptyDir": {}},
                    {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                ],
            })
        );
        let once = spec.clone();
        pod_spec(&mut spec);
        pod(&mut spec);
        assert_eq!(spec, once, "defaulting twice changes nothing");
    }

    #[test]
    fn host_network_pods_use_their_container_ports_on_the_host() {
        let mut spec = json!({
            "hostNetwork": true,
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}],
        });
        pod(&mut spec);
        assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], 80);
    }
}
