//! The rules of a custom resource: those of its schema, and its CEL rules.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use kube_cel::{CompiledSchema, ErrorKind as CelError, Validator};
use parking_lot::Mutex;
use serde_json::Value;
use windlass_api::resource::Strategy;
use windlass_machinery::openapi::Rules;
use windlass_machinery::validation::{ErrorKind, Errors, Path};
use windlass_machinery::{meta, time};

use super::{json_path, ratchet};

pub(super) struct CustomResource {
    /// With rules as the evaluator knows them.
    schema: Value,
    /// Rules as they were written, by what became of them.
    written: HashMap<String, String>,
    rules: Rules,
    expressions: Option<CompiledSchema>,
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
        let mut plain = schema.clone();
        let mut written = HashMap::new();
        write_out(&mut plain, &mut written);
        let has_expressions = schema.to_string().contains("\"x-kubernetes-validations\"");
        let fields = version["selectableFields"].as_array().into_iter().flatten();
        let fields = fields.filter_map(|field| field["jsonPath"].as_str());
        let fields: Vec<&str> = fields.map(|path| path.trim_start_matches('.')).collect();
        Ok(Self {
            written,
            rules: Rules::compile(schema).map_err(|error| {
                anyhow::anyhow!("schema of {}: {error}", meta::name(definition))
            })?,
            expressions: has_expressions.then(|| kube_cel::compile_schema(&plain)),
            schema: plain,
            cells: cells.to_vec(),
            selectable: interned(&fields),
        })
    }

    fn check(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        match old {
            Some(old) => self
                .rules
                .validate_change(object, old, &Path::root(), errors),
            None => self.rules.validate(object, &Path::root(), errors),
        }
        // Rules may assume that types are right.
        let Some(expressions) = self.expressions.as_ref().filter(|_| errors.is_empty()) else {
            return;
        };
        let Err(found) = Validator::new().validate_compiled(expressions, object, old) else {
            return;
        };
        for fault in found {
            // What only says something of the new state has held before.
            if let Some(old) = old
                && fault.kind == CelError::ValidationFailure
                && !fault.rule.contains("oldSelf")
                && ratchet::is_unchanged(&fault.rule, &fault.field_path, &self.schema, object, old)
            {
                continue;
            }
            let path = if fault.field_path.is_empty() {
                Path::root()
            } else {
                Path::new(&fault.field_path)
            };
            let kind = match (&fault.kind, fault.reason.as_deref()) {
                (CelError::ValidationFailure, Some("FieldValueRequired")) => ErrorKind::Required,
                (CelError::ValidationFailure, Some("FieldValueForbidden")) => ErrorKind::Forbidden,
                (CelError::ValidationFailure, Some("FieldValueDuplicate")) => ErrorKind::Duplicate,
                _ => ErrorKind::Invalid,
            };
            let value = json_path::value(object, &fault.field_path).cloned();
            errors.push(
                kind,
                &path,
                value.unwrap_or_else(|| object.clone()),
                match self.written.get(&fault.rule) {
                    Some(written) => fault.message.replace(&fault.rule, written),
                    None => fault.message.clone(),
                },
            );
        }
    }
}

/// Writes out what the evaluator does not know in a schema's rules.
fn write_out(schema: &mut Value, written: &mut HashMap<String, String>) {
    match schema {
        Value::Object(map) => {
            let rules = map.get_mut("x-kubernetes-validations");
            let rules = rules.and_then(Value::as_array_mut).into_iter().flatten();
            for rule in rules {
                for field in ["rule", "messageExpression"] {
                    let Some(text) = rule[field].as_str() else {
                        continue;
                    };
                    let plain = crate::cel::plain(text).into_owned();
                    if plain != text {
                        written.insert(plain.clone(), text.to_owned());
                        rule[field] = plain.into();
                    }
                }
            }
            map.values_mut().for_each(|inner| write_out(inner, written));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| write_out(inner, written)),
        _ => {}
    }
}

impl Strategy for CustomResource {
    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        self.check(object, None, errors);
    }

    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.check(new, Some(old), errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.check(new, Some(old), errors);
    }

    fn selectable(&self) -> &'static [&'static str] {
        self.selectable
    }

    fn field(&self, object: &Value, name: &str) -> String {
        match json_path::value(object, name) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        }
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

/// A printer column's cell, as upstream's table convertor shows it.
fn cell(object: &Value, path: &str, kind: &str, now: i64) -> Value {
    let found = json_path::select(object, path);
    let Some(first) = found.first() else {
        return Value::Null;
    };
    match kind {
        "date" => {
            let at = first.as_str().and_then(time::parse_seconds);
            match at {
                Some(at) => time::duration_words(now - at).into(),
                None => "<unknown>".into(),
            }
        }
        "integer" | "number" if first.is_number() => (*first).clone(),
        "boolean" if first.is_boolean() => (*first).clone(),
        "string" => match (found.len(), first) {
            (1, Value::String(text)) => text.as_str().into(),
            (1, other) => other.to_string().into(),
            (_, _) => {
                let texts: Vec<String> = found
                    .iter()
                    .map(|value| {
                        value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned)
                    })
                    .collect();
                texts.join(",").into()
            }
        },
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
