//! Nodes.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{ErrorKind, Errors, Path};

use super::pod_spec::toleration::EFFECTS;
use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::quantities::amount as quantity;
use crate::validate::{one_of, one_of_each_family, same, sentences};

pub struct Node;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
        // Without an allocatable of its own, a node offers all it has.
        if !object.has("status.allocatable")
            && let Some(capacity) = object.map("status.capacity").cloned()
        {
            tree::set(object, "status.allocatable", capacity);
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        // Upstream's path of these begins with `metadata`.
        let path = Path::new("metadata").child("taints");
        taints(object.at("spec.taints"), &path, errors);
        let status = Path::new("status");
        for list in ["capacity", "allocatable"] {
            for (name, amount) in object.at("status").entries(list) {
                quantity(name, amount, &status.child(list).child(name), errors);
            }
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        cidrs(object, &Path::new("spec").child("podCIDRs"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        let addresses = new.list("status.addresses");
        for (i, address) in addresses.iter().enumerate() {
            if addresses[..i].contains(address) {
                let path = Path::new("status").child("addresses").index(i);
                errors.duplicate(&path, address.clone());
            }
        }
        let before = old.list("spec.podCIDRs");
        if !before.is_empty() && !same(new.at("spec.podCIDRs"), old.at("spec.podCIDRs")) {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.forbidden(&spec.child("podCIDRs"), detail);
        }
        if old.text("spec.providerID") != new.text("spec.providerID")
            && !old.text("spec.providerID").is_empty()
        {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden(&spec.child("providerID"), detail);
        }
        if new.text("spec.externalID") != old.text("spec.externalID") {
            errors.forbidden(&spec.child("externalID"), "may not be updated");
        }
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate_change(new, old, errors);
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if new.has("spec.configSource") {
            found.push("spec.configSource: the feature is removed".to_owned());
        }
        if !new.text("spec.externalID").is_empty() {
            let warning = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
            found.push(warning.to_owned());
        }
        found
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::remove(object, "spec.configSource");
        pair_cidrs(object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if !old.has("spec.configSource") {
            tree::remove(new, "spec.configSource");
        }
        pair_cidrs(new);
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn field(&self, object: &Value, _name: &str) -> String {
        object.flag("spec.unschedulable").to_string()
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let info = object.at("status.nodeInfo");
        cells![
            status(object),
            roles(object),
            age(object, now),
            info.text("kubeletVersion"),
            address(object, "InternalIP"),
            address(object, "ExternalIP"),
            or(info.text("osImage"), "<unknown>"),
            or(info.text("kernelVersion"), "<unknown>"),
            or(info.text("containerRuntimeVersion"), "<unknown>"),
        ]
    }
}

/// `podCIDR` is always the first of `podCIDRs`; where both are given and differ, the older field counts.
fn pair_cidrs(object: &mut Value) {
    let first = object.list("spec.podCIDRs").first().cloned();
    let single = object.text("spec.podCIDR").to_owned();
    match first {
        Some(first) if single.is_empty() => tree::set(object, "spec.podCIDR", first),
        Some(first) if first == single => {}
        None if single.is_empty() => {}
        _ => tree::set(object, "spec.podCIDRs", vec![Value::from(single)]),
    }
}

/// One range of each family at most.
fn cidrs(object: &Value, path: &Path, errors: &mut Errors) {
    let list = object.list("spec.podCIDRs");
    for (i, cidr) in list.iter().enumerate() {
        let text = cidr.as_str().unwrap_or_default();
        sentences(names::is_valid_cidr(text), &path.index(i), text, errors);
    }
    one_of_each_family(
        list,
        |cidr| cidr.as_str().unwrap_or_default(),
        "CIDR",
        path,
        errors,
    );
}

/// Taints of a node; `path` is the list's.
fn taints(list: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, taint) in list.as_array().into_iter().flatten().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (taint.text("key"), taint.text("value"), taint.text("effect"));
        let problems = names::is_qualified_name(key);
        sentences(problems, &path.child("key"), key, errors);
        let problems = names::is_label_value(value);
        if !problems.is_empty() {
            errors.invalid(&path.child("value"), value, problems.join(";"));
        }
        one_of(taint, "effect", EFFECTS, &path, errors);
        if !seen.insert((key, effect)) {
            let detail = "taints must be unique by key and effect pair";
            errors.push(ErrorKind::Duplicate, &path, taint.clone(), detail);
        }
    }
}

fn status(object: &Value) -> String {
    let ready = object
        .list("status.conditions")
        .iter()
        .find(|c| c.text("type") == "Ready");
    let mut text = match ready.map(|c| c.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object.flag("spec.unschedulable") {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(object: &Value) -> String {
    let roles: BTreeSet<_> = object
        .entries("metadata.labels")
        .filter_map(|(key, value)| match key {
            "kubernetes.io/role" => value.as_str(),
            _ => key.strip_prefix(ROLE_PREFIX),
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() {
        return "<none>".to_owned();
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn address<'a>(object: &'a Value, kind: &str) -> &'a str {
    object
        .list("status.addresses")
        .iter()
        .find(|address| address.text("type") == kind)
        .map_or("<none>", |address| address.text("address"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn rows_tell_state_and_roles() {
        let object = json!({
            "metadata": {"labels": {
                "node-role.kubernetes.io/worker": "",
                "node-role.kubernetes.io/control-plane": "",
            }},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.35.0"},
            },
        });
        let row = Node.row(&object, 0);
        assert_eq!(
            row,
            [
                json!("Ready,SchedulingDisabled"),
                json!("control-plane,worker"),
                json!("<unknown>"),
                json!("v1.35.0"),
                json!("10.0.0.1"),
                json!("<none>"),
                json!("<unknown>"),
                json!("<unknown>"),
                json!("<unknown>"),
            ]
        );
    }

    #[test]
    fn taints_and_addresses_of_a_node_are_guarded() {
        let node = json!({"spec": {"taints": [
            {"key": "a", "effect": "NoSchedule"},
            {"key": "a", "effect": "NoSchedule"},
            {"key": "b", "effect": "Later"},
        ]}});
        assert_eq!(
            lines(|e| Node.validate(&node, None, e)),
            [
                "metadata.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}: taints must be \
                 unique by key and effect pair",
                "metadata.taints[2].effect: Unsupported value: \"Later\": supported values: \"NoSchedule\", \
                 \"PreferNoSchedule\", \"NoExecute\"",
            ]
        );
        let old = json!({"spec": {"podCIDRs": ["10.244.0.0/24"]}});
        let new = json!({"spec": {"podCIDRs": ["10.244.1.0/24"]}});
        assert_eq!(
            lines(|e| Node.validate_update(&new, &old, e)),
            [
                "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
            ]
        );
    }
}
