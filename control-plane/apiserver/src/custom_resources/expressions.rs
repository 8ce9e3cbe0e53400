//! The CEL rules of a custom resource (KEP-2876): each is asked of the part of an object whose schema has it.
//!
//! A rule that names `oldSelf` is asked only where there is an old value to compare with: below maps and lists with keys.
//! One that does not name it is passed over where it fails for what has not changed (KEP-4008).

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::Value;
use windlass_machinery::validation::{ErrorKind, Errors, Path};

use crate::cel;

/// What holds the old value of rules to which it may be missing: a list of one, or of none.
pub(crate) const MAYBE_OLD: &str = "oldSelf__";
/// Longer messages are not made (upstream's `MaxEvaluatedMessageExpressionSizeBytes`).
const LONGEST_MESSAGE: usize = 5 * 1024;

/// The rules of a schema and of those inside it; schemas without any are left out.
#[derive(Default)]
pub(super) struct Rules {
    own: Vec<Rule>,
    properties: HashMap<String, Rules>,
    /// Of a list's elements, or a map's values.
    inside: Option<Box<Rules>>,
    all_of: Vec<Rules>,
}

struct Rule {
    /// Or why there is none: it was written to a server that knew more.
    program: Result<Arc<Program>, String>,
    names_old: bool,
    old_may_be_missing: bool,
    message_program: Option<Arc<Program>>,
    message: String,
    reason: ErrorKind,
    field_path: Option<String>,
}

/// A rule's text with the old value as it is given to it.
pub(crate) fn text_of(rule: &Value, field: &str) -> String {
    let text = rule[field].as_str().unwrap_or_default().trim();
    match rule["optionalOldSelf"] == true {
        true => cel::with_optional(text, "oldSelf", MAYBE_OLD),
        false => text.to_owned(),
    }
}

/// Whether a program is about what was before.
pub(crate) fn names_old(program: &Program) -> bool {
    let references = program.references();
    references.has_variable("oldSelf") || references.has_variable(MAYBE_OLD)
}

impl Rule {
    fn new(rule: &Value) -> Option<Self> {
        let text = text_of(rule, "rule");
        if text.is_empty() {
            return None;
        }
        let given = rule["message"].as_str().unwrap_or_default().trim();
        let program = cel::compile(&text);
        let message = text_of(rule, "messageExpression");
        Some(Self {
            names_old: program.as_deref().is_ok_and(names_old),
            program,
            old_may_be_missing: rule["optionalOldSelf"] == true,
            message_program: cel::compile(&message).ok().filter(|_| !message.is_empty()),
            message: match given {
                "" => format!(
                    "failed rule: {}",
                    rule["rule"].as_str().unwrap_or_default().trim()
                ),
                given => given.to_owned(),
            },
            reason: match rule["reason"].as_str() {
                Some("FieldValueRequired") => ErrorKind::Required,
                Some("FieldValueForbidden") => ErrorKind::Forbidden,
                Some("FieldValueDuplicate") => ErrorKind::Duplicate,
                _ => ErrorKind::Invalid,
            },
            field_path: rule["fieldPath"]
                .as_str()
                .map(|path| path.trim().trim_start_matches('.').to_owned())
                .filter(|path| !path.is_empty()),
        })
    }

    /// What the rule says against the values in `scope`.
    fn complaint(&self, scope: &Context<'_>) -> Option<(ErrorKind, String)> {
        let program = match &self.program {
            Ok(program) => program,
            Err(why) => return Some((ErrorKind::Invalid, format!("rule compile error: {why}"))),
        };
        match program.execute(scope) {
            Ok(Cel::Bool(true)) => None,
            Ok(_) => Some((self.reason, self.message(scope))),
            Err(why) => {
                let what = format!("{why} evaluating rule: {}", self.message);
                Some((ErrorKind::Invalid, what))
            }
        }
    }

    fn message(&self, scope: &Context<'_>) -> String {
        let program = self.message_program.as_ref();
        match program.map(|program| program.execute(scope)) {
            Some(Ok(Cel::String(text))) => {
                let text = text.trim();
                let is_fit =
                    !text.is_empty() && !text.contains('\n') && text.len() <= LONGEST_MESSAGE;
                if is_fit {
                    text.to_owned()
                } else {
                    self.message.clone()
                }
            }
            _ => self.message.clone(),
        }
    }
}

/// What a value was before.
#[derive(Clone, Copy)]
struct Before<'v> {
    /// Whether the old value, or that there was none, is known.
    is_known: bool,
    old: Option<&'v Value>,
    /// Whether the value is inside of one that has not changed.
    is_in_unchanged: bool,
}

