//! Checks a decoded object against its type, as Go's typed decoder would: unknown fields, wrong types.
//!
//! The walk also leaves the object as upstream would write it back: unknown fields, nulls and zeros that mean nothing
//! (`hostNetwork: false`, `labels: {}`) are gone, and quantities, times and durations stand in their canonical form.

use base64::DecodeError;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use crate::quantity::Quantity;
use crate::schema::{FieldType, Schema, Type, TypeId};
use crate::time;
use crate::trail::Trail;

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// Paths of fields that the type does not have: `spec.containers[0].foo`. They are removed from the object.
    pub unknown: Vec<String>,
    /// Values of the wrong type, in the words of Go's decoder; the object is not usable then.
    pub errors: Vec<String>,
    /// The same in the words of Go's converter, which makes typed objects of strategic merge patches' results.
    pub restoring: Vec<String>,
    /// Values of the wrong type of which the schema's rules will tell, in the words of server-side apply, which needs types.
    pub mistyped: Vec<String>,
}

/// How many findings are worth telling; a request may hold a million.
const MAX_FINDINGS: usize = 100;

/// Go's decoder does not mind non-zero trailing bits, so there may be stored texts that have some.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Checks and normalises `object` in place.
pub fn check(schema: &Schema, id: TypeId, object: &mut Value) -> Report {
    let mut walk = Walk {
        schema,
        report: Report::default(),
    };
    let ty = schema.get(id);
    match object {
        Value::Object(map) => walk.object(ty, map, &Trail::ROOT),
        other => walk.error(format!(
            "json: cannot unmarshal {} into Go value of type {}",
            go_kind(other),
            go_name(ty)
        )),
    }
    walk.report
}

struct Walk<'a> {
    schema: &'a Schema,
    report: Report,
}

