//! CEL expressions over what is being admitted: `object`, `oldObject`, `request`, and what the caller adds.
//!
//! The language and Kubernetes' functions come from `kube-cel`; this is the seam, so that numbers keep the
//! types that Kubernetes gives them and an evaluation's failure is a value.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::Value;

/// The longest expression that is compiled, in bytes; the parser works in the length's order.
const MAX_LENGTH: usize = 64 * 1024;

/// What expressions may name.
pub(crate) struct Variables(Context<'static>);

impl Variables {
    pub(crate) fn new() -> Self {
        Self(Context::default().with_all())
    }

    pub(crate) fn set(&mut self, name: &str, value: &Value) {
        self.0.add_variable_from_value(name, to_cel(value));
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

    fn evaluate(&self, expression: &str) -> Result<Cel, String> {
        if expression.len() > MAX_LENGTH {
            return Err(format!("expression is longer than {MAX_LENGTH} bytes"));
        }
        let program =
            Program::compile(expression).map_err(|e| format!("compilation failed: {e}"))?;
        program.execute(&self.0).map_err(|e| e.to_string())
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
}