impl<'v> Before<'v> {
    /// What a part was, whose old value is this if it can be told.
    fn part(self, is_in_unchanged: bool, old: Option<Option<&'v Value>>) -> Self {
        Self {
            is_known: self.is_known && old.is_some(),
            old: old.flatten().filter(|_| self.is_known),
            is_in_unchanged,
        }
    }

    fn is_unchanged(self, value: &Value) -> bool {
        self.is_in_unchanged || (self.is_known && self.old == Some(value))
    }
}

impl Rules {
    /// `None`: nothing in the schema has a rule.
    pub(super) fn new(schema: &Value) -> Option<Self> {
        schema.as_object()?;
        let list = |field: &str| schema[field].as_array().into_iter().flatten();
        let properties = schema["properties"].as_object().into_iter().flatten();
        let inside = ["items", "additionalProperties"];
        let rules = Self {
            own: list("x-kubernetes-validations")
                .filter_map(Rule::new)
                .collect(),
            properties: properties
                .filter_map(|(name, property)| Some((name.clone(), Self::new(property)?)))
                .collect(),
            inside: inside
                .iter()
                .find_map(|name| Self::new(&schema[*name]))
                .map(Box::new),
            all_of: list("allOf").filter_map(Self::new).collect(),
        };
        let is_empty = rules.own.is_empty()
            && rules.properties.is_empty()
            && rules.inside.is_none()
            && rules.all_of.is_empty();
        (!is_empty).then_some(rules)
    }

    /// Asks every rule of an object that keeps to `schema`.
    pub(super) fn check(
        &self,
        schema: &Value,
        object: &Value,
        old: Option<&Value>,
        errors: &mut Errors,
    ) {
        let before = Before {
            is_known: old.is_some(),
            old,
            is_in_unchanged: false,
        };
        cel::with_context(|context| {
            self.walk(context, schema, object, before, &Path::root(), errors)
        });
    }

    fn walk(
        &self,
        context: &Context<'_>,
        schema: &Value,
        value: &Value,
        before: Before<'_>,
        path: &Path,
        errors: &mut Errors,
    ) {
        // Rules about whether there is a value stand in the schema around it.
        if value.is_null() {
            return;
        }
        self.ask(context, schema, value, before, path, errors);
        for rules in &self.all_of {
            rules.walk(context, schema, value, before, path, errors);
        }
        if self.properties.is_empty() && self.inside.is_none() {
            return;
        }
        let unchanged = before.is_unchanged(value);
        match value {
            Value::Object(map) => {
                for (name, part) in map {
                    let old = before.old.map(|old| old.get(name));
                    let before = before.part(unchanged, old);
                    let property = schema["properties"].get(name);
                    match (property, self.properties.get(name), &self.inside) {
                        (Some(schema), Some(rules), _) => {
                            rules.walk(context, schema, part, before, &path.child(name), errors);
                        }
                        (None, _, Some(rules)) => {
                            let schema = &schema["additionalProperties"];
                            rules.walk(context, schema, part, before, &path.key(name), errors);
                        }
                        _ => {}
                    }
                }
            }
            Value::Array(items) => {
                let Some(rules) = &self.inside else {
                    return;
                };
                for (at, item) in items.iter().enumerate() {
                    let old = before.old.and_then(|old| counterpart(schema, item, old));
                    let before = before.part(unchanged, old);
                    rules.walk(
                        context,
                        &schema["items"],
                        item,
                        before,
                        &path.index(at),
                        errors,
                    );
                }
            }
            _ => {}
        }
    }

    fn ask(
        &self,
        context: &Context<'_>,
        schema: &Value,
        value: &Value,
        before: Before<'_>,
        path: &Path,
        errors: &mut Errors,
    ) {
        if self.own.is_empty() {
            return;
        }
        let mut scope = context.new_inner_scope();
        scope.add_variable_from_value("self", to_cel(value, schema));
        let old = before
            .old
            .filter(|old| !old.is_null())
            .map(|old| to_cel(old, schema));
        if let Some(old) = &old {
            scope.add_variable_from_value("oldSelf", old.clone());
        }
        let maybe: Vec<Cel> = old.iter().cloned().collect();
        scope.add_variable_from_value(MAYBE_OLD, Cel::List(Arc::new(maybe)));
        for rule in &self.own {
            if rule.names_old && old.is_none() && !rule.old_may_be_missing {
                continue;
            }
            let Some((kind, what)) = rule.complaint(&scope) else {
                continue;
            };
            if !rule.names_old && before.is_unchanged(value) {
                continue;
            }
            let field_path = rule.field_path.as_ref().map(|field| path.child(field));
            let path = field_path.as_ref().unwrap_or(path);
            // The value's type stands for it, as upstream has it.
            let shown = schema["type"].as_str().unwrap_or_default();
            match kind {
                ErrorKind::Duplicate => errors.duplicate(path, shown),
                kind => errors.push(kind, path, shown.into(), what),
            }
        }
    }
}