impl Walk<'_> {
    fn object(&mut self, ty: &Type, map: &mut Map<String, Value>, at: &Trail<'_>) {
        map.retain(|key, value| {
            let at = at.key(key);
            let Some(field) = ty.field(key) else {
                let known = ty.preserve_unknown
                    || ty.embedded_resource
                        && matches!(key.as_str(), "apiVersion" | "kind" | "metadata");
                if !known && self.report.unknown.len() < MAX_FINDINGS {
                    self.report.unknown.push(at.path());
                }
                return known;
            };
            if value.is_null() {
                return field.nullable;
            }
            self.value(&field.ty, value, ty, &at);
            !field.is_empty_value(value)
        });
    }

    /// `owner` is the struct that holds the field, for the error's text.
    fn value(&mut self, ty: &FieldType, value: &mut Value, owner: &Type, at: &Trail<'_>) {
        match (ty, &mut *value) {
            (FieldType::Object(id), Value::Object(map)) => {
                let schema = self.schema;
                self.object(schema.get(*id), map, at);
            }
            (FieldType::List(inner), Value::Array(items)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    if item.is_null() && !owner.ruled {
                        *item = zero(inner);
                    }
                    self.value(inner, item, owner, &at.index(index));
                }
            }
            (FieldType::Map(inner), Value::Object(map)) => {
                if owner.ruled && **inner != FieldType::Any {
                    map.retain(|_, item| !item.is_null());
                }
                for (key, item) in map.iter_mut() {
                    if item.is_null() {
                        *item = zero(inner);
                    }
                    self.value(inner, item, owner, &at.entry(key));
                }
            }
            (FieldType::String, Value::String(_)) | (FieldType::Bool, Value::Bool(_)) => {}
            (FieldType::Float64, Value::Number(_)) => {}
            (FieldType::Int64, Value::Number(n)) if n.is_i64() => {}
            (FieldType::Int32 | FieldType::IntOrString, Value::Number(n))
                if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
            (FieldType::IntOrString, Value::String(_)) => {}
            (FieldType::RawExtension, Value::Object(_)) => {}
            (
                FieldType::Any | FieldType::Json | FieldType::FieldsV1 | FieldType::SchemaOr(..),
                _,
            ) => {}
            (FieldType::Time | FieldType::MicroTime, Value::Null) => {}
            (FieldType::Quantity, value) => self.quantity(value),
            (FieldType::Time, Value::String(text)) => match time::parse(text) {
                Some((seconds, _)) if text.len() != 20 => *text = time::format(seconds),
                Some(_) => {}
                None => self.error(time_error(text, "2006-01-02T15:04:05Z07:00")),
            },
            (FieldType::MicroTime, Value::String(text)) => match time::parse(text) {
                Some((seconds, nanos)) if text.len() != 27 || !text.ends_with('Z') => {
                    *text = time::format_micros(seconds, nanos / 1000);
                }
                Some(_) => {}
                None => self.error(time_error(text, "2006-01-02T15:04:05.000000Z07:00")),
            },
            (FieldType::Duration, Value::String(text)) => match time::parse_duration(text) {
                Some(nanos) => *text = time::format_duration(nanos),
                None => self.error(format!("time: invalid duration {text:?}")),
            },
            (FieldType::Bytes, Value::String(text)) => {
                // Line breaks are legal in base64 for Go, and gone afterwards.
                text.retain(|c| c != '\n' && c != '\r');
                if let Err(error) = BASE64.decode(&text) {
                    let at = match error {
                        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => {
                            at
                        }
                        DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len(),
                    };
                    self.error(format!("illegal base64 data at input byte {at}"));
                }
            }
            (ty, value) if owner.ruled => {
                if self.report.mistyped.len() < MAX_FINDINGS {
                    let (wanted, found) = (typed_kind(ty), go_kind(value));
                    let path = at.path();
                    let what = format!(".{path}: expected {wanted}, got {found}");
                    self.report.mistyped.push(what);
                }
            }
            (ty, value) => {
                let kind = match (ty, &*value) {
                    (
                        FieldType::Int32 | FieldType::Int64 | FieldType::IntOrString,
                        Value::Number(n),
                    ) => {
                        format!("number {n}")
                    }
                    (_, value) => go_kind(value).to_owned(),
                };
                let go_type = self.go_type(ty);
                let restoring = restoring(ty, value, &go_type);
                self.misfit(
                    format!(
                        "json: cannot unmarshal {kind} into Go struct field {}.{} of type {go_type}",
                        owner.short_name(),
                        at.fields(),
                    ),
                    restoring,
                );
            }
        }
    }

    fn quantity(&mut self, value: &mut Value) {
        let parsed = match &*value {
            Value::String(text) => Quantity::parse(text),
            other => Quantity::parse(&other.to_string()),
        };
        match parsed {
            Ok(quantity) => {
                let canonical = quantity.to_string();
                if value.as_str() != Some(&canonical) {
                    *value = Value::String(canonical);
                }
            }
            Err(error) => self.error(error.to_string()),
        }
    }

    /// What a type's own reading objects to, whoever calls it.
    fn error(&mut self, error: String) {
        self.misfit(error.clone(), error);
    }

    fn misfit(&mut self, decoding: String, restoring: String) {
        if self.report.errors.len() < MAX_FINDINGS {
            self.report.errors.push(decoding);
            self.report.restoring.push(restoring);
        }
    }

    /// As Go prints the type.
    fn go_type(&self, ty: &FieldType) -> String {
        match ty {
            FieldType::Bool => "bool".to_owned(),
            FieldType::Int32 | FieldType::IntOrString => "int32".to_owned(),
            FieldType::Int64 => "int64".to_owned(),
            FieldType::Float64 => "float64".to_owned(),
            FieldType::String | FieldType::Time | FieldType::MicroTime | FieldType::Duration => {
                "string".to_owned()
            }
            FieldType::Bytes => "[]uint8".to_owned(),
            FieldType::Quantity => "resource.Quantity".to_owned(),
            FieldType::Object(id) => go_name(self.schema.get(*id)),
            FieldType::List(inner) => format!("[]{}", self.go_type(inner)),
            FieldType::Map(inner) => format!("map[string]{}", self.go_type(inner)),
            FieldType::RawExtension => "runtime.RawExtension".to_owned(),
            FieldType::Any | FieldType::Json | FieldType::FieldsV1 | FieldType::SchemaOr(..) => {
                "interface {}".to_owned()
            }
        }
    }
}

