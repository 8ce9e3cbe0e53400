//! Expressions are compiled when the object that holds them is written, so that a typing error is its author's
//! and not that of everybody whose request it then refuses: policies, match conditions of webhooks, rules in
//! the schemas of custom resources.

use std::collections::BTreeMap;

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use crate::admission::{Attributes, cost, expression, matching};
use crate::cel;
use crate::cel::types::Type;
use crate::custom_resources::expressions::{self, MAYBE_OLD};

/// Lists of a policy's spec, the fields of their items that hold expressions, and what types these may have.
const EXPRESSIONS: [(&str, &str, &[&str]); 5] = [
    ("matchConditions", "expression", &["bool"]),
    ("variables", "expression", &[]),
    ("validations", "expression", &["bool"]),
    ("validations", "messageExpression", &["string"]),
    ("auditAnnotations", "valueExpression", &["string", "null"]),
];

/// What conditions about a request may name.
const OF_REQUEST: [&str; 5] = [
    "object",
    "oldObject",
    "request",
    "namespaceObject",
    "authorizer",
];
/// What rules in schemas may name.
const OF_RULES: [&str; 3] = ["self", "oldSelf", MAYBE_OLD];

/// # Errors
/// 422 for an expression that is none, unless it was there before.
pub(super) fn check(attributes: &Attributes<'_>, object: &Value) -> Result<(), ApiError> {
    let endpoint = attributes.endpoint;
    let (part, faults): (_, fn(&Value) -> Errors) = match (endpoint.group(), endpoint.plural()) {
        (matching::GROUP, super::POLICIES) => ("spec", faults),
        (matching::GROUP, _) => ("webhooks", webhook_faults),
        ("apiextensions.k8s.io", _) => ("spec", definition_faults),
        _ => return Ok(()),
    };
    let unchanged = attributes.old.is_some_and(|old| old[part] == object[part]);
    let errors = faults(object);
    if unchanged || errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        endpoint.group(),
        endpoint.kind(),
        meta::name(object),
        &errors,
    ))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// An expression over what is admitted, whose type is one of these where it is known; none: any.
fn compiled(value: &Value, known: &[&str], wanted: &[&str], path: &Path, errors: &mut Errors) {
    let Some(text) = value.as_str().filter(|text| !text.is_empty()) else {
        return;
    };
    if let Err(why) = cel::compile_over(text, known) {
        errors.invalid(path, text, why);
        return;
    }
    let found = cel::check(text, &BTreeMap::new()).0;
    if wanted.is_empty() || found.is_dyn() || wanted.contains(&found.to_string().as_str()) {
        return;
    }
    let what = match wanted {
        [one] => format!("must evaluate to {one}"),
        _ => format!("must evaluate to one of [{}]", wanted.join(" ")),
    };
    errors.invalid(path, text, what);
}

fn webhook_faults(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, webhook) in list(&configuration["webhooks"]).iter().enumerate() {
        let path = Path::new("webhooks").index(i).child("matchConditions");
        for (i, condition) in list(&webhook["matchConditions"]).iter().enumerate() {
            let path = path.index(i).child("expression");
            compiled(
                &condition["expression"],
                &OF_REQUEST,
                &["bool"],
                &path,
                &mut errors,
            );
        }
    }
    errors
}

fn definition_faults(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, version) in list(&definition["spec"]["versions"]).iter().enumerate() {
        let path = Path::new("spec").child("versions").index(i);
        let path = path.child("schema").child("openAPIV3Schema");
        let level = Level {
            times: 1,
            is_resource: true,
            uncorrelatable: None,
        };
        rules(
            &version["schema"]["openAPIV3Schema"],
            &level,
            &path,
            &mut errors,
        );
    }
    errors
}

/// Where a schema stands.
struct Level {
    /// How often one object may have what the schema is of.
    times: u64,
    is_resource: bool,
    /// The schema around it whose values cannot be told apart from what they were.
    uncorrelatable: Option<Path>,
}

