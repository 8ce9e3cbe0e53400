//! Which nodes a pod may run on by labels and taints: pure rules that the scheduler, the DaemonSet
//! controller and taint eviction must read alike.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// Whether a toleration covers a taint (core/v1, field docs of Toleration).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |field: &Option<String>| field.as_deref().is_some_and(|text| !text.is_empty());
    if set(&toleration.effect) && toleration.effect.as_deref() != Some(&taint.effect) {
        return false;
    }
    if set(&toleration.key) && toleration.key.as_deref() != Some(&taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}

/// Whether any toleration of a pod covers a taint.
pub fn tolerated(spec: &PodSpec, taint: &Taint) -> bool {
    spec.tolerations
        .iter()
        .flatten()
        .any(|toleration| tolerates(toleration, taint))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = |value: &str| {
        requirement
            .values
            .iter()
            .flatten()
            .any(|listed| listed == value)
    };
    let bound = || requirement.values.as_ref()?.first()?.parse::<i64>().ok();
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        operator @ ("Gt" | "Lt") => {
            let number = value.and_then(|value| value.parse::<i64>().ok());
            match (number, bound()) {
                (Some(number), Some(bound)) if operator == "Gt" => number > bound,
                (Some(number), Some(bound)) => number < bound,
                _ => false,
            }
        }
        _ => false,
    }
}

/// Whether a node is selected by a term; one with no requirements selects nothing.
pub fn term_matches(
    term: &NodeSelectorTerm,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|wanted| holds(wanted, labels.get(&wanted.key).map(String::as_str)))
        && fields
            .iter()
            .all(|wanted| wanted.key == "metadata.name" && holds(wanted, Some(name)))
}

/// Whether nodeSelector and required node affinity of a pod allow a node.
pub fn allows(spec: &PodSpec, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|node| {
            node.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    selected
        && required.is_none_or(|selector| {
            selector
                .node_selector_terms
                .iter()
                .any(|term| term_matches(term, name, labels))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_toleration_matches_by_key_effect_and_value_unless_it_says_exists() {
        let taint = Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: "NoExecute".into(),
            time_added: None,
        };
        let cases = [
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"operator": "Exists", "effect": "NoExecute"}), true),
        ];
        for (toleration, expected) in cases {
            let parsed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&parsed, &taint), expected, "{toleration}");
        }
    }

    #[test]
    fn requirements_of_all_operators_select_nodes() {
        let labels = [
            ("disk".to_owned(), "ssd".to_owned()),
            ("gen".to_owned(), "3".to_owned()),
        ];
        let cases = [
            (
                json!({"key": "disk", "operator": "In", "values": ["ssd", "nvme"]}),
                true,
            ),
            (
                json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]}),
                false,
            ),
            (
                json!({"key": "none", "operator": "NotIn", "values": ["ssd"]}),
                true,
            ),
            (json!({"key": "disk", "operator": "Exists"}), true),
            (json!({"key": "disk", "operator": "DoesNotExist"}), false),
            (
                json!({"key": "gen", "operator": "Gt", "values": ["2"]}),
                true,
            ),
            (
                json!({"key": "gen", "operator": "Lt", "values": ["3"]}),
                false,
            ),
            (
                json!({"key": "disk", "operator": "Gt", "values": ["2"]}),
                false,
            ),
        ];
        for (expression, expected) in cases {
            let term = json!({"matchExpressions": [expression]});
            let term: NodeSelectorTerm = serde_json::from_value(term).unwrap();
            assert_eq!(
                term_matches(&term, "n", &labels.clone().into()),
                expected,
                "{term:?}"
            );
        }
        assert!(!term_matches(
            &NodeSelectorTerm::default(),
            "n",
            &labels.into()
        ));
    }
}