/// What a list's element was before; `None` where elements cannot be told apart.
fn counterpart<'o>(list: &Value, item: &Value, old: &'o Value) -> Option<Option<&'o Value>> {
    if list["x-kubernetes-list-type"] != "map" {
        return None;
    }
    let keys = list["x-kubernetes-list-map-keys"].as_array()?;
    let same = |other: &&Value| {
        let mut keys = keys.iter().filter_map(Value::as_str);
        keys.all(|key| other.get(key) == item.get(key))
    };
    Some(old.as_array()?.iter().find(same))
}

/// A value as expressions see it: its schema says what texts and numbers are, and whether keys are names of fields.
fn to_cel(value: &Value, schema: &Value) -> Cel {
    let text = |text: &str| Cel::String(Arc::new(text.to_owned()));
    match value {
        Value::Null => Cel::Null,
        Value::Bool(truth) => Cel::Bool(*truth),
        Value::Number(number) if schema["type"] == "number" => {
            Cel::Float(number.as_f64().unwrap_or(f64::NAN))
        }
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Cel::Int(number),
            (None, Some(number)) => Cel::UInt(number),
            (None, None) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(written) => {
            let format = schema["format"]
                .as_str()
                .filter(|_| schema["type"] == "string");
            let read = match format {
                Some("date-time") => evaluated("timestamp", written),
                Some("date") => evaluated("timestamp", &format!("{written}T00:00:00Z")),
                Some("duration") => evaluated("duration", written),
                Some("byte") => STANDARD
                    .decode(written)
                    .ok()
                    .map(|bytes| Cel::Bytes(Arc::new(bytes))),
                _ => None,
            };
            read.unwrap_or_else(|| text(written))
        }
        Value::Array(items) => Cel::List(Arc::new(
            items
                .iter()
                .map(|item| to_cel(item, &schema["items"]))
                .collect(),
        )),
        Value::Object(map) => {
            let others = &schema["additionalProperties"];
            let entries = map.iter().map(|(name, value)| {
                let property = schema["properties"].get(name);
                let key = match property.is_none() && (others.is_object() || *others == true) {
                    true => name.clone(),
                    false => cel::escaped(name).into_owned(),
                };
                (
                    Key::String(Arc::new(key)),
                    to_cel(value, property.unwrap_or(others)),
                )
            });
            Cel::Map(Map {
                map: Arc::new(entries.collect()),
            })
        }
    }
}

