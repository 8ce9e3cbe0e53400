//! Whether the part of an object that a CEL rule is about has changed (KEP-4008).

use serde_json::Value;

/// Follows `path` from the root to the schema that has the rule, or to the first part that is as it was.
pub(super) fn is_unchanged(
    rule: &str,
    path: &str,
    schema: &Value,
    new: &Value,
    old: &Value,
) -> bool {
    let (mut schema, mut new, mut old) = (schema, new, Some(old));
    let mut steps = path.split(['.', '[', ']']).filter(|step| !step.is_empty());
    loop {
        if old == Some(new) {
            return true;
        }
        let rules = schema["x-kubernetes-validations"].as_array();
        let here = rules.is_some_and(|rules| rules.iter().any(|r| r["rule"] == rule));
        let (false, Some(step)) = (here, steps.next()) else {
            return false;
        };
        match (new, step.parse::<usize>()) {
            (Value::Array(items), Ok(at)) => {
                let Some(item) = items.get(at) else {
                    return false;
                };
                old = counterpart(schema, item, old);
                (schema, new) = (&schema["items"], item);
            }
            _ => {
                let properties = &schema["properties"];
                schema = properties
                    .get(step)
                    .unwrap_or(&schema["additionalProperties"]);
                (new, old) = (&new[step], old.and_then(|old| old.get(step)));
            }
        }
    }
}

/// What a list's element was before; only those with keys can be told apart.
fn counterpart<'o>(list: &Value, item: &Value, old: Option<&'o Value>) -> Option<&'o Value> {
    let keys = list["x-kubernetes-list-map-keys"].as_array()?;
    let same = |other: &&Value| {
        let mut keys = keys.iter().filter_map(Value::as_str);
        keys.all(|key| other.get(key) == item.get(key))
    };
    old?.as_array()?.iter().find(same)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_is_about_the_part_whose_schema_has_it() {
        let schema = json!({"properties": {"spec": {
            "x-kubernetes-validations": [{"rule": "of spec"}],
            "properties": {"list": {
                "x-kubernetes-list-map-keys": ["name"],
                "items": {"x-kubernetes-validations": [{"rule": "of item"}]},
            }},
        }}});
        let old = json!({"spec": {"a": 1, "list": [{"name": "x", "v": 1}, {"name": "y", "v": 1}]}});
        let new = json!({"spec": {"a": 2, "list": [{"name": "y", "v": 1}, {"name": "x", "v": 2}]}});
        let unchanged = |rule, path| is_unchanged(rule, path, &schema, &new, &old);
        assert!(!unchanged("of spec", "spec"));
        // The field that a rule points at may be as it was, while what the rule is about is not.
        assert!(!unchanged("of spec", "spec.list"));
        assert!(unchanged("of item", "spec.list[0]"));
        assert!(!unchanged("of item", "spec.list[1]"));
    }
}
