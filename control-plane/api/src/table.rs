//! Cells of `kubectl get`, as Kubernetes' own printers write them.

use serde_json::Value;
use windlass_machinery::time;

use crate::builder::Plain;
use crate::resource::Strategy;
use crate::tree::Tree;

/// A row's cells from anything that converts to a JSON value.
macro_rules! cells {
    ($($cell:expr),* $(,)?) => { vec![$(::serde_json::Value::from($cell)),*] };
}
pub(crate) use cells;

/// A kind whose only rule is how it is printed.
pub(crate) struct Rows(pub(crate) fn(&Value, i64) -> Vec<Value>);

impl Strategy for Rows {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        (self.0)(object, now)
    }
}

/// Name and creation time, for kinds without a printer.
pub(crate) fn created_at(object: &Value) -> Vec<Value> {
    Plain.row(object, 0)
}

/// The time since `metadata.creationTimestamp`.
pub fn age(object: &Value, now: i64) -> String {
    since(object.text("metadata.creationTimestamp"), now)
}

/// The time since an RFC 3339 timestamp, `<unknown>` when there is none.
pub fn since(timestamp: &str, now: i64) -> String {
    time::parse_seconds(timestamp).map_or_else(
        || "<unknown>".to_owned(),
        |then| time::duration_words(now - then),
    )
}

/// `text`, or `fallback` where it is empty.
pub fn or<'a>(text: &'a str, fallback: &'a str) -> &'a str {
    if text.is_empty() { fallback } else { text }
}

/// A scalar as Go's `%v` shows it: strings bare, numbers and booleans as in JSON.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Names and images of containers, each joined with commas.
pub fn containers(spec: &Value) -> (String, String) {
    let join = |field: &str| {
        spec.list("containers")
            .iter()
            .map(|c| c.text(field))
            .collect::<Vec<_>>()
            .join(",")
    };
    (join("name"), join("image"))
}

/// A map of labels: `a=b,c=d`, or `<none>`.
pub fn labels(map: &Value) -> String {
    let pairs: Vec<_> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() {
        "<none>".to_owned()
    } else {
        pairs.join(",")
    }
}

/// A LabelSelector in the notation of `-l`, sorted by key; `<none>` when it selects everything or nothing.
pub fn selector(selector: &Value) -> String {
    let mut terms: Vec<(String, String)> = selector
        .entries("matchLabels")
        .map(|(key, value)| {
            (
                key.to_owned(),
                format!("{key}={}", value.as_str().unwrap_or_default()),
            )
        })
        .collect();
    for expression in selector.list("matchExpressions") {
        let key = expression.text("key");
        let mut values: Vec<_> = expression
            .list("values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match expression.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        terms.push((key.to_owned(), term));
    }
    if terms.is_empty() {
        return "<none>".to_owned();
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms
        .into_iter()
        .map(|(_, term)| term)
        .collect::<Vec<_>>()
        .join(",")
}

/// The first `max` of `items`, and how many more there are.
pub fn first_of(items: &[String], max: usize) -> String {
    if items.is_empty() {
        return "<unset>".to_owned();
    }
    let shown = items[..items.len().min(max)].join(",");
    if items.len() > max {
        format!("{shown} + {} more...", items.len() - max)
    } else {
        shown
    }
}

/// The addresses of a load balancer's status, cut to 16 characters outside of `-o wide`.
///
/// The server cannot know whether a table is for `-o wide` (kubectl drops columns by priority itself), and
/// upstream's API server always asks for the wide form, so nothing is cut here.
pub fn load_balancer(status: &Value) -> String {
    let mut addresses: Vec<_> = status
        .list("loadBalancer.ingress")
        .iter()
        .map(|ingress| or(ingress.text("ip"), ingress.text("hostname")))
        .filter(|address| !address.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.join(",")
}

/// `True`, `False`, or `<unset>` as for pointers to booleans.
pub fn boolean(value: &Value) -> &'static str {
    match value.as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    }
}

/// Whether a condition of this type has the status True.
pub fn has_condition(object: &Value, kind: &str) -> bool {
    object
        .list("status.conditions")
        .iter()
        .any(|c| c.text("type") == kind && c.text("status") == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_are_shown_as_typed_on_the_command_line() {
        let value = json!({
            "matchLabels": {"b": "1"},
            "matchExpressions": [
                {"key": "c", "operator": "NotIn", "values": ["y", "x"]},
                {"key": "a", "operator": "Exists"},
            ]
        });
        assert_eq!(selector(&value), "a,b=1,c notin (x,y)");
        assert_eq!(selector(&json!({})), "<none>");
    }

    #[test]
    fn long_lists_are_cut_with_a_count() {
        let items: Vec<_> = (1..=5).map(|i| i.to_string()).collect();
        assert_eq!(first_of(&items, 3), "1,2,3 + 2 more...");
        assert_eq!(first_of(&items[..3], 3), "1,2,3");
        assert_eq!(first_of(&[], 3), "<unset>");
    }
}
