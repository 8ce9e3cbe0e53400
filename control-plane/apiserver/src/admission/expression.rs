//! CEL expressions over what is being admitted: `object`, `oldObject`, `request`, and what the caller adds.
//!
//! The language and Kubernetes' functions come from `kube-cel`; this is the seam, so that numbers keep the
//! types that Kubernetes gives them and an evaluation's failure is a value.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::Value;

use super::authorizer::{self, Target};
use super::cost;
use crate::authn::UserInfo;
use crate::authz::Authorizer;
use crate::cel;

/// What composed variables are fields of.
const VARIABLES: &str = "variables";

/// What expressions may name.
pub(crate) struct Variables {
    context: Context<'static>,
    /// The same values as JSON, by which an expression's cost is bounded.
    known: Vec<(String, Value)>,
    /// Composed variables that have no value, and why.
    failed: Vec<(String, String)>,
}

impl Variables {
    pub(crate) fn new() -> Self {
        Self {
            context: cel::context(),
            known: Vec::new(),
            failed: Vec::new(),
        }
    }

    pub(crate) fn set(&mut self, name: &str, value: &Value) {
        self.context.add_variable_from_value(name, to_cel(value));
        self.known.retain(|(known, _)| known != name);
        self.known.push((name.to_owned(), value.clone()));
    }

    /// Defines `authorizer`, which answers for the user.
    pub(super) fn authorize(
        &mut self,
        authorizer: Arc<dyn Authorizer>,
        user: &UserInfo,
        target: &Target<'_>,
    ) {
        authorizer::define(&mut self.context, authorizer, user, target);
    }

    /// Defines `variables.<name>` for each name and expression; later ones may use earlier ones. One that
    /// fails makes those expressions fail that use it.
    pub(crate) fn compose<'a>(&mut self, definitions: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut values: HashMap<Key, Cel> = HashMap::new();
        let mut known = serde_json::Map::new();
        self.failed.clear();
        self.bind(&values);
        for (name, expression) in definitions {
            match self.evaluate(expression) {
                Ok(value) => {
                    known.insert(name.to_owned(), to_json(&value));
                    self.known.retain(|(known, _)| known != VARIABLES);
                    self.known
                        .push((VARIABLES.to_owned(), known.clone().into()));
                    values.insert(Key::String(Arc::new(name.to_owned())), value);
                    self.bind(&values);
                }
                Err(why) => self.failed.push((name.to_owned(), why)),
            }
        }
    }

    fn bind(&mut self, values: &HashMap<Key, Cel>) {
        let map = Arc::new(values.clone());
        self.context
            .add_variable_from_value(VARIABLES, Cel::Map(Map { map }));
    }

    /// Evaluates an expression that answers yes or no.
    ///
    /// # Errors
    /// The compiler's or evaluator's sentence, or that the answer is no boolean.
    pub(crate) fn holds(&self, expression: &str) -> Result<bool, String> {
        match self.evaluate(expression)? {
            Cel::Bool(answer) => Ok(answer),
            other => Err(format!("must evaluate to bool, got {:?}", other.type_of())),
        }
    }

    /// Evaluates an expression that answers with a text.
    ///
    /// # Errors
    /// The compiler's or evaluator's sentence, or that the answer is no text.
    pub(crate) fn text(&self, expression: &str) -> Result<String, String> {
        match self.evaluate(expression)? {
            Cel::String(text) => Ok(text.to_string()),
            other => Err(format!(
                "must evaluate to string, got {:?}",
                other.type_of()
            )),
        }
    }

    fn evaluate(&self, expression: &str) -> Result<Cel, String> {
        let program = cel::compile(expression)?;
        let known: Vec<_> = self
            .known
            .iter()
            .map(|(name, v)| (name.clone(), v))
            .collect();
        if cost::bound(program.expression(), &known) > cost::LIMIT {
            return Err("operation cancelled: actual cost limit exceeded".to_owned());
        }
        program.execute(&self.context).map_err(|error| {
            let used = |name: &str| expression.contains(&format!("variables.{name}"));
            match self.failed.iter().find(|(name, _)| used(name)) {
                Some((name, why)) => {
                    format!("composited variable {name:?} fails to evaluate: {why}")
                }
                None => error.to_string(),
            }
        })
    }
}

/// What a rule may cost for each value that keeps to the schema.
pub(super) fn rule_cost(rule: &Program, schema: &Value) -> u64 {
    cost::bound_of_rule(rule.expression(), schema)
}