/// The rules of a schema and of those inside it, whose depth the structural check has limited.
fn rules(schema: &Value, level: &Level, path: &Path, errors: &mut Errors) {
    let here = path.child("x-kubernetes-validations");
    let written = list(&schema["x-kubernetes-validations"]);
    if !written.is_empty() {
        let own = Type::structural(schema, level.is_resource);
        let known = BTreeMap::from([
            ("self".to_owned(), own.clone()),
            ("oldSelf".to_owned(), own.clone()),
            (MAYBE_OLD.to_owned(), Type::List(Box::new(own))),
        ]);
        for (i, written) in written.iter().enumerate() {
            rule(written, schema, &known, level, &here.index(i), errors);
        }
    }
    let level_of = |schema: &Value, times: u64, uncorrelatable: Option<Path>| Level {
        times,
        is_resource: schema["x-kubernetes-embedded-resource"] == true,
        uncorrelatable: level.uncorrelatable.clone().or(uncorrelatable),
    };
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let level = level_of(property, level.times, None);
        rules(
            property,
            &level,
            &path.child("properties").key(name),
            errors,
        );
    }
    for nested in ["items", "additionalProperties"] {
        let inside = &schema[nested];
        if inside.is_object() {
            let path = path.child(nested);
            let times = level.times.saturating_mul(cost::repeats(schema));
            let has_keys = nested != "items" || schema["x-kubernetes-list-type"] == "map";
            let level = level_of(inside, times, (!has_keys).then(|| path.clone()));
            rules(inside, &level, &path, errors);
        }
    }
}

/// One rule of a schema, over variables of the schema's type.
fn rule(
    written: &Value,
    schema: &Value,
    known: &BTreeMap<String, Type>,
    level: &Level,
    path: &Path,
    errors: &mut Errors,
) {
    for (field, wanted) in [("rule", "bool"), ("messageExpression", "string")] {
        let text = expressions::text_of(written, field);
        if text.is_empty() {
            continue;
        }
        let shown = written[field].as_str().unwrap_or_default();
        let field_path = path.child(field);
        let program = match cel::compile_over(&text, &OF_RULES) {
            Ok(program) => program,
            Err(why) => {
                errors.invalid(&field_path, shown, why);
                continue;
            }
        };
        let (ty, faults) = cel::check(&text, known);
        let name = match field {
            "rule" => "cel expression",
            field => field,
        };
        if let Some(fault) = faults.first() {
            errors.invalid(&field_path, shown, format!("compilation failed: {fault}"));
        } else if !ty.is_dyn() && ty.to_string() != wanted {
            errors.invalid(
                &field_path,
                shown,
                format!("{name} must evaluate to a {wanted}"),
            );
        }
        if field != "rule" {
            continue;
        }
        let cost = expression::rule_cost(&program, schema);
        too_dear(cost.saturating_mul(level.times), &field_path, errors);
        let names_old = expressions::names_old(&program);
        if let (true, Some(within)) = (names_old, &level.uncorrelatable) {
            let detail = format!(
                "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
            );
            errors.invalid(&field_path, shown, detail);
        }
        if let (false, Some(given)) = (names_old, written["optionalOldSelf"].as_bool()) {
            let detail = "may not be set if oldSelf is not used in rule";
            errors.invalid(&path.child("optionalOldSelf"), given, detail);
        }
    }
}

/// In upstream's words.
fn too_dear(cost: u64, path: &Path, errors: &mut Errors) {
    if cost <= cost::LIMIT {
        return;
    }
    let tenths = cost / (cost::LIMIT / 10);
    let factor = match tenths {
        0..=1000 => format!("{}.{}x", tenths / 10, tenths % 10),
        _ => "more than 100x".to_owned(),
    };
    let detail = format!(
        "estimated rule cost exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, \
         maxProperties, and maxLength where arrays, maps, and strings are declared)"
    );
    errors.forbidden(path, detail);
}