/// `io.k8s.api.core.v1.PodSpec` -> `v1.PodSpec`.
fn go_name(ty: &Type) -> String {
    let mut parts = ty.name.rsplitn(3, '.');
    let (name, package) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    format!("{package}.{name}")
}

pub(crate) fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What Go's converter says of a value that does not fit: it goes by kinds of Go values, not of JSON, and knows no paths.
fn restoring(ty: &FieldType, value: &Value, go_type: &str) -> String {
    let kind = match value {
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
        other => go_kind(other),
    };
    match (ty, kind) {
        (FieldType::Map(_), _) => format!("cannot restore map from {kind}"),
        (FieldType::List(_) | FieldType::Bytes, _) => format!("cannot restore slice from {kind}"),
        (FieldType::Object(_), _) => format!("cannot restore struct from: {kind}"),
        // What Go itself could convert, but JSON could not.
        (FieldType::String, "int64")
        | (FieldType::Int32 | FieldType::Int64, "int64" | "float64") => {
            format!("cannot convert {kind} to {go_type}")
        }
        (
            FieldType::String
            | FieldType::Bool
            | FieldType::Int32
            | FieldType::Int64
            | FieldType::Float64,
            _,
        ) => format!("unrecognized type: {go_type}"),
        // These read themselves.
        _ => format!(
            "json: cannot unmarshal {} into Go value of type {go_type}",
            go_kind(value)
        ),
    }
}

/// A type as server-side apply calls it.
fn typed_kind(ty: &FieldType) -> &'static str {
    match ty {
        FieldType::Bool => "boolean",
        FieldType::Int32 | FieldType::Int64 | FieldType::Float64 => "numeric (int or float)",
        FieldType::List(_) => "list",
        FieldType::Object(_) | FieldType::Map(_) => "map",
        _ => "string",
    }
}

fn time_error(text: &str, layout: &str) -> String {
    format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
}

