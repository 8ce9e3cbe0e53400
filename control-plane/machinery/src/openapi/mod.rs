//! Checks values against an OpenAPI v3 schema, as the API server does for custom resources.
//!
//! A schema is compiled once (patterns, enums, nested schemas) and then used for every write. Faults are the field
//! errors that `apiextensions-apiserver` makes of them, wording included. CEL rules are not evaluated here.

mod compile;
mod format;

use std::collections::HashSet;

use regex::Regex;
use serde_json::{Map, Value};

pub use compile::{SchemaError, pattern};

use crate::validation::{ErrorKind, Errors, Path};

/// A compiled schema.
#[derive(Debug, Default)]
pub struct Rules {
    ty: Option<Kind>,
    nullable: bool,
    int_or_string: bool,
    format: Option<String>,
    choices: Vec<Value>,
    pattern: Option<Regex>,
    lengths: Range,
    items: Range,
    properties_count: Range,
    minimum: Option<Bound>,
    maximum: Option<Bound>,
    multiple_of: Option<f64>,
    unique_items: bool,
    required: Vec<String>,
    properties: Vec<(String, Rules)>,
    additional: Option<Box<Rules>>,
    element: Option<Box<Rules>>,
    set: bool,
    map_keys: Vec<String>,
    all_of: Vec<Rules>,
    any_of: Vec<Rules>,
    one_of: Vec<Rules>,
    not: Option<Box<Rules>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// How many: characters, elements, properties.
#[derive(Clone, Copy, Debug, Default)]
struct Range {
    min: Option<u64>,
    max: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    value: f64,
    exclusive: bool,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Object => value.is_object(),
            Self::Array => value.is_array(),
            Self::String => value.is_string(),
            Self::Boolean => value.is_boolean(),
            Self::Number => value.is_number(),
            Self::Integer => {
                value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Rules {
    /// Adds the faults of `value`, which stands at `path` (the root for a whole object).
    pub fn validate(&self, value: &Value, path: &Path, errors: &mut Errors) {
        self.check(value, None, path, errors);
    }

    /// Adds the faults of what has changed since `old`: what was stored before a schema became stricter stays valid
    /// for as long as nobody touches it (KEP-4008).
    pub fn validate_change(&self, value: &Value, old: &Value, path: &Path, errors: &mut Errors) {
        self.check(value, Some(old), path, errors);
    }

    fn check(&self, value: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
        if old == Some(value) {
            return;
        }
        if value.is_null() {
            if !self.nullable && (self.ty.is_some() || self.int_or_string) {
                self.wrong_type(value, path, errors);
            }
            return;
        }
        let fits = match self.ty {
            Some(kind) => kind.holds(value),
            None if self.int_or_string => Kind::Integer.holds(value) || value.is_string(),
            None => true,
        };
        // In upstream's order: the type, the combined schemas, the value, the choices, the fields.
        if !fits {
            self.wrong_type(value, path, errors);
        }
        self.combined(value, path, errors);
        if !fits {
            return;
        }
        match value {
            Value::String(text) => self.string(text, path, errors),
            Value::Number(number) => {
                self.number(number.as_f64().unwrap_or_default(), value, path, errors)
            }
            Value::Array(items) => self.array(items, old, path, errors),
            _ => {}
        }
        if !self.choices.is_empty() && !self.choices.contains(value) {
            let choices: Vec<String> = self.choices.iter().map(text).collect();
            let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
            errors.not_supported(path, value.clone(), &choices);
        }
        if let Value::Object(map) = value {
            self.object(map, old, path, errors);
        }
    }

    fn holds(&self, value: &Value) -> bool {
        let mut errors = Errors::new();
        self.validate(value, &Path::root(), &mut errors);
        errors.is_empty()
    }

    fn wrong_type(&self, value: &Value, path: &Path, errors: &mut Errors) {
        let wanted = self.ty.map_or("integer,string", Kind::name);
        let found = kind_of(value);
        let why = format!("{} must be of type {wanted}: {found:?}", in_body(path));
        errors.push(ErrorKind::TypeInvalid, path, Value::from(found), why);
    }

    /// Of length and pattern the first fault is told.
    fn string(&self, text: &str, path: &Path, errors: &mut Errors) {
        let length = text.chars().count() as u64;
        if let Some(max) = self.lengths.max.filter(|max| length > *max) {
            errors.too_long(path, usize::try_from(max).unwrap_or(usize::MAX));
        } else if let Some(min) = self.lengths.min.filter(|min| length < *min) {
            errors.invalid(
                path,
                text,
                format!("{} should be at least {min} chars long", in_body(path)),
            );
        } else if let Some(pattern) = self
            .pattern
            .as_ref()
            .filter(|pattern| !pattern.is_match(text))
        {
            errors.invalid(
                path,
                text,
                format!("{} should match '{pattern}'", in_body(path)),
            );
        }
        if let Some(format) = self
            .format
            .as_deref()
            .filter(|format| !format::holds(format, text))
        {
            let why = format!("{} must be of type {format}: {text:?}", in_body(path));
            errors.push(ErrorKind::TypeInvalid, path, Value::from(text), why);
        }
    }

    fn number(&self, number: f64, value: &Value, path: &Path, errors: &mut Errors) {
        if let Some(bound) = self.minimum {
            let words = if bound.exclusive {
                "greater than"
            } else {
                "greater than or equal to"
            };
            if number < bound.value || bound.exclusive && number == bound.value {
                let why = format!("{} should be {words} {}", in_body(path), bound.value);
                errors.invalid(path, value.clone(), why);
            }
        }
        if let Some(bound) = self.maximum {
            let words = if bound.exclusive {
                "less than"
            } else {
                "less than or equal to"
            };
            if number > bound.value || bound.exclusive && number == bound.value {
                let why = format!("{} should be {words} {}", in_body(path), bound.value);
                errors.invalid(path, value.clone(), why);
            }
        }
        if let Some(factor) = self
            .multiple_of
            .filter(|factor| (number / factor).fract() != 0.0)
        {
            let why = format!("{} should be a multiple of {factor}", in_body(path));
            errors.invalid(path, value.clone(), why);
        }
        let fits = match self.format.as_deref() {
            Some("int32") => number >= f64::from(i32::MIN) && number <= f64::from(i32::MAX),
            _ => true,
        };
        if !fits {
            let why = format!("{} must be of type int32: {value}", in_body(path));
            errors.invalid(path, value.clone(), why);
        }
    }

    fn array(&self, items: &[Value], old: Option<&Value>, path: &Path, errors: &mut Errors) {
        if let Some(element) = &self.element {
            for (index, item) in items.iter().enumerate() {
                let before = self.counterpart(item, old);
                element.check(item, before, &path.index(index), errors);
            }
        }
        let length = items.len() as u64;
        if let Some(min) = self.items.min.filter(|min| length < *min) {
            let why = format!("{} should have at least {min} items", in_body(path));
            errors.invalid(path, length, why);
        }
        if let Some(max) = self.items.max.filter(|max| length > *max) {
            errors.too_many(
                path,
                items.len(),
                usize::try_from(max).unwrap_or(usize::MAX),
            );
        }
        if self.unique_items && items.iter().collect::<HashSet<_>>().len() < items.len() {
            let why = format!("{} shouldn't contain duplicates", in_body(path));
            errors.invalid(path, Value::from(items), why);
        }
        if self.set {
            let mut seen = HashSet::new();
            for (index, item) in items
                .iter()
                .enumerate()
                .filter(|(_, item)| !seen.insert((*item).clone()))
            {
                errors.duplicate(&path.index(index), item.clone());
            }
        }
        if !self.map_keys.is_empty() {
            let mut seen = HashSet::new();
            for (index, item) in items.iter().enumerate() {
                let key: Map<String, Value> = self
                    .map_keys
                    .iter()
                    .filter_map(|key| Some((key.clone(), item.get(key)?.clone())))
                    .collect();
                let key = Value::Object(key);
                if !seen.insert(key.clone()) {
                    errors.duplicate(&path.index(index), key);
                }
            }
        }
    }

    /// The element that `item` was before: known only where elements have keys.
    fn counterpart<'o>(&self, item: &Value, old: Option<&'o Value>) -> Option<&'o Value> {
        let same = |other: &&Value| {
            self.map_keys
                .iter()
                .all(|key| other.get(key) == item.get(key))
        };
        if self.map_keys.is_empty() {
            return None;
        }
        old?.as_array()?.iter().find(same)
    }

