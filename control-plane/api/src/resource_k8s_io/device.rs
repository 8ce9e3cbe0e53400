//! What claims, classes and slices say of devices alike.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::storage::csi::driver_name;
use crate::tree::{self, Tree};
use crate::validate::sentences;

/// Of most lists.
pub(super) const MANY: usize = 32;
/// Bytes.
const MAX_POOL: usize = 253;
const MAX_ID: usize = 32;
const MAX_EXPRESSION: usize = 10 * 1024;
const MAX_PARAMETERS: usize = 10 * 1024;

/// Checks each entry of a list, unless there are too many.
pub(super) fn each_of(
    list: &[Value],
    most: usize,
    path: &Path,
    errors: &mut Errors,
    mut check: impl FnMut(&Value, &Path, &mut Errors),
) {
    if list.len() > most {
        return errors.too_many(path, list.len(), most);
    }
    for (i, entry) in list.iter().enumerate() {
        check(entry, &path.index(i), errors);
    }
}

/// The same for a list in which no two have the same key.
pub(super) fn each_once(
    list: &[Value],
    most: usize,
    key: fn(&Value) -> &str,
    path: &Path,
    errors: &mut Errors,
    check: impl FnMut(&Value, &Path, &mut Errors),
) {
    each_of(list, most, path, errors, check);
    let mut seen = HashSet::new();
    let few = list.iter().enumerate().filter(|_| list.len() <= most);
    for (i, entry) in few.filter(|(_, entry)| !seen.insert(key(entry))) {
        errors.duplicate(&path.index(i), key(entry));
    }
}

pub(super) fn name_of(entry: &Value) -> &str {
    entry.text("name")
}

pub(super) fn itself(entry: &Value) -> &str {
    entry.as_str().unwrap_or_default()
}

pub(super) fn label(text: &str, path: &Path, errors: &mut Errors) {
    sentences(names::is_dns1123_label(text), path, text, errors);
}

/// The fields that belong to what is off in v1.35 are dropped, unless the object had one already.
pub(super) fn drop_gated(holder: &mut Value, old: Option<&Value>, fields: &[&str]) {
    for field in fields {
        if !old.is_some_and(|old| old.has(field)) {
            tree::remove(holder, field);
        }
    }
}

pub(super) fn pool_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    if name.len() > MAX_POOL {
        errors.too_long(path, MAX_POOL);
    }
    for part in name.split('/') {
        sentences(names::is_dns1123_subdomain(part), path, part, errors);
    }
}

/// The name of an attribute or capacity, in its driver's domain or another.
pub(super) fn qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    let id = |id: &str, errors: &mut Errors| {
        if id.len() > MAX_ID {
            errors.too_long(path, MAX_ID);
        }
        sentences(names::is_c_identifier(id), path, id, errors);
    };
    match name.split('/').collect::<Vec<_>>()[..] {
        [one] => id(one, errors),
        [domain, one] => {
            match domain {
                "" => errors.invalid(path, "", "the domain must not be empty"),
                domain => driver_name(domain, path, errors),
            }
            match one {
                "" => errors.invalid(path, "", "the name must not be empty"),
                one => id(one, errors),
            }
        }
        _ => {}
    }
}

pub(super) fn fully_qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    qualified_name(name, path, errors);
    if !name.contains('/') {
        let detail = "a fully qualified name must be a domain and a name separated by a slash";
        errors.invalid(path, name, detail);
    }
}

/// CEL selectors of devices; the expressions are compiled by the scheduler that runs them.
pub(super) fn selectors(holder: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("selectors");
    each_of(
        holder.list("selectors"),
        MANY,
        &path,
        errors,
        |selector, path, errors| {
            let path = path.child("cel");
            let expression = selector.text("cel.expression");
            if !selector.has("cel") {
                errors.required(&path, "");
            } else if expression.is_empty() {
                errors.required(&path.child("expression"), "");
            } else if expression.len() > MAX_EXPRESSION {
                errors.too_long(&path.child("expression"), MAX_EXPRESSION);
            }
        },
    );
}

/// What a driver is told; `stored`: its size has been accepted before.
pub(super) fn configuration(config: &Value, stored: bool, path: &Path, errors: &mut Errors) {
    let (opaque, path) = (config.at("opaque"), path.child("opaque"));
    if opaque.is_null() {
        return errors.required(&path, "");
    }
    driver_name(opaque.text("driver"), &path.child("driver"), errors);
    let parameters = path.child("parameters");
    object(opaque.at("parameters"), stored, &parameters, errors);
}

/// A free object of a bounded size.
pub(super) fn object(value: &Value, stored: bool, path: &Path, errors: &mut Errors) {
    match value {
        Value::Null => errors.required(path, ""),
        value if !stored && value.to_string().len() > MAX_PARAMETERS => {
            errors.too_long(path, MAX_PARAMETERS);
        }
        Value::Object(_) => {}
        _ => errors.invalid(path, "<value omitted>", "must be a valid JSON object"),
    }
}
