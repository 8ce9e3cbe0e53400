//! Label selectors, ready to be asked often.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

pub type Labels = BTreeMap<String, String>;

/// All of its requirements must be met; without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(BTreeSet<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
    /// An operator that this build does not know: nothing can be said to match it.
    Unknown,
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn parse(selector: &LabelSelector) -> Self {
        let equal = selector.match_labels.iter().flatten();
        let equal =
            equal.map(|(key, value)| Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
        let expressions = selector.match_expressions.iter().flatten();
        Self(equal.chain(expressions.map(Requirement::parse)).collect())
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.is_met(labels))
    }
}

impl Requirement {
    fn parse(expression: &LabelSelectorRequirement) -> Self {
        let key = expression.key.clone();
        let values = || expression.values.iter().flatten().cloned().collect();
        match expression.operator.as_str() {
            "In" => Self::In(key, values()),
            "NotIn" => Self::NotIn(key, values()),
            "Exists" => Self::Exists(key),
            "DoesNotExist" => Self::DoesNotExist(key),
            _ => Self::Unknown,
        }
    }

    fn is_met(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            // A label that is not there is in no set (labels.Requirement.Matches).
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
            Self::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let owned = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        owned.collect()
    }

    fn selector(json: serde_json::Value) -> Selector {
        Selector::parse(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(Selector::everything().matches(&labels(&[])));
        assert!(selector(serde_json::json!({})).matches(&labels(&[("a", "b")])));
    }

    #[test]
    fn every_operator_does_as_its_name_says() {
        let with = |operator: &str, values: &[&str]| {
            selector(serde_json::json!({
                "matchExpressions": [{"key": "tier", "operator": operator, "values": values}],
            }))
        };
        let (front, back, none) = (
            labels(&[("tier", "front")]),
            labels(&[("tier", "back")]),
            labels(&[]),
        );
        for (operator, values, expected) in [
            ("In", &["front"][..], [true, false, false]),
            ("NotIn", &["front"], [false, true, true]),
            ("Exists", &[], [true, true, false]),
            ("DoesNotExist", &[], [false, false, true]),
            ("Gt", &["1"], [false, false, false]),
        ] {
            let selector = with(operator, values);
            let found = [&front, &back, &none].map(|labels| selector.matches(labels));
            assert_eq!(found, expected, "{operator}");
        }
    }

    #[test]
    fn labels_and_expressions_must_all_match() {
        let both = selector(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "Exists"}],
        }));
        assert!(both.matches(&labels(&[("app", "web"), ("tier", "x")])));
        assert!(!both.matches(&labels(&[("app", "web")])));
        assert!(!both.matches(&labels(&[("app", "db"), ("tier", "x")])));
    }
}