    fn object(
        &self,
        map: &Map<String, Value>,
        old: Option<&Value>,
        path: &Path,
        errors: &mut Errors,
    ) {
        let count = map.len() as u64;
        if let Some(max) = self.properties_count.max.filter(|max| count > *max) {
            errors.too_many(path, map.len(), usize::try_from(max).unwrap_or(usize::MAX));
        }
        if let Some(min) = self.properties_count.min.filter(|min| count < *min) {
            let why = format!("{} should have at least {min} properties", in_body(path));
            errors.invalid(path, count, why);
        }
        for (key, value) in map {
            let before = old.and_then(|old| old.get(key));
            match self.properties.binary_search_by(|(name, _)| name.cmp(key)) {
                Ok(at) => self.properties[at]
                    .1
                    .check(value, before, &path.child(key), errors),
                Err(_) => {
                    if let Some(additional) = &self.additional {
                        additional.check(value, before, &path.child(key), errors);
                    }
                }
            }
        }
        for name in self
            .required
            .iter()
            .filter(|name| !map.contains_key(name.as_str()))
        {
            errors.required(&path.child(name), "");
        }
    }

    /// Of alternatives that all fail, the one with the fewest faults tells what is wrong with it.
    fn combined(&self, value: &Value, path: &Path, errors: &mut Errors) {
        let faults = |rules: &Self| {
            let mut found = Errors::new();
            rules.validate(value, path, &mut found);
            found
        };
        // Upstream's sentences are about no field.
        let told = |why: &str, errors: &mut Errors| {
            errors.invalid(&Path::root(), "", format!("{:?} {why}", path.as_str()));
        };
        let closest = |alternatives: &[Self], errors: &mut Errors| {
            if let Some(found) = alternatives.iter().map(faults).min_by_key(Errors::len) {
                errors.extend(found);
            }
        };
        if !self.any_of.is_empty() && !self.any_of.iter().any(|rules| rules.holds(value)) {
            told("must validate at least one schema (anyOf)", errors);
            closest(&self.any_of, errors);
        }
        if !self.one_of.is_empty() {
            let held = self.one_of.iter().filter(|rules| rules.holds(value));
            match held.count() {
                1 => {}
                0 => {
                    let why = "must validate one and only one schema (oneOf). Found none valid";
                    told(why, errors);
                    closest(&self.one_of, errors);
                }
                found => {
                    let why = format!(
                        "must validate one and only one schema (oneOf). Found {found} valid alternatives"
                    );
                    told(&why, errors);
                }
            }
        }
        let before = errors.len();
        for rules in &self.all_of {
            errors.extend(faults(rules));
        }
        if errors.len() > before {
            told("must validate all the schemas (allOf)", errors);
        }
        if self.not.as_ref().is_some_and(|rules| rules.holds(value)) {
            told("must not validate the schema (not)", errors);
        }
    }
}

/// `spec.size in body`
fn in_body(path: &Path) -> String {
    format!("{} in body", path.as_str())
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests;