/// What Go makes of a null in a list or map.
fn zero(ty: &FieldType) -> Value {
    match ty {
        FieldType::Bool => Value::Bool(false),
        FieldType::Int32 | FieldType::Int64 | FieldType::IntOrString => Value::from(0),
        FieldType::Float64 => Value::from(0.0),
        FieldType::Quantity => Value::from("0"),
        FieldType::String | FieldType::Bytes => Value::from(""),
        FieldType::Object(_)
        | FieldType::Map(_)
        | FieldType::RawExtension
        | FieldType::FieldsV1 => Value::Object(Map::new()),
        FieldType::List(_) => Value::Array(Vec::new()),
        FieldType::Duration => Value::from("0s"),
        // A time that is not set is written as null.
        FieldType::Time
        | FieldType::MicroTime
        | FieldType::Any
        | FieldType::Json
        | FieldType::SchemaOr(..) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn run(kind: &str, mut object: Value) -> (Value, Report) {
        let schema = Schema::builtin();
        let id = schema.type_id(kind).unwrap();
        let report = check(&schema, id, &mut object);
        (object, report)
    }

    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
    const POD: &str = "io.k8s.api.core.v1.Pod";

    #[test]
    fn unknown_fields_are_named_by_path_and_removed() {
        let (object, report) = run(
            DEPLOYMENT,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "foo": 1, "spec": {"replicas": 1,
                "template": {"spec": {"containers": [{"name": "a", "Image": "b"}]}}}}),
        );
        assert_eq!(
            report.unknown,
            ["foo", "spec.template.spec.containers[0].Image"]
        );
        assert!(report.errors.is_empty());
        assert_eq!(
            object,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 1,
                "template": {"spec": {"containers": [{"name": "a"}]}}}})
        );
    }

    #[rstest]
    #[case(json!({"spec": {"replicas": "1"}}), "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32")]
    #[case(json!({"spec": {"replicas": 1.5}}), "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32")]
    #[case(json!({"spec": {"replicas": 3_000_000_000_u64}}), "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32")]
    #[case(json!({"spec": {"paused": 1}}), "json: cannot unmarshal number into Go struct field DeploymentSpec.spec.paused of type bool")]
    #[case(json!({"spec": []}), "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec")]
    #[case(json!({"metadata": {"labels": {"a": 1}}}), "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string")]
    #[case(json!({"spec": {"template": {"spec": {"containers": {}}}}}), "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container")]
    #[case(json!({"spec": {"template": {"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}}}), "json: cannot unmarshal string into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32")]
    #[case(json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "1x"}}}]}}}}), "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    #[case(json!({"metadata": {"creationTimestamp": "x"}}), "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"")]
    #[case(json!([]), "json: cannot unmarshal array into Go value of type v1.Deployment")]
    fn wrong_types_read_as_go_says_them(#[case] object: Value, #[case] error: &str) {
        assert_eq!(run(DEPLOYMENT, object).1.errors, [error]);
    }

    #[rstest]
    #[case(json!({"metadata": {"labels": "a"}}), "cannot restore map from string")]
    #[case(json!({"metadata": {"labels": {"a": 1}}}), "cannot convert int64 to string")]
    #[case(json!({"metadata": {"labels": {"a": true}}}), "unrecognized type: string")]
    #[case(json!({"metadata": {"finalizers": {}}}), "cannot restore slice from map")]
    #[case(json!({"metadata": {"creationTimestamp": 1}}), "json: cannot unmarshal number into Go value of type string")]
    #[case(json!({"spec": []}), "cannot restore struct from: slice")]
    #[case(json!({"spec": {"replicas": "1"}}), "unrecognized type: int32")]
    #[case(json!({"spec": {"replicas": 1.5}}), "cannot convert float64 to int32")]
    #[case(json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "1x"}}}]}}}}), "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    fn wrong_types_read_as_the_converter_says_them(#[case] object: Value, #[case] error: &str) {
        assert_eq!(run(DEPLOYMENT, object).1.restoring, [error]);
    }

    #[test]
    fn values_are_left_in_canonical_form() {
        let (object, report) = run(
            POD,
            json!({"metadata": {"creationTimestamp": null, "deletionTimestamp": "2026-01-02T04:04:05+01:00"},
                "spec": {"containers": [{"name": "a", "args": [null], "resources": {
                    "requests": {"cpu": 0.5, "memory": "1024Mi"}, "limits": null}}],
                    "nodeSelector": {"a": null}}}),
        );
        assert_eq!(report, Report::default());
        assert_eq!(
            object,
            json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"},
                "spec": {"containers": [{"name": "a", "args": [""], "resources": {
                    "requests": {"cpu": "500m", "memory": "1Gi"}}}],
                    "nodeSelector": {"a": ""}}})
        );
    }

    #[test]
    fn zeros_go_where_they_mean_absence_and_stay_where_they_do_not() {
        let (object, report) = run(
            POD,
            json!({"metadata": {"name": "", "labels": {}}, "spec": {"hostNetwork": false, "hostname": "",
                "enableServiceLinks": false, "terminationGracePeriodSeconds": 0, "initContainers": [],
                "containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}}),
        );
        assert_eq!(report, Report::default());
        assert_eq!(
            object,
            json!({"metadata": {}, "spec": {"enableServiceLinks": false, "terminationGracePeriodSeconds": 0,
                "containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}})
        );
    }

    #[test]
    fn bytes_must_be_base64() {
        let secret = "io.k8s.api.core.v1.Secret";
        let (object, report) = run(secret, json!({"data": {"a": "YWJj\nZGVm"}}));
        assert_eq!(
            (object, report),
            (json!({"data": {"a": "YWJjZGVm"}}), Report::default())
        );
        for text in ["a", "YWJ", "YW=j", "Y!=="] {
            let errors = run(secret, json!({"data": {"a": text}})).1.errors;
            assert!(
                errors[0].starts_with("illegal base64 data at input byte "),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn findings_are_limited() {
        let object: Map<String, Value> = (0..1000)
            .map(|i| (format!("x{i}"), Value::from(i)))
            .collect();
        assert_eq!(
            run(POD, Value::Object(object)).1.unknown.len(),
            MAX_FINDINGS
        );
    }
}