fn faults(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut known = OF_REQUEST.to_vec();
    if policy["spec"]["paramKind"].is_object() {
        known.push("params");
    }
    let of_request = known.clone();
    known.push("variables");
    for (key, field, wanted) in EXPRESSIONS {
        // Conditions are asked before variables are composed.
        let known = match key {
            "matchConditions" => &of_request,
            _ => &known,
        };
        for (i, item) in list(&policy["spec"][key]).iter().enumerate() {
            let path = Path::new("spec").child(key).index(i).child(field);
            compiled(&item[field], known, wanted, &path, &mut errors);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_that_could_cost_too_much_is_refused() {
        let definition = |limit: Option<u64>| {
            let mut texts = json!({
                "type": "array", "items": {"type": "string"},
                "x-kubernetes-validations": [{"rule": "self.all(t, t.contains('x'))"}],
            });
            if let Some(limit) = limit {
                texts["maxItems"] = limit.into();
                texts["items"]["maxLength"] = limit.into();
            }
            let schema = json!({"type": "object", "properties": {"texts": texts}});
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}})
        };
        assert!(definition_faults(&definition(Some(50))).is_empty());
        let found = definition_faults(&definition(None));
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1);
        let words = "exceeds budget by factor of more than 100x";
        assert!(found[0].contains(words), "{found:?}");
    }

    #[test]
    fn rules_know_their_schema() {
        let definition = |rules: Value| {
            let item = json!({"type": "object", "properties": {"n": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.n >= oldSelf.n"}]});
            let spec = json!({"type": "object", "x-kubernetes-validations": rules, "properties": {
                "x": {"type": "integer"}, "s": {"type": "string"},
                "list": {"type": "array", "maxItems": 3, "items": item}}});
            let schema = json!({"type": "object", "properties": {"spec": spec}});
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}})
        };
        let found: Vec<_> = definition_faults(&definition(json!([
            {"rule": "self.z == 1"},
            {"rule": "self.x"},
            {"rule": "self.x > 0", "messageExpression": "self.x"},
            {"rule": "self.x > self.s"},
            {"rule": "self.x > 0", "optionalOldSelf": true},
            {"rule": "oldSelf.hasValue() || self.x == 1", "optionalOldSelf": true},
            {"rule": "self.s.matches('^a') && has(self.list) && self.list.all(i, i.n > self.x)"},
        ])))
        .iter()
        .map(ToString::to_string)
        .collect();
        let spec = "spec.versions[0].schema.openAPIV3Schema.properties[spec]";
        let list = format!("{spec}.properties[list].items");
        assert_eq!(
            found,
            [
                format!(
                    "{spec}.x-kubernetes-validations[0].rule: Invalid value: \"self.z == 1\": compilation failed: ERROR: \
                     <input>:1:5: undefined field 'z'\n | self.z == 1\n | ....^"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[1].rule: Invalid value: \"self.x\": cel expression must evaluate to a bool"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[2].messageExpression: Invalid value: \"self.x\": messageExpression must \
                     evaluate to a string"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[3].rule: Invalid value: \"self.x > self.s\": compilation failed: ERROR: \
                     <input>:1:8: found no matching overload for '_>_' applied to '(int, string)'\n | self.x > self.s\n | .......^"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[4].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in \
                     rule"
                ),
                format!(
                    "{list}.x-kubernetes-validations[0].rule: Invalid value: \"self.n >= oldSelf.n\": oldSelf cannot be used on \
                     the uncorrelatable portion of the schema within {list}"
                ),
            ]
        );
    }

    #[test]
    fn every_expression_is_compiled() {
        let policy = json!({"spec": {
            "matchConditions": [{"name": "a", "expression": "1 +"}],
            "variables": [{"name": "b", "expression": "object.x"}],
            "validations": [
                {"expression": "true", "messageExpression": "'"},
                {"expression": "'no answer'"},
                {"expression": "isGood(object)"},
            ],
        }});
        let fields: Vec<_> = faults(&policy).iter().map(|e| e.field.clone()).collect();
        assert_eq!(
            fields,
            [
                "spec.matchConditions[0].expression",
                "spec.validations[1].expression",
                "spec.validations[2].expression",
                "spec.validations[0].messageExpression",
            ]
        );
    }
}
