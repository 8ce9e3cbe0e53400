//! Priority and fairness of requests: `flowcontrol.apiserver.k8s.io/v1`.

pub mod flow_schema;
pub mod priority_level;

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Resource;
use crate::tree::{self, Tree};
use crate::validate::same;

fn flowcontrol(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("flowcontrol.apiserver.k8s.io", "v1", kind, plural)
        .cluster()
        .status()
}

pub fn resources() -> Vec<Resource> {
    vec![
        flowcontrol("FlowSchema", "flowschemas")
            .columns("PriorityLevel, MatchingPrecedence, DistinguisherMethod, Age, MissingPL")
            .rules(flow_schema::FlowSchema),
        flowcontrol("PriorityLevelConfiguration", "prioritylevelconfigurations")
            .columns("Type, NominalConcurrencyShares, Queues, HandSize, QueueLengthLimit, Age")
            .rules(priority_level::PriorityLevelConfiguration),
    ]
}

/// What the objects that every cluster must have say, whoever writes them.
fn mandatory_spec(kind: &str, name: &str) -> Option<Value> {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let rules = |subjects: Value| {
        json!([{
            "subjects": subjects,
            "resourceRules": [{
                "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"],
            }],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }])
    };
    Some(match (kind, name) {
        ("FlowSchema", "exempt") => json!({
            "matchingPrecedence": 1,
            "priorityLevelConfiguration": {"name": name},
            "rules": rules(json!([group("system:masters")])),
        }),
        ("FlowSchema", "catch-all") => json!({
            "matchingPrecedence": 10000,
            "priorityLevelConfiguration": {"name": name},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": rules(json!([group("system:unauthenticated"), group("system:authenticated")])),
        }),
        ("PriorityLevelConfiguration", "exempt") => json!({"type": "Exempt"}),
        ("PriorityLevelConfiguration", "catch-all") => json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"},
        }}),
        _ => return None,
    })
}

/// The mandatory objects stay as they are, but for the shares that are lent by requests without limits.
fn mandatory(object: &Value, kind: &str, errors: &mut Errors) {
    let name = object.text("metadata.name");
    let Some(fixed) = mandatory_spec(kind, name) else {
        return;
    };
    let mut spec = object.at("spec").clone();
    let but = match spec.get("exempt").is_some() && name == "exempt" {
        true => " except the 'spec.exempt' field",
        false => "",
    };
    tree::remove(&mut spec, "exempt");
    if !same(&spec, &fixed) {
        let detail = format!("spec of '{name}'{but} must equal the fixed value");
        errors.invalid(&Path::new("spec"), object.at("spec").clone(), detail);
    }
}

fn validate_conditions(object: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("conditions");
    let mut seen = HashSet::new();
    for (i, condition) in object.list("status.conditions").iter().enumerate() {
        let (kind, path) = (condition.text("type"), path.index(i).child("type"));
        if !seen.insert(kind) {
            errors.duplicate(&path, kind);
        }
        if kind.is_empty() {
            errors.required(&path, "must not be empty");
        }
    }
}
