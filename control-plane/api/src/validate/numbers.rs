//! Numbers, ports, and numbers that may be percentages.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::sentences;
use crate::tree::Tree;

const NEGATIVE: &str = "must be greater than or equal to 0";

/// A number that, if set, may not be negative.
pub fn non_negative(object: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(number) = object.int(field).filter(|n| *n < 0) {
        errors.invalid(&path.child(field), number, NEGATIVE);
    }
}

/// A number that, if set, must be above 0.
pub fn positive(object: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(number) = object.int(field).filter(|n| *n <= 0) {
        errors.invalid(&path.child(field), number, "must be greater than 0");
    }
}

/// The sentence about a port number that is out of range.
pub fn port_problem(port: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&port)).then_some("must be between 1 and 65535, inclusive")
}

pub fn port(port: i64, path: &Path, errors: &mut Errors) {
    if let Some(problem) = port_problem(port) {
        errors.invalid(path, port, problem);
    }
}

/// The port of a Service that the API server itself calls.
pub fn service_port(service: &Value, path: &Path, errors: &mut Errors) {
    let port = service.int("port").unwrap_or_default();
    if let Some(problem) = port_problem(port) {
        let detail = format!("port is not valid: {problem}");
        errors.invalid(&path.child("port"), port, detail);
    }
}

/// A port by number or by name (`IntOrString`).
pub fn port_or_name(value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::String(name) => sentences(names::is_valid_port_name(name), path, name, errors),
        other => port(other.as_i64().unwrap_or_default(), path, errors),
    }
}

/// A user or group id.
pub fn user_id(object: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(id) = object
        .int(field)
        .filter(|id| !(0..=i64::from(i32::MAX)).contains(id))
    {
        errors.invalid(
            &path.child(field),
            id,
            "must be between 0 and 2147483647, inclusive",
        );
    }
}

/// How long a service account's token may be asked for, in seconds: the least and the most.
pub const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;

/// For how many seconds a service account's token is to be valid.
pub fn token_seconds(seconds: i64, path: &Path, errors: &mut Errors) {
    if seconds < *TOKEN_SECONDS.start() {
        let detail = "may not specify a duration less than 10 minutes";
        errors.invalid(path, seconds, detail);
    }
    if seconds > *TOKEN_SECONDS.end() {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errors.invalid(path, seconds, detail);
    }
}

/// The number of a percentage such as `25%`.
pub fn percent(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// A count of at least 0, or a percentage.
pub fn count_or_percent(value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::String(text) if percent(value).is_none() => errors.invalid(
            path,
            text.as_str(),
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
             '93%', regex used for validation is '[0-9]+%')",
        ),
        Value::Number(number) if number.as_i64().is_some_and(|n| n < 0) => {
            errors.invalid(path, value.clone(), NEGATIVE);
        }
        _ => {}
    }
}

pub fn at_most_100_percent(value: &Value, path: &Path, errors: &mut Errors) {
    if percent(value).is_some_and(|p| p > 100) {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// A counter in a status that only ever grows.
pub fn not_decremented(new: &Value, old: &Value, field: &str, path: &Path, errors: &mut Errors) {
    let count = |object: &Value| object.int(field);
    let is_less = count(old).is_some_and(|old| count(new).is_none_or(|new| new < old));
    if is_less {
        let value = count(new).unwrap_or_default();
        errors.invalid(&path.child(field), value, "cannot be decremented");
    }
}

/// Whether a count or percentage is nothing: `0` or `0%`.
pub fn is_zero(value: &Value) -> bool {
    value
        .as_i64()
        .or_else(|| percent(value))
        .unwrap_or_default()
        == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn percentages_need_digits_and_a_sign() {
        for (value, number) in [
            (json!("25%"), Some(25)),
            (json!("%"), None),
            (json!("-5%"), None),
            (json!(5), None),
        ] {
            assert_eq!(percent(&value), number, "{value}");
        }
        let path = Path::new("spec").child("maxSurge");
        assert_eq!(lines(|e| count_or_percent(&json!(-1), &path, e)).len(), 1);
        assert_eq!(lines(|e| count_or_percent(&json!("x"), &path, e)).len(), 1);
        assert!(lines(|e| count_or_percent(&json!("200%"), &path, e)).is_empty());
        assert_eq!(
            lines(|e| at_most_100_percent(&json!("101%"), &path, e)),
            ["spec.maxSurge: Invalid value: \"101%\": must not be greater than 100%"]
        );
    }
}
