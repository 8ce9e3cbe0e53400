//! Label selectors and field selectors: the texts of query parameters, and `metav1.LabelSelector` objects.
//!
//! The grammar and the sentences of errors follow `k8s.io/apimachinery/pkg/labels` and `…/pkg/fields`.

mod field;
mod lexer;

use std::fmt;

use serde_json::{Map, Value};

pub use field::{FieldOp, FieldRequirement, FieldSelector};

use crate::names;

/// A selector that cannot be parsed, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// All requirements must hold; without any, everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// A null `metav1.LabelSelector` matches nothing, an empty one everything.
    nothing: bool,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub op: Operator,
    /// Sorted; empty for the operators that take none.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// `app=web,tier in (a,b),!legacy`
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let requirements = lexer::parse(text)?;
        Ok(Self::from_requirements(requirements))
    }

    fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self {
            requirements,
            nothing: false,
        }
    }

    /// From a `metav1.LabelSelector`; null matches nothing.
    pub fn from_value(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::In, vec![value])?);
        }
        for expression in selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let text = format!("{other:?} is not a valid label selector operator");
                    return Err(SelectorError(text));
                }
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            let key = expression["key"].as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, operator, values)?);
        }
        Ok(Self::from_requirements(requirements))
    }

    /// From a plain map, as a ReplicationController or a Service has it. An empty one matches everything: whether
    /// that is meant is the caller's to decide.
    pub fn from_map(labels: &Map<String, Value>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                op: Operator::In,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            })
            .collect();
        Self::from_requirements(requirements)
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it restricts nothing.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| {
            labels
                .and_then(|labels| labels.get(key))
                .and_then(Value::as_str)
        })
    }

    /// The same for labels that are kept in another form.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }
}