/// What a function makes of a text.
fn evaluated(function: &str, text: &str) -> Option<Cel> {
    let program = cel::compile(&format!("{function}(self)")).ok()?;
    cel::with_context(|context| {
        let mut scope = context.new_inner_scope();
        scope.add_variable_from_value("self", Cel::String(Arc::new(text.to_owned())));
        program.execute(&scope).ok()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = Errors::new();
        let rules = Rules::new(schema).unwrap();
        rules.check(schema, object, old, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    /// A schema of one property.
    fn schema(property: Value) -> Value {
        json!({"type": "object", "properties": {"a": property}})
    }

    fn rule(text: &str) -> Value {
        json!([{"rule": text}])
    }

    #[test]
    fn a_rule_is_about_the_part_whose_schema_has_it() {
        let schema = schema(json!({
            "type": "object",
            "properties": {"min_size": {"type": "integer"}, "max": {"type": "integer"}},
            "x-kubernetes-validations": [
                {"rule": "self.min_size <= self.max", "message": "too small",
                    "fieldPath": ".max", "reason": "FieldValueForbidden"},
                {"rule": "self.max < 10", "messageExpression": "'max is ' + string(self.max)"},
                {"rule": "self.max != 12"},
            ],
        }));
        let object = |min: i64, max: i64| json!({"a": {"min_size": min, "max": max}});
        assert_eq!(found(&schema, &object(1, 2), None), [""; 0]);
        assert_eq!(
            found(&schema, &object(3, 2), None),
            ["a.max: Forbidden: too small"]
        );
        assert_eq!(
            found(&schema, &object(3, 12), None),
            [
                "a: Invalid value: \"object\": max is 12",
                "a: Invalid value: \"object\": failed rule: self.max != 12"
            ]
        );
    }

    #[test]
    fn elements_with_keys_are_compared_with_what_they_were() {
        let items = json!({"type": "object", "x-kubernetes-validations": rule("self.v >= oldSelf.v"),
            "properties": {"name": {"type": "string"}, "v": {"type": "integer"}}});
        let schema = schema(json!({"type": "array", "items": items,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}));
        let old = json!({"a": [{"name": "x", "v": 1}, {"name": "y", "v": 5}]});
        let moved =
            json!({"a": [{"name": "y", "v": 5}, {"name": "x", "v": 2}, {"name": "z", "v": 0}]});
        assert_eq!(found(&schema, &moved, Some(&old)), [""; 0]);
        let less = json!({"a": [{"name": "y", "v": 4}]});
        assert_eq!(found(&schema, &less, Some(&old)).len(), 1);
        assert_eq!(found(&schema, &less, None), [""; 0]);
    }

    #[test]
    fn what_has_not_changed_is_let_pass() {
        let items = json!({"type": "string", "x-kubernetes-validations": rule("self.size() < 3")});
        let parts = json!({"type": "object", "properties": {
            "set": {"type": "array", "items": items},
            "n": {"type": "integer", "x-kubernetes-validations": rule("self > 5")},
            "m": {"type": "integer"}}});
        let schema = schema(parts);
        let old = json!({"a": {"set": ["long", "ok"], "n": 1, "m": 1}});
        let mut new = old.clone();
        new["a"]["m"] = 2.into();
        assert_eq!(found(&schema, &new, Some(&old)), [""; 0]);
        new["a"]["set"] = json!(["ok", "long"]);
        assert_eq!(found(&schema, &new, Some(&old)).len(), 1);
        assert_eq!(found(&schema, &new, None).len(), 2);
        new["a"]["n"] = 2.into();
        assert_eq!(found(&schema, &new, Some(&old)).len(), 2);
    }

    #[test]
    fn an_old_value_may_be_missing() {
        let mut rules = rule("oldSelf.hasValue() ? self >= oldSelf.value() : self == 1");
        rules[0]["optionalOldSelf"] = true.into();
        let schema = schema(json!({"type": "integer", "x-kubernetes-validations": rules}));
        let object = |n: i64| json!({"a": n});
        assert_eq!(found(&schema, &object(1), None), [""; 0]);
        assert_eq!(found(&schema, &object(2), None).len(), 1);
        assert_eq!(found(&schema, &object(2), Some(&object(1))), [""; 0]);
        assert_eq!(found(&schema, &object(2), Some(&object(3))).len(), 1);
    }

    #[test]
    fn values_have_their_schemas_types() {
        let at = json!({"type": "string", "format": "date-time"});
        let properties = json!({"at": at, "day": {"type": "string", "format": "date"},
            "wait": {"type": "string", "format": "duration"}, "raw": {"type": "string", "format": "byte"},
            "ratio": {"type": "number"}, "port": {"x-kubernetes-int-or-string": true},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}}});
        let object = json!({"a": {"at": "2026-01-02T03:04:05Z", "day": "2026-01-02", "wait": "1h30m", "raw": "aGk=",
            "ratio": 2, "port": "http", "namespace": "n", "labels": {"a/b": "c"}}});
        for text in [
            "self.at.getFullYear() == 2026 && self.day < self.at",
            "self.wait > duration('1h') && self.raw.size() == 2",
            "self.ratio / 4.0 == 0.5",
            "type(self.port) == string && self.__namespace__ == 'n'",
            "self.labels['a/b'] == 'c' && self.labels.all(k, v, v == 'c')",
            "semver('1.10.0').compareTo(semver('1.9.0')) > 0 && [2, 1, 3].sum() == 6 && !['b', 'a'].isSorted()",
            "quantity('1Gi').isGreaterThan(quantity('1Mi')) && quantity(self.ratio > 1.0 ? '2' : '1').asInteger() == 2",
            "url('https://a.b/c?d=e').getHost() == 'a.b' && cidr('10.0.0.0/8').containsIP('10.1.2.3') && isIP('::1')",
            "'%s has %d'.format(['a', 2]) == 'a has 2' && 'a,b'.split(',').join('-') == 'a-b'",
            "sets.contains(['a', 'b'], ['a']) && 'x1y2'.findAll('[0-9]') == ['1', '2'] && [3, 1].max() == 3",
            "optional.of(1).orValue(2) == 1 && dyn(1) == 1 && int('7') == 7 && timestamp('2026-01-01T00:00:00Z').getMonth() == 0",
        ] {
            let node = json!({"type": "object", "properties": properties, "x-kubernetes-validations": rule(text)});
            assert_eq!(found(&schema(node), &object, None), [""; 0], "{text}");
        }
    }
}
