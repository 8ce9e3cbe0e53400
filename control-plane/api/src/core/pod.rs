//! Pods.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::pod_row::row;
use super::pod_spec::affinity::{PREFERRED, REQUIRED};
use super::pod_spec::{self, Context, annotations, defaults, qos_class, warnings};
use super::{pod_status, pod_update};
use crate::resource::{Deletion, Strategy};
use crate::tree::{self, Tree};

pub struct Pod;

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        let mut spec = tree::remove(object, "spec").unwrap_or(Value::Null);
        tree::object_at(&mut spec, "");
        defaults::pod_spec(&mut spec);
        defaults::pod(&mut spec);
        tree::set(object, "spec", spec);
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(object.at("spec"))});
        if !object.list("spec.schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null,
                "lastTransitionTime": object.at("metadata.creationTimestamp"),
            }]);
        }
        tree::set(object, "status", status);
        merge_match_label_keys(object);
        annotations::app_armor_fields(object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::keep(new, old, "status");
        // The last gate taken off makes the pod ready to be scheduled.
        if new.list("spec.schedulingGates").is_empty()
            && !old.list("spec.schedulingGates").is_empty()
        {
            ungate(new);
        }
    }

    /// Old kubelets corrupt owner references.
    fn status_metadata(&self) -> &'static [&'static str] {
        &["labels", "annotations", "finalizers"]
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        for field in ["spec", "metadata.deletionTimestamp"] {
            tree::keep(new, old, field);
        }
        pod_status::prepare(new, old);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("metadata").child("annotations");
        annotations::validate(object, old, &path, errors);
        let context =
            Context::pod(object.text("metadata.name")).replacing(old.map(|old| old.at("spec")));
        pod_spec::validate(object.at("spec"), &context, &Path::new("spec"), errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        if !object.list("spec.ephemeralContainers").is_empty() {
            errors.forbidden(
                &path.child("ephemeralContainers"),
                "cannot be set on create",
            );
        }
        let is_gated = !object.list("spec.schedulingGates").is_empty();
        if is_gated && !object.text("spec.nodeName").is_empty() {
            let detail = "cannot be set until all schedulingGates have been cleared";
            errors.forbidden(&path.child("nodeName"), detail);
        }
        annotations::agree_with_fields(object, &path, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        pod_update::validate(new, old, errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        pod_status::validate(new, old, errors);
    }

    fn validate_subresource(&self, name: &str, new: &Value, old: &Value, errors: &mut Errors) {
        match name {
            "ephemeralcontainers" => pod_update::validate_ephemeral(new, old, errors),
            "resize" => pod_update::validate_resize(new, old, errors),
            _ => {}
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        // Pods are rarely changed by people, and often by programs.
        if old.is_some() {
            return Vec::new();
        }
        let mut found = warnings::pod_name(new);
        found.extend(warnings::warnings(new, &Path::root()));
        found
    }

    fn selectable(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]
    }

    fn field(&self, object: &Value, name: &str) -> String {
        match name {
            "spec.hostNetwork" => object.flag(name).to_string(),
            "status.podIP" => {
                let first = object.list("status.podIPs").first();
                first
                    .map_or_else(|| object.text(name), |ip| ip.text("ip"))
                    .to_owned()
            }
            _ => object.text(name).to_owned(),
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        row(object, now)
    }

    fn completed(&self, object: &Value) -> Option<(&'static str, &'static str)> {
        match object.text("status.phase") {
            "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
            "Failed" => Some(("Failed", "The pod failed.")),
            _ => None,
        }
    }

    fn deletion(&self, object: &Value, grace: Option<i64>) -> Deletion {
        let wanted = grace
            .or_else(|| object.int("spec.terminationGracePeriodSeconds"))
            .unwrap_or(30);
        // A negative period means the shortest one that still is graceful.
        let wanted = if wanted < 0 { 1 } else { wanted };
        let is_unscheduled = object.text("spec.nodeName").is_empty();
        let is_over = matches!(object.text("status.phase"), "Failed" | "Succeeded");
        if wanted == 0 || is_unscheduled || is_over {
            return Deletion::Immediate;
        }
        Deletion::Graceful { seconds: wanted }
    }
}

fn ungate(object: &mut Value) {
    let Some(conditions) = tree::at_mut(object, "status.conditions").and_then(Value::as_array_mut)
    else {
        return;
    };
    conditions
        .retain(|c| !(c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated"));
}

/// Labels of the pod that its affinity and spreading name by key become terms of their selectors.
fn merge_match_label_keys(object: &mut Value) {
    let labels = object.at("metadata.labels").clone();
    for constraint in tree::each(object, "spec.topologySpreadConstraints") {
        merge_keys(constraint, "matchLabelKeys", "In", &labels);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let required = format!("spec.affinity.{kind}.{REQUIRED}");
        for term in tree::each(object, &required) {
            merge_keys(term, "matchLabelKeys", "In", &labels);
            merge_keys(term, "mismatchLabelKeys", "NotIn", &labels);
        }
        let preferred = format!("spec.affinity.{kind}.{PREFERRED}");
        for weighted in tree::each(object, &preferred) {
            if let Some(term) = tree::at_mut(weighted, "podAffinityTerm") {
                merge_keys(term, "matchLabelKeys", "In", &labels);
                merge_keys(term, "mismatchLabelKeys", "NotIn", &labels);
            }
        }
    }
}

fn merge_keys(term: &mut Value, field: &str, operator: &str, labels: &Value) {
    if !term.has("labelSelector") {
        return;
    }
    let expressions: Vec<_> = term
        .list(field)
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|key| labels.get(key).map(|value| (key, value)))
        .map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]}))
        .collect();
    if expressions.is_empty() {
        return;
    }
    let mut all = term.list("labelSelector.matchExpressions").to_vec();
    all.extend(expressions);
    tree::set(term, "labelSelector.matchExpressions", all);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    fn pod(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "p"}, "spec": spec});
        Pod.prepare_for_create(&mut object);
        Pod.default(&mut object);
        object
    }

    /// One row per rule: what was sent, what the client reads back.
    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        let container = || json!({"name": "c", "image": "i"});
        let with = |extra: Value| {
            let mut container = container();
            for (key, value) in extra.as_object().expect("an object") {
                container[key] = value.clone();
            }
            json!({"containers": [container]})
        };
        for (spec, expected) in [
            (json!({}), vec!["spec.containers: Required value"]),
            (
                json!({"containers": [{}]}),
                vec![
                    "spec.containers[0].name: Required value",
                    "spec.containers[0].image: Required value",
                ],
            ),
            (
                json!({"containers": [container(), container()]}),
                vec!["spec.containers[1].name: Duplicate value: \"c\""],
            ),
            (
                json!({"containers": [container()], "restartPolicy": "Sometimes"}),
                vec![
                    "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                     \"OnFailure\", \"Never\"",
                ],
            ),
            (
                with(json!({"ports": [
                    {"containerPort": 80, "name": "http"},
                    {"containerPort": 70000, "name": "http"},
                    {"name": "none"},
                ]})),
                vec![
                    "spec.containers[0].ports[1].name: Duplicate value: \"http\"",
                    "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 \
                     and 65535, inclusive",
                    "spec.containers[0].ports[2].containerPort: Required value",
                ],
            ),
            (
                with(json!({"ports": [
                    {"containerPort": 80, "hostPort": 80},
                    {"containerPort": 81, "hostPort": 80},
                ]})),
                vec!["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\""],
            ),
            (
                with(json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}]})),
                vec!["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
            ),
            (
                with(json!({"env": [
                    {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "B", "valueFrom": {}},
                    {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}},
                    {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s"}}},
                ]})),
                vec![
                    "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when \
                     `value` is not empty",
                    "spec.containers[0].env[1].valueFrom: Invalid value: \"\": must specify one of: \
                     `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
                    "spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.x\": \
                     error converting fieldPath: field label not supported: spec.x",
                    "spec.containers[0].env[3].valueFrom.secretKeyRef.key: Required value",
                ],
            ),
            (
                with(json!({"livenessProbe": {"successThreshold": 2}})),
                vec![
                    "spec.containers[0].livenessProbe: Required value: must specify a handler type",
                    "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                ],
            ),
            (
                json!({
                    "containers": [container()],
                    "volumes": [
                        {"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}},
                        {"name": "a", "configMap": {}},
                        {"name": "b", "secret": {"secretName": "s", "defaultMode": 1000}},
                    ],
                }),
                vec![
                    "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
                    "spec.volumes[1].configMap.name: Required value",
                    "spec.volumes[2].secret.defaultMode: Invalid value: 1000: must be a number between 0 \
                     and 0777 (octal), both inclusive",
                ],
            ),
            (
                json!({"containers": [container()], "tolerations": [{"operator": "Equal"}]}),
                vec![
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when \
                     `key` is empty, which means \"match all values and all keys\"",
                ],
            ),
            (
                json!({"containers": [container()], "initContainers": [
                    {"name": "i", "image": "i", "readinessProbe": {"exec": {"command": ["x"]}}},
                ]}),
                vec![
                    "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers \
                     without restartPolicy=Always",
                ],
            ),
        ] {
            let object = pod(spec);
            assert_eq!(
                lines(|e| Pod.validate(&object, None, e)),
                expected,
                "{object:#}"
            );
        }
    }

    #[test]
    fn a_usual_pod_has_no_faults() {
        let object = pod(json!({
            "serviceAccountName": "default",
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{
                "key": "node.kubernetes.io/not-ready",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }],
            "initContainers": [
                {"name": "setup", "image": "i"},
                {"name": "proxy", "image": "i", "restartPolicy": "Always",
                 "startupProbe": {"tcpSocket": {"port": 1}}},
            ],
            "containers": [{
                "name": "c",
                "image": "i",
                "ports": [{"containerPort": 80, "name": "http"}],
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "envFrom": [{"configMapRef": {"name": "c"}}],
                "livenessProbe": {"httpGet": {"port": "http"}},
                "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                "volumeMounts": [{"name": "token", "mountPath": "/t", "readOnly": true}],
                "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
                "securityContext": {"runAsUser": 1, "capabilities": {"drop": ["ALL"]}},
            }],
            "volumes": [{"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token"}},
                {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}},
                ]}},
            ]}}],
        }));
        assert!(
            lines(|e| Pod.validate(&object, None, e)).is_empty(),
            "{:?}",
            lines(|e| Pod.validate(&object, None, e))
        );
        assert_eq!(
            object["status"],
            json!({"phase": "Pending", "qosClass": "Burstable"})
        );
    }

    #[test]
    fn deletion_waits_only_for_pods_that_run_somewhere() {
        let mut object = json!({"spec": {"terminationGracePeriodSeconds": 7}});
        assert_eq!(Pod.deletion(&object, None), Deletion::Immediate);
        object["spec"]["nodeName"] = "n".into();
        assert_eq!(
            Pod.deletion(&object, None),
            Deletion::Graceful { seconds: 7 }
        );
        assert_eq!(
            Pod.deletion(&object, Some(3)),
            Deletion::Graceful { seconds: 3 }
        );
        assert_eq!(
            Pod.deletion(&object, Some(-1)),
            Deletion::Graceful { seconds: 1 }
        );
        assert_eq!(Pod.deletion(&object, Some(0)), Deletion::Immediate);
        object["status"] = json!({"phase": "Succeeded"});
        assert_eq!(Pod.deletion(&object, None), Deletion::Immediate);
    }

    #[test]
    fn keys_of_labels_become_selector_terms() {
        let mut object = json!({
            "metadata": {"labels": {"hash": "1"}},
            "spec": {"topologySpreadConstraints": [
                {"matchLabelKeys": ["hash", "none"], "labelSelector": {"matchLabels": {"a": "b"}}},
            ]},
        });
        Pod.prepare_for_create(&mut object);
        assert_eq!(
            object["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"],
            json!([{"key": "hash", "operator": "In", "values": ["1"]}])
        );
    }
}
