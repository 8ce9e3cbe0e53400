use rstest::rstest;
use serde_json::json;

use super::*;

fn faults(schema: &Value, value: &Value) -> Vec<String> {
    let rules = Rules::compile(&json!({"type": "object", "properties": {"v": schema}})).unwrap();
    let mut errors = Errors::new();
    rules.validate(&json!({"v": value}), &Path::root(), &mut errors);
    errors.iter().map(ToString::to_string).collect()
}

#[rstest]
#[case(json!({"type": "integer"}), json!("x"), "v: Invalid value: \"string\": v in body must be of type integer: \"string\"")]
#[case(json!({"type": "integer"}), json!(1.5), "v: Invalid value: \"number\": v in body must be of type integer: \"number\"")]
#[case(json!({"type": "string"}), json!(null), "v: Invalid value: \"null\": v in body must be of type string: \"null\"")]
#[case(json!({"x-kubernetes-int-or-string": true}), json!(true), "v: Invalid value: \"boolean\": v in body must be of type integer,string: \"boolean\"")]
#[case(json!({"type": "string", "enum": ["b", "a"]}), json!("c"), "v: Unsupported value: \"c\": supported values: \"b\", \"a\"")]
#[case(json!({"type": "string", "maxLength": 2}), json!("abc"), "v: Too long: may not be more than 2 bytes")]
#[case(json!({"type": "string", "minLength": 2}), json!("a"), "v: Invalid value: \"a\": v in body should be at least 2 chars long")]
#[case(json!({"type": "string", "pattern": "^a+$"}), json!("b"), "v: Invalid value: \"b\": v in body should match '^a+$'")]
#[case(json!({"type": "string", "format": "date-time"}), json!("b"), "v: Invalid value: \"b\": v in body must be of type date-time: \"b\"")]
#[case(json!({"type": "integer", "minimum": 1}), json!(0), "v: Invalid value: 0: v in body should be greater than or equal to 1")]
#[case(json!({"type": "integer", "maximum": 1, "exclusiveMaximum": true}), json!(1), "v: Invalid value: 1: v in body should be less than 1")]
#[case(json!({"type": "number", "multipleOf": 0.5}), json!(0.75), "v: Invalid value: 0.75: v in body should be a multiple of 0.5")]
#[case(json!({"type": "array", "maxItems": 1}), json!([1, 2]), "v: Too many: 2: must have at most 1 item")]
#[case(json!({"type": "array", "minItems": 1}), json!([]), "v: Invalid value: 0: v in body should have at least 1 items")]
#[case(json!({"type": "array", "x-kubernetes-list-type": "set"}), json!(["a", "a"]), "v[1]: Duplicate value: \"a\"")]
#[case(json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"]}), json!([{"n": 1, "x": 1}, {"n": 1}]), "v[1]: Duplicate value: {\"n\":1}")]
#[case(json!({"type": "array", "items": {"type": "string"}}), json!(["a", 1]), "v[1]: Invalid value: \"integer\": v[1] in body must be of type string: \"integer\"")]
#[case(json!({"type": "object", "required": ["a"]}), json!({}), "v.a: Required value")]
#[case(json!({"type": "object", "additionalProperties": {"type": "string"}}), json!({"k": 1}), "v.k: Invalid value: \"integer\": v.k in body must be of type string: \"integer\"")]
#[case(json!({"type": "object", "minProperties": 1}), json!({}), "v: Invalid value: 0: v in body should have at least 1 properties")]
#[case(json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({"a": 1, "b": 1}), "<nil>: Invalid value: \"\": \"v\" must validate one and only one schema (oneOf). Found 2 valid alternatives")]
#[case(json!({"not": {"type": "string"}}), json!("a"), "<nil>: Invalid value: \"\": \"v\" must not validate the schema (not)")]
fn one_fault(#[case] schema: Value, #[case] value: Value, #[case] fault: &str) {
    assert_eq!(faults(&schema, &value), [fault]);
}

