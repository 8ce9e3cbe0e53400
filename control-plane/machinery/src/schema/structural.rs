//! Custom resources: an `openAPIV3Schema` becomes a table like the built-in one.
//!
//! What the table takes from a structural schema is what generic code needs: types, list and map types, defaults,
//! nullability, and where unknown fields are kept. Value rules (ranges, patterns, CEL) are checked elsewhere.

use std::collections::HashMap;

use serde_json::Value;

use super::{Field, FieldType, ListType, Schema, Type, TypeId};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl Schema {
    /// The table of one version of a custom resource, and the resource's own type. `name` names that type
    /// (`com.example.v1.Widget`); types inside it are named after their paths.
    pub fn from_structural(name: &str, schema: &Value) -> (Schema, TypeId) {
        let builtin = Schema::builtin();
        let mut reader = Reader {
            schema: Schema::default(),
            meta: FieldType::Any,
        };
        if let Some(id) = builtin.type_id(OBJECT_META) {
            reader.meta =
                FieldType::Object(reader.schema.import(&builtin, id, &mut HashMap::new()));
        }
        let id = reader.object(name, schema, true);
        (reader.schema, id)
    }

    /// Copies a type and all it refers to.
    fn import(&mut self, from: &Schema, id: TypeId, done: &mut HashMap<TypeId, TypeId>) -> TypeId {
        if let Some(copied) = done.get(&id) {
            return *copied;
        }
        let ty = from.get(id);
        let copied = self.declare(&ty.name);
        done.insert(id, copied);
        let fields = ty.fields.iter().map(|field| {
            let ty = self.import_type(from, &field.ty, done);
            Field {
                ty,
                ..field.clone()
            }
        });
        let mut copy = Type::new(&ty.name, fields.collect());
        copy.atomic = ty.atomic;
        self.define(copy)
    }

    fn import_type(
        &mut self,
        from: &Schema,
        ty: &FieldType,
        done: &mut HashMap<TypeId, TypeId>,
    ) -> FieldType {
        match ty {
            FieldType::Object(id) => FieldType::Object(self.import(from, *id, done)),
            FieldType::List(inner) => {
                FieldType::List(Box::new(self.import_type(from, inner, done)))
            }
            FieldType::Map(inner) => FieldType::Map(Box::new(self.import_type(from, inner, done))),
            FieldType::SchemaOr(alternative, id) => {
                FieldType::SchemaOr(*alternative, self.import(from, *id, done))
            }
            other => other.clone(),
        }
    }
}

struct Reader {
    schema: Schema,
    /// The type of `metadata`.
    meta: FieldType,
}