impl Requirement {
    pub fn new(key: &str, op: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        let invalid = |path: &str, value: &dyn fmt::Debug, why: &str| {
            Err(SelectorError(format!(
                "{path}: Invalid value: {value:?}: {why}"
            )))
        };
        if let Some(why) = names::is_qualified_name(key).first() {
            return invalid("key", &key, why);
        }
        match op {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return invalid(
                    "values",
                    &values,
                    "for 'in', 'notin' operators, values set can't be empty",
                );
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                let why = "values set must be empty for exists and does not exist";
                return invalid("values", &values, why);
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    let why = "for 'Gt', 'Lt' operators, exactly one value is required";
                    return invalid("values", &values, why);
                }
                if values[0].parse::<i64>().is_err() {
                    let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                    return invalid("values[0]", &values[0], why);
                }
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            if let Some(why) = names::is_label_value(value).first() {
                return invalid(&format!("values[{index}][{key}]"), value, why);
            }
        }
        values.sort();
        values.dedup();
        Ok(Self {
            key: key.to_owned(),
            op,
            values,
        })
    }

    fn matches(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|value| value == label);
        let compare = |holds: fn(i64, i64) -> bool| {
            let bound = self.values.first().and_then(|value| value.parse().ok());
            let label = label.and_then(|label| label.parse().ok());
            label
                .zip(bound)
                .is_some_and(|(label, bound)| holds(label, bound))
        };
        match self.op {
            Operator::In => label.is_some_and(listed),
            Operator::NotIn => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => compare(|label, bound| label > bound),
            Operator::LessThan => compare(|label, bound| label < bound),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, op, values } = self;
        match (op, values.as_slice()) {
            (Operator::In, [value]) => write!(f, "{key}={value}"),
            (Operator::NotIn, [value]) => write!(f, "{key}!={value}"),
            (Operator::In, values) => write!(f, "{key} in ({})", values.join(",")),
            (Operator::NotIn, values) => write!(f, "{key} notin ({})", values.join(",")),
            (Operator::Exists, _) => f.write_str(key),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::GreaterThan, values) => write!(f, "{key}>{}", values.join(",")),
            (Operator::LessThan, values) => write!(f, "{key}<{}", values.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn labels() -> Map<String, Value> {
        json!({"app": "web", "tier": "a", "n": "5", "empty": ""})
            .as_object()
            .unwrap()
            .clone()
    }

    #[rstest]
    #[case("", true)]
    #[case("app=web", true)]
    #[case("app==web", true)]
    #[case("app!=web", false)]
    #[case("missing!=web", true)]
    #[case("app in (web, db)", true)]
    #[case("app notin (web,db)", false)]
    #[case("missing notin (x)", true)]
    #[case("app", true)]
    #[case("!app", false)]
    #[case("!missing", true)]
    #[case(" app = web , tier in ( a ) ", true)]
    #[case("app=web,tier=b", false)]
    #[case("n>4", true)]
    #[case("n<5", false)]
    #[case("app>1", false)]
    #[case("empty=", true)]
    #[case("app=", false)]
    #[case("empty in (,x)", true)]
    #[case("in in (in)", false)]
    fn matching(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(
            LabelSelector::parse(text).unwrap().matches(Some(&labels())),
            expected,
            "{text}"
        );
    }

    #[rstest]
    #[case("app=web,", "found '', expected: identifier after ','")]
    #[case(",app", "found ',', expected: !, identifier, or 'end of string'")]
    #[case(
        "app web",
        "unable to parse requirement: found 'web', expected: in, notin, =, ==, !=, gt, lt"
    )]
    #[case("app in web", "unable to parse requirement: found 'web' expected: '('")]
    #[case("app in ()", "unable to parse requirement: values: Invalid value")]
    #[case(
        "-a=b",
        "unable to parse requirement: key: Invalid value: \"-a\": name part must consist of"
    )]
    #[case(
        "a=-b",
        "unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label must"
    )]
    #[case("a in (b", "unable to parse requirement: found '', expected: ')'")]
    #[case("a>b", "unable to parse requirement: values[0]: Invalid value")]
    fn refused(#[case] text: &str, #[case] message: &str) {
        let error = LabelSelector::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }

    #[test]
    fn objects_select_as_texts_do() {
        let selector = LabelSelector::from_value(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["b", "a"]},
                {"key": "gone", "operator": "DoesNotExist"},
            ],
        }))
        .unwrap();
        assert_eq!(selector.to_string(), "app=web,!gone,tier in (a,b)");
        assert!(selector.matches(Some(&labels())));
        assert!(
            !LabelSelector::from_value(&Value::Null)
                .unwrap()
                .matches(Some(&labels()))
        );
        assert!(LabelSelector::from_value(&json!({})).unwrap().matches(None));
        let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        assert_eq!(
            LabelSelector::from_value(&wrong).unwrap_err().to_string(),
            "\"Near\" is not a valid label selector operator"
        );
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let key = prop::sample::select(vec!["a", "b", "example.com/c"]);
        let values = prop::collection::vec(prop::sample::select(vec!["", "x", "y", "z"]), 1..4);
        (key, 0..5, values, any::<i32>()).prop_map(|(key, op, values, number)| {
            let values = values.into_iter().map(str::to_owned).collect();
            match op {
                0 => Requirement::new(key, Operator::In, values),
                1 => Requirement::new(key, Operator::NotIn, values),
                2 => Requirement::new(key, Operator::Exists, vec![]),
                3 => Requirement::new(key, Operator::DoesNotExist, vec![]),
                _ => Requirement::new(
                    key,
                    Operator::LessThan,
                    vec![number.unsigned_abs().to_string()],
                ),
            }
            .unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_printed_selector_parses_to_itself(requirements in prop::collection::vec(requirement(), 0..5)) {
            let selector = LabelSelector::from_requirements(requirements);
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn a_selector_is_the_conjunction_of_its_requirements(
            requirements in prop::collection::vec(requirement(), 0..4),
            labels in prop::collection::btree_map(
                prop::sample::select(vec!["a", "b", "example.com/c"]),
                prop::sample::select(vec!["", "x", "y", "7"]), 0..3),
        ) {
            let model = requirements.iter().all(|r| {
                let label = labels.get(r.key.as_str()).copied();
                let listed = label.is_some_and(|l| r.values.iter().any(|v| v == l));
                match r.op {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => label.is_some(),
                    Operator::DoesNotExist => label.is_none(),
                    Operator::GreaterThan => unreachable!(),
                    Operator::LessThan => label == Some("7") && r.values[0].parse::<i64>().unwrap() > 7,
                }
            });
            let selector = LabelSelector::from_requirements(requirements);
            prop_assert_eq!(selector.matches_with(|key| labels.get(key).copied()), model);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-c!=<>(), inot\\\\]{0,30}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