/// In the order of a kube-apiserver 1.36, which was asked.
#[rstest]
#[case(json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), json!(true), &[
    "<nil>: Invalid value: \"\": \"v\" must validate at least one schema (anyOf)",
    "v: Invalid value: \"boolean\": v in body must be of type string: \"boolean\"",
])]
#[case(json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({}), &[
    "<nil>: Invalid value: \"\": \"v\" must validate one and only one schema (oneOf). Found none valid",
    "v.a: Required value",
])]
#[case(json!({"type": "integer", "allOf": [{"maximum": 5}, {"minimum": 3}]}), json!(6), &[
    "v: Invalid value: 6: v in body should be less than or equal to 5",
    "<nil>: Invalid value: \"\": \"v\" must validate all the schemas (allOf)",
])]
#[case(json!({"type": "array", "maxItems": 1, "items": {"type": "object", "required": ["k"],
    "properties": {"n": {"type": "integer"}}}}), json!([{}, {"k": 1, "n": "x"}]), &[
    "v[0].k: Required value",
    "v[1].n: Invalid value: \"string\": v[1].n in body must be of type integer: \"string\"",
    "v: Too many: 2: must have at most 1 item",
])]
#[case(json!({"type": "string", "minLength": 3, "pattern": "^q", "enum": ["abc"]}), json!("a"), &[
    "v: Invalid value: \"a\": v in body should be at least 3 chars long",
    "v: Unsupported value: \"a\": supported values: \"abc\"",
])]
#[case(json!({"type": "object", "required": ["z"], "properties": {"a": {"type": "string"}}}), json!({"a": 1}), &[
    "v.a: Invalid value: \"integer\": v.a in body must be of type string: \"integer\"",
    "v.z: Required value",
])]
fn several_faults(#[case] schema: Value, #[case] value: Value, #[case] found: &[&str]) {
    assert_eq!(faults(&schema, &value), found);
}

#[rstest]
#[case(json!({"type": "integer"}), json!(3.0))]
#[case(json!({"type": "string", "nullable": true}), json!(null))]
#[case(json!({"x-kubernetes-int-or-string": true}), json!("50%"))]
#[case(json!({"type": "string", "maxLength": 2}), json!("äö"))]
#[case(json!({}), json!([1, {"any": "thing"}]))]
#[case(json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({"a": 1}))]
#[case(json!({"type": "object", "properties": {"a": {"type": "string"}}}), json!({"b": 1}))]
fn no_fault(#[case] schema: Value, #[case] value: Value) {
    assert_eq!(faults(&schema, &value), Vec::<String>::new());
}

#[test]
fn unusable_schemas_are_refused() {
    assert!(matches!(
        Rules::compile(&json!({"type": "float"})),
        Err(SchemaError::Type { .. })
    ));
    assert!(matches!(
        Rules::compile(&json!({"pattern": "("})),
        Err(SchemaError::Pattern { .. })
    ));
    // A pattern of a few bytes that would need gigabytes.
    let bomb = json!({"properties": {"a": {"pattern": "((a{1000}){1000}){1000}"}}});
    let error = Rules::compile(&bomb).unwrap_err();
    assert!(
        error.to_string().starts_with(".properties[a]: pattern"),
        "{error}"
    );
}

#[test]
fn what_has_not_changed_is_not_held_against_a_change() {
    let schema = json!({"type": "object", "required": ["need"], "properties": {
        "name": {"type": "string", "maxLength": 2},
        "list": {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {
                "k": {"type": "string"}, "v": {"type": "integer", "maximum": 1},
            }},
        },
        "plain": {"type": "array", "items": {"type": "integer", "maximum": 1}},
    }});
    let rules = Rules::compile(&schema).unwrap();
    let old = json!({"name": "long", "list": [{"k": "a", "v": 7}], "plain": [7], "need": 1});
    let found = |new: Value| {
        let mut errors = Errors::new();
        rules.validate_change(&new, &old, &Path::root(), &mut errors);
        errors.iter().map(|e| e.field.clone()).collect::<Vec<_>>()
    };
    let changed = |key: &str, value: Value| {
        let mut new = old.clone();
        new[key] = value;
        new
    };
    assert!(found(changed("other", json!(1))).is_empty());
    assert_eq!(found(changed("name", json!("longer"))), ["name"]);
    let moved = json!([{"k": "b", "v": 1}, {"k": "a", "v": 7}]);
    assert!(found(changed("list", moved)).is_empty());
    let worse = json!([{"k": "a", "v": 8}]);
    assert_eq!(found(changed("list", worse)), ["list[0].v"]);
    // Elements without keys cannot be told apart.
    assert_eq!(found(changed("plain", json!([7, 1]))), ["plain[0]"]);
}