fn flag(schema: &Value, name: &str) -> bool {
    schema
        .get(name)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

impl Reader {
    /// `resource` is true for the resource itself and for resources embedded in it.
    fn object(&mut self, name: &str, schema: &Value, resource: bool) -> TypeId {
        let id = self.schema.declare(name);
        let required: Vec<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut fields = Vec::new();
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            // The metadata of a resource is the server's to define.
            if !(resource && matches!(key.as_str(), "apiVersion" | "kind" | "metadata")) {
                let mut field = self.field(key, &format!("{name}.{key}"), property);
                field.required = required.contains(&key.as_str());
                fields.push(field);
            }
        }
        if resource {
            fields.push(Field::new("apiVersion", FieldType::String));
            fields.push(Field::new("kind", FieldType::String));
            fields.push(Field::new("metadata", self.meta.clone()));
        }
        let mut ty = Type::new(name, fields);
        ty.preserve_unknown = flag(schema, "x-kubernetes-preserve-unknown-fields");
        ty.embedded_resource = resource;
        ty.ruled = true;
        ty.atomic = schema["x-kubernetes-map-type"] == "atomic";
        self.schema.define(ty);
        id
    }

    fn field(&mut self, key: &str, path: &str, schema: &Value) -> Field {
        let mut field = Field::new(key, self.field_type(path, schema));
        field.list_type = match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => ListType::Set,
            Some("map") => {
                let keys = schema["x-kubernetes-list-map-keys"]
                    .as_array()
                    .into_iter()
                    .flatten();
                ListType::Map(keys.filter_map(Value::as_str).map(Box::from).collect())
            }
            _ => ListType::Atomic,
        };
        field.atomic = schema["x-kubernetes-map-type"] == "atomic";
        field.default = schema.get("default").cloned();
        field.nullable = flag(schema, "nullable");
        field
    }

    fn field_type(&mut self, path: &str, schema: &Value) -> FieldType {
        if flag(schema, "x-kubernetes-int-or-string") {
            return FieldType::IntOrString;
        }
        let resource = flag(schema, "x-kubernetes-embedded-resource");
        let may_be_null = |schema: &Value| {
            // The table knows of fields alone that they may be null.
            let is_scalar = !matches!(schema["type"].as_str(), Some("object" | "array"));
            flag(schema, "nullable") && is_scalar
        };
        match schema["type"].as_str() {
            Some("string") => FieldType::String,
            Some("boolean") => FieldType::Bool,
            Some("integer") if schema["format"] == "int32" => FieldType::Int32,
            Some("integer") => FieldType::Int64,
            Some("number") => FieldType::Float64,
            Some("array") if may_be_null(&schema["items"]) => {
                FieldType::List(Box::new(FieldType::Any))
            }
            Some("array") => {
                let inner = self.field_type(&format!("{path}[]"), &schema["items"]);
                FieldType::List(Box::new(inner))
            }
            Some("object") if schema["properties"].is_object() || resource => {
                FieldType::Object(self.object(path, schema, resource))
            }
            Some("object") => match &schema["additionalProperties"] {
                values @ Value::Object(_) if may_be_null(values) => {
                    FieldType::Map(Box::new(FieldType::Any))
                }
                inner @ Value::Object(_) => {
                    FieldType::Map(Box::new(self.field_type(&format!("{path}{{}}"), inner)))
                }
                Value::Bool(true) => FieldType::Map(Box::new(FieldType::Any)),
                _ if flag(schema, "x-kubernetes-preserve-unknown-fields") => FieldType::Any,
                // An object without properties has none: everything in it is pruned.
                _ => FieldType::Object(self.object(path, schema, false)),
            },
            _ => FieldType::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{apply, defaults, fields};

    fn widget() -> (Schema, TypeId) {
        Schema::from_structural(
            "com.example.v1.Widget",
            &json!({"type": "object", "required": ["spec"], "properties": {
                "metadata": {"type": "object"},
                "spec": {"type": "object", "properties": {
                    "size": {"type": "integer", "default": 3},
                    "port": {"x-kubernetes-int-or-string": true},
                    "note": {"type": "string", "nullable": true},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "half": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                        "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
                    "empty": {"type": "object"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                        "items": {"type": "object", "properties": {
                            "name": {"type": "string"}, "weight": {"type": "number", "default": 1.5}}}},
                    "pod": {"type": "object", "x-kubernetes-embedded-resource": true,
                        "x-kubernetes-preserve-unknown-fields": true},
                    "defaulted": {"type": "object", "default": {}, "properties": {
                        "inner": {"type": "boolean", "default": true}}},
                }},
            }}),
        )
    }

    #[test]
    fn wrong_types_are_left_to_the_schemas_rules() {
        let (schema, id) = widget();
        let mut object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
            "spec": {"size": "many", "labels": {"k": 1}, "parts": {}, "x": 1}});
        let report = fields::check(&schema, id, &mut object);
        assert_eq!(report.errors, [""; 0]);
        assert_eq!(report.unknown, ["spec.x"]);
        let mut mistyped = report.mistyped;
        mistyped.sort();
        assert_eq!(
            mistyped,
            [
                ".spec.labels.k: expected string, got number",
                ".spec.parts: expected list, got object",
                ".spec.size: expected numeric (int or float), got string",
            ]
        );
        let mut object =
            json!({"spec": {"labels": {"a": null, "b": "c"}, "parts": [{"name": null}, null]}});
        let report = fields::check(&schema, id, &mut object);
        assert_eq!(report.mistyped, [".spec.parts[1]: expected map, got null"]);
        assert_eq!(
            object,
            json!({"spec": {"labels": {"b": "c"}, "parts": [{}, null]}})
        );
        let mut object = json!({"metadata": {"name": 1}, "spec": 3});
        let report = fields::check(&schema, id, &mut object);
        assert_eq!(
            (report.errors.len(), report.mistyped.len()),
            (1, 1),
            "what is the server's own is read by it"
        );
    }

    #[test]
    fn unknown_fields_are_pruned_but_where_they_are_kept() {
        let (schema, id) = widget();
        let mut object = json!({"apiVersion": "example.com/v1", "kind": "Widget",
            "metadata": {"name": "w", "foo": 1},
            "spec": {"size": 1, "x": 1, "note": null, "port": "80%", "free": {"any": {"thing": [1]}},
                "half": {"unknown": 1, "known": {"a": "b", "c": 1}}, "empty": {"gone": 1}, "labels": {"k": "v"},
                "parts": [{"name": "p", "y": 1}],
                "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "bar": 1}, "spec": {"z": 1}}}});
        let report = fields::check(&schema, id, &mut object);
        assert!(report.errors.is_empty(), "{report:?}");
        let mut unknown = report.unknown;
        unknown.sort();
        assert_eq!(
            unknown,
            [
                "metadata.foo",
                "spec.empty.gone",
                "spec.half.known.c",
                "spec.parts[0].y",
                "spec.pod.metadata.bar",
                "spec.x"
            ]
        );
        assert_eq!(
            object["spec"],
            json!({"size": 1, "note": null, "port": "80%", "free": {"any": {"thing": [1]}},
                "half": {"unknown": 1, "known": {"a": "b"}}, "empty": {}, "labels": {"k": "v"},
                "parts": [{"name": "p"}],
                "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"z": 1}}})
        );
    }

    #[test]
    fn defaults_reach_into_defaults_and_elements() {
        let (schema, id) = widget();
        let mut object = json!({"spec": {"parts": [{"name": "a"}], "size": null}});
        defaults::apply(&schema, id, &mut object);
        assert_eq!(
            object,
            json!({"spec": {"parts": [{"name": "a", "weight": 1.5}], "size": 3, "defaulted": {"inner": true}}})
        );
    }

    #[test]
    fn server_side_apply_merges_by_the_crds_keys() {
        let (schema, id) = widget();
        let writer = |manager| apply::Writer {
            manager,
            api_version: "example.com/v1",
            subresource: "",
            now: "2026-01-01T00:00:00Z",
            reset_fields: &[],
        };
        let config = |name: &str| {
            json!({"apiVersion": "example.com/v1", "kind": "Widget",
            "spec": {"parts": [{"name": name}], "free": {"k": {name: 1}}}})
        };
        let first = apply::apply(&schema, id, None, &config("a"), &writer("a"), false).unwrap();
        let both =
            apply::apply(&schema, id, Some(&first), &config("b"), &writer("b"), false).unwrap();
        assert_eq!(both["spec"]["parts"], json!([{"name": "a"}, {"name": "b"}]));
        assert_eq!(both["spec"]["free"], json!({"k": {"a": 1, "b": 1}}));
    }

    #[test]
    fn deep_schemas_are_read() {
        let deep = (0..100).fold(
            json!({"type": "string"}),
            |inner, _| json!({"type": "object", "properties": {"a": inner}}),
        );
        let (schema, id) = Schema::from_structural("x.v1.Deep", &deep);
        let mut object = json!({"a": {"a": {"b": 1}}});
        assert_eq!(fields::check(&schema, id, &mut object).unknown, ["a.a.b"]);
    }
}
