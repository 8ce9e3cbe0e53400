//! The rules of a custom resource: those of its schema, and its CEL rules.

use std::collections::HashSet;
use std::sync::LazyLock;

use parking_lot::Mutex;
use serde_json::Value;
use windlass_api::resource::Strategy;
use windlass_machinery::openapi::Rules;
use windlass_machinery::validation::{ErrorKind, Errors, Path};
use windlass_machinery::{meta, time};

use super::{embedded, expressions, json_path};

/// Faults that say that an object is not of its schema's type.
const BLOCKING: [ErrorKind; 5] = [
    ErrorKind::NotSupported,
    ErrorKind::Required,
    ErrorKind::TooLong,
    ErrorKind::TooMany,
    ErrorKind::TypeInvalid,
];

pub(super) struct CustomResource {
    schema: Value,
    rules: Rules,
    expressions: Option<expressions::Rules>,
    holds_others: bool,
    /// JSON path and type of each column.
    cells: Vec<(String, String)>,
    selectable: &'static [&'static str],
}

impl CustomResource {
    /// The rules of one version of a definition.
    pub(super) fn new(
        version: &Value,
        definition: &Value,
        cells: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let schema = &version["schema"]["openAPIV3Schema"];
        Ok(Self {
            rules: Rules::compile(schema).map_err(|error| {
                anyhow::anyhow!("schema of {}: {error}", meta::name(definition))
            })?,
            expressions: expressions::Rules::new(schema),
            holds_others: embedded::may_hold(schema),
            schema: schema.clone(),
            cells: cells.to_vec(),
            selectable: selectable(version),
        })
    }
}

impl Strategy for CustomResource {
    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        match old {
            Some(old) => self
                .rules
                .validate_change(object, old, &Path::root(), errors),
            None => self.rules.validate(object, &Path::root(), errors),
        }
        if self.holds_others {
            embedded::validate(&self.schema, object, &Path::root(), errors);
        }
        let Some(expressions) = &self.expressions else {
            return;
        };
        // Expressions may assume that types are right.
        if errors.iter().any(|error| BLOCKING.contains(&error.kind)) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing errors \
                          to complete validation";
            errors.invalid(&Path::root(), "null", detail);
            return;
        }
        expressions.check(&self.schema, object, old, errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, Some(old), errors);
    }

    /// Nothing but the status, unlike with most kinds.
    fn status_metadata(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable(&self) -> &'static [&'static str] {
        self.selectable
    }

    fn lists_fields(&self) -> bool {
        true
    }

    fn field(&self, object: &Value, name: &str) -> String {
        field(object, name)
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        self.cells
            .iter()
            .map(|(path, kind)| cell(object, path, kind, now))
            .collect()
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

/// The names of a version's selectable fields.
pub(super) fn selectable(version: &Value) -> &'static [&'static str] {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    let fields = fields.filter_map(|field| field["jsonPath"].as_str());
    let fields: Vec<&str> = fields.map(|path| path.trim_start_matches('.')).collect();
    interned(&fields)
}

/// The value by which an object is selected; absent is empty.
pub(super) fn field(object: &Value, name: &str) -> String {
    match json_path::value(object, name) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

/// A printer column's cell, as upstream's table convertor shows it: the first of what the path finds.
fn cell(object: &Value, path: &str, kind: &str, now: i64) -> Value {
    let Some(first) = json_path::value(object, path) else {
        return Value::Null;
    };
    match (kind, first) {
        ("date", Value::String(text)) => match time::parse_seconds(text) {
            Some(at) => time::duration_words(now - at).into(),
            None if text.is_empty() => "<unknown>".into(),
            None => "<invalid>".into(),
        },
        // Go's conversion cuts off what is behind the point.
        ("integer", Value::Number(number)) => match number.as_f64() {
            Some(number) if !first.is_i64() => (number as i64).into(),
            _ => first.clone(),
        },
        ("number", Value::Number(_))
        | ("boolean", Value::Bool(_))
        | ("string", Value::String(_)) => first.clone(),
        ("string", other) if !other.is_null() => other.to_string().into(),
        _ => Value::Null,
    }
}

/// Field names live as long as the process, since descriptors hand them out as such; each is kept once, so what
/// stays behind is bounded by the different names that definitions ever used.
fn interned(fields: &[&str]) -> &'static [&'static str] {
    static NAMES: LazyLock<Mutex<HashSet<&'static [&'static str]>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock();
    if let Some(known) = names.iter().find(|known| **known == fields) {
        return known;
    }
    let leaked: Vec<&'static str> = fields
        .iter()
        .map(|field| &*Box::leak((*field).to_owned().into_boxed_str()))
        .collect();
    let leaked: &'static [&'static str] = Box::leak(leaked.into_boxed_slice());
    names.insert(leaked);
    leaked
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What an apiextensions-apiserver 1.36.4 shows of the same objects.
    #[test]
    fn cells_are_those_of_upstream() {
        let object = json!({"text": "a", "none": "", "n": 7, "part": 2.5, "yes": true, "at": "1970-01-01T00:00:00Z",
            "list": ["x", "y"], "mixed": [{"a": 1}, null, 2.5], "empty": []});
        for (path, kind, expected) in [
            (".text", "string", json!("a")),
            (".n", "string", json!("7")),
            (".part", "string", json!("2.5")),
            (".yes", "string", json!("true")),
            (".list", "string", json!(r#"["x","y"]"#)),
            (".list[*]", "string", json!("x")),
            (".list[-1:]", "string", json!("y")),
            (".mixed[*]", "string", json!(r#"{"a":1}"#)),
            (".mixed[1]", "string", Value::Null),
            (".empty[*]", "string", Value::Null),
            (".n", "integer", json!(7)),
            (".part", "integer", json!(2)),
            (".text", "integer", Value::Null),
            (".part", "number", json!(2.5)),
            (".yes", "boolean", json!(true)),
            (".n", "boolean", Value::Null),
            (".at", "date", json!("90s")),
            (".none", "date", json!("<unknown>")),
            (".text", "date", json!("<invalid>")),
            (".n", "date", Value::Null),
            (".missing", "date", Value::Null),
        ] {
            assert_eq!(cell(&object, path, kind, 90), expected, "{path} {kind}");
        }
    }
}