/// What has a length, for the cost of expressions over it.
fn to_json(value: &Cel) -> Value {
    match value {
        Cel::String(text) => Value::String(text.to_string()),
        Cel::List(items) => items.iter().map(to_json).collect(),
        Cel::Map(map) => {
            let entries = map.map.iter();
            entries
                .map(|(key, value)| (key.to_string(), to_json(value)))
                .collect()
        }
        _ => Value::Null,
    }
}

/// JSON as CEL sees it: whole numbers are `int`, others `double`.
fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(n) => match n.as_i64() {
            Some(int) => Cel::Int(int),
            None => Cel::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(s) => Cel::String(Arc::new(s.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(map) => {
            let entries: HashMap<Key, Cel> = map
                .iter()
                .map(|(key, value)| (Key::String(Arc::new(key.clone())), to_cel(value)))
                .collect();
            Cel::Map(Map {
                map: Arc::new(entries),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_see_the_object_and_fail_as_values() {
        let mut variables = Variables::new();
        variables.set(
            "object",
            &json!({"spec": {"replicas": 3}, "metadata": {"labels": {"a": "b"}}}),
        );
        let table = [
            ("object.spec.replicas > 2", Ok(true)),
            ("has(object.metadata.annotations)", Ok(false)),
            (
                "'a' in object.metadata.labels && object.metadata.labels['a'].startsWith('b')",
                Ok(true),
            ),
        ];
        for (expression, expected) in table {
            assert_eq!(variables.holds(expression), expected, "{expression}");
        }
        for bad in ["object.spec.missing > 1", "1 +", "'text'"] {
            assert!(variables.holds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn optional_fields_and_macros_of_two_variables_are_known() {
        let mut variables = Variables::new();
        variables.set(
            "object",
            &json!({"spec": {"replicas": 3}, "labels": {"a": "x", "b": "y"}, "list": [5, 6, 7]}),
        );
        for expression in [
            "object.?spec.?replicas.orValue(1) == 3",
            "object.?spec.missing.orValue(1) == 1",
            "!object.?no.field.hasValue() && object.?labels['a'].value() == 'x'",
            "object.list[?1].orValue(0) == 6 && object.list[?9].orValue(0) == 0",
            "object.?spec.optMap(s, s.replicas * 2).value() == 6",
            "object.?no.or(object.?spec).hasValue()",
            "object.labels.all(k, v, k != v) && object.list.exists(i, v, i == 2 && v == 7)",
            "object.list.existsOne(i, v, v == 6)",
            "object.list.transformList(i, v, i > 0, v + i) == [7, 9]",
            "object.labels.transformMap(k, v, v + '!') == {'a': 'x!', 'b': 'y!'}",
            "object.labels.transformMapEntry(k, v, {v: k}) == {'x': 'a', 'y': 'b'}",
        ] {
            assert_eq!(variables.holds(expression), Ok(true), "{expression}");
        }
    }

    #[test]
    fn composed_variables_build_on_each_other_and_fail_where_they_are_used() {
        let mut variables = Variables::new();
        variables.set("object", &json!({"spec": {"replicas": 3}}));
        let definitions = [
            ("replicas", "object.spec.replicas"),
            ("double", "variables.replicas * 2"),
            ("broken", "object.spec.missing + 1"),
        ];
        variables.compose(definitions.into_iter());
        assert_eq!(variables.holds("variables.double == 6"), Ok(true));
        assert_eq!(
            variables
                .text("'has ' + string(variables.replicas)")
                .as_deref(),
            Ok("has 3")
        );
        let failed = variables.holds("variables.broken == 1").unwrap_err();
        assert!(
            failed.starts_with("composited variable \"broken\" fails to evaluate"),
            "{failed}"
        );
        let definitions = [("tens", "[0,1,2,3,4,5,6,7,8,9]")];
        variables.compose(definitions.into_iter());
        let bomb = (0..8).fold("true".to_owned(), |body, n| {
            format!("variables.tens.all(v{n}, {body})")
        });
        assert!(
            variables
                .holds(&bomb)
                .unwrap_err()
                .contains("cost limit exceeded")
        );
        assert!(variables.text("1").is_err());
        assert!(cel::compile("1 +").is_err() && cel::compile("1 + 1").is_ok());
        assert!(cel::compile("Object{}").is_err());
    }
}
