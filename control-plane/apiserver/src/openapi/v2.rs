//! OpenAPI v2, for clients that check manifests themselves: kubectl does for `kind: List`, older tools always.
//!
//! What such clients look up is a type by its group, version and kind: more is not in the protobuf form, gnostic's
//! `openapi.v2.Document`, which Go clients ask for. The JSON form has the operations as well.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::definitions::REFERENCE;

const V2_REFERENCE: &str = "#/definitions/";
const GVK: &str = "x-kubernetes-group-version-kind";

/// All definitions of several group versions; where two describe the same type, the one that names its kind.
#[derive(Default)]
pub(super) struct Definitions {
    types: BTreeMap<String, Value>,
    paths: Map<String, Value>,
    /// Query parameters, which the operations share.
    parameters: Map<String, Value>,
}

impl Definitions {
    pub(super) fn add(&mut self, schemas: Map<String, Value>) {
        for (name, mut schema) in schemas {
            let names_kind = schema.get(GVK).is_some();
            if names_kind || !self.types.contains_key(&name) {
                lower(&mut schema);
                self.types.insert(name, schema);
            }
        }
    }

    /// Types of a document that is v2 already; one that is known stays as it is.
    pub(super) fn add_foreign(&mut self, types: &Map<String, Value>) {
        for (name, schema) in types {
            if !self.types.contains_key(name) {
                self.types.insert(name.clone(), schema.clone());
            }
        }
    }

    /// Operations as v3 has them.
    pub(super) fn add_paths(&mut self, paths: Map<String, Value>) {
        for (path, mut item) in paths {
            for (key, value) in item.as_object_mut().into_iter().flatten() {
                if key == "parameters" {
                    self.lower_parameters(value);
                } else {
                    self.lower_operation(value);
                }
            }
            self.paths.insert(path, item);
        }
    }

    fn lower_parameters(&mut self, parameters: &mut Value) {
        for parameter in parameters.as_array_mut().into_iter().flatten() {
            if let Some(Value::Object(schema)) =
                parameter.as_object_mut().and_then(|p| p.remove("schema"))
                && let Some(map) = parameter.as_object_mut()
            {
                map.extend(schema);
            }
            if parameter["in"] == "query"
                && let Some(name) = parameter["name"].as_str().map(str::to_owned)
            {
                let reference = json!({"$ref": format!("#/parameters/{name}")});
                let whole = std::mem::replace(parameter, reference);
                self.parameters.insert(name, whole);
            }
        }
    }

    fn lower_operation(&mut self, operation: &mut Value) {
        let Some(map) = operation.as_object_mut() else {
            return;
        };
        let body = map.remove("requestBody").unwrap_or_default();
        let (consumes, body) = content(&body["content"]);
        let (produces, answer) = content(&map["responses"]["200"]["content"]);
        let mut parameters = map.remove("parameters").unwrap_or_else(|| json!([]));
        self.lower_parameters(&mut parameters);
        if let Some(list) = parameters.as_array_mut()
            && !body.is_null()
        {
            list.insert(
                0,
                json!({"name": "body", "in": "body", "required": true, "schema": body}),
            );
        }
        map.insert("parameters".to_owned(), parameters);
        map.insert("produces".to_owned(), produces);
        if consumes != json!([]) {
            map.insert("consumes".to_owned(), consumes);
        }
        map.insert("schemes".to_owned(), json!(["https"]));
        map.insert(
            "responses".to_owned(),
            json!({
                "200": {"description": "OK", "schema": answer},
                "401": {"description": "Unauthorized"},
            }),
        );
    }

    pub(super) fn json(&self, version: &str) -> Vec<u8> {
        json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": version},
            "paths": self.paths,
            "definitions": self.types,
            "parameters": self.parameters,
            "securityDefinitions": {"BearerToken": {
                "type": "apiKey", "in": "header", "name": "authorization",
                "description": "Bearer Token authentication",
            }},
            "security": [{"BearerToken": []}],
        })
        .to_string()
        .into_bytes()
    }

    pub(super) fn protobuf(&self, version: &str) -> Vec<u8> {
        let mut info = Message::default();
        info.text(1, "Kubernetes");
        info.text(2, version);
        let mut definitions = Message::default();
        for (name, schema) in &self.types {
            definitions.message(1, named(name, schema_message(schema)));
        }
        let mut document = Message::default();
        document.text(1, "2.0");
        document.message(2, info);
        document.message(8, Message::default());
        document.message(9, definitions);
        document.0
    }
}

/// The media types of a body, and the schema that they have in common.
fn content(of: &Value) -> (Value, Value) {
    let types: Vec<_> = of.as_object().into_iter().flatten().collect();
    let mut schema = types
        .first()
        .map(|(_, first)| first["schema"].clone())
        .unwrap_or_default();
    lower(&mut schema);
    (
        types.iter().map(|(kind, _)| kind.as_str()).collect(),
        schema,
    )
}

/// Turns a schema of v3 into one of v2: no alternatives, references alone.
fn lower(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else {
        return;
    };
    let wrapped = map
        .get("allOf")
        .and_then(|all| all[0]["$ref"].as_str())
        .map(str::to_owned);
    let reference = map
        .get("$ref")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .or(wrapped);
    if let Some(reference) = reference {
        let name = reference.strip_prefix(REFERENCE).unwrap_or(&reference);
        *schema = json!({"$ref": format!("{V2_REFERENCE}{name}")});
        return;
    }
    // What kubectl cannot cope with it must not see, as upstream's `ToStructuralOpenAPIV2` has it.
    let anything = map.get("nullable") == Some(&Value::Bool(true));
    let open = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if anything || open {
        map.remove("items");
        map.remove("properties");
    }
    let untyped = match map.get("type").and_then(Value::as_str) {
        Some("array") => !map.contains_key("items"),
        Some("object") => open,
        _ => false,
    };
    if anything || untyped {
        map.remove("type");
    }
    for gone in ["allOf", "oneOf", "anyOf", "not", "nullable"] {
        map.remove(gone);
    }
    if map.remove("x-kubernetes-int-or-string").is_some() {
        map.insert("type".to_owned(), "string".into());
        map.insert("format".to_owned(), "int-or-string".into());
    }
    for nested in ["items", "additionalProperties"] {
        if let Some(nested) = map.get_mut(nested) {
            lower(nested);
        }
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(lower);
    }
}

/// The `Schema` message. Numbers are those of gnostic's `OpenAPIv2.proto`.
fn schema_message(schema: &Value) -> Message {
    let mut message = Message::default();
    let text = |key: &str| schema[key].as_str().unwrap_or_default();
    message.text(1, text("$ref"));
    message.text(2, text("format"));
    message.text(4, text("description"));
    for required in schema["required"].as_array().into_iter().flatten() {
        message.text(19, required.as_str().unwrap_or_default());
    }
    match &schema["additionalProperties"] {
        Value::Object(_) => {
            let mut item = Message::default();
            item.message(1, schema_message(&schema["additionalProperties"]));
            message.message(21, item);
        }
        Value::Bool(true) => {
            let mut item = Message::default();
            item.flag(2);
            message.message(21, item);
        }
        _ => {}
    }
    if !text("type").is_empty() {
        let mut item = Message::default();
        item.text(1, text("type"));
        message.message(22, item);
    }
    if schema["items"].is_object() {
        let mut item = Message::default();
        item.message(1, schema_message(&schema["items"]));
        message.message(23, item);
    }
    if let Some(properties) = schema["properties"].as_object() {
        let mut list = Message::default();
        for (name, property) in properties {
            list.message(1, named(name, schema_message(property)));
        }
        message.message(25, list);
    }
    let extensions = schema.as_object().into_iter().flatten();
    for (key, value) in extensions.filter(|(key, _)| key.starts_with("x-")) {
        let mut any = Message::default();
        // JSON is YAML.
        any.text(2, &value.to_string());
        message.message(31, named(key, any));
    }
    message
}

/// `NamedSchema` and `NamedAny` have the same shape.
fn named(name: &str, value: Message) -> Message {
    let mut message = Message::default();
    message.text(1, name);
    message.message(2, value);
    message
}

/// A protobuf message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0
                .push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or_default());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Leaves empty texts out, as proto3 does.
    fn text(&mut self, field: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn message(&mut self, field: u64, message: Self) {
        self.bytes(field, &message.0);
    }

    fn flag(&mut self, field: u64) {
        self.varint(field << 3);
        self.varint(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_lowered_to_what_v2_knows() {
        let mut schema = json!({"type": "object", "properties": {
            "a": {"allOf": [{"$ref": format!("{REFERENCE}x.Y")}], "default": {}},
            "b": {"x-kubernetes-int-or-string": true, "oneOf": []},
            "c": {"type": "array", "items": {"$ref": format!("{REFERENCE}x.Z")}},
        }});
        lower(&mut schema);
        assert_eq!(
            schema["properties"],
            json!({
                "a": {"$ref": "#/definitions/x.Y"},
                "b": {"type": "string", "format": "int-or-string"},
                "c": {"type": "array", "items": {"$ref": "#/definitions/x.Z"}},
            })
        );
    }

    #[test]
    fn messages_are_written_as_protobuf() {
        let mut message = Message::default();
        message.text(1, "ab");
        message.flag(2);
        message.text(31, "");
        message.bytes(31, &[0; 200]);
        assert_eq!(message.0[..6], [0x0a, 2, b'a', b'b', 0x10, 1]);
        assert_eq!(message.0[6..10], [0xfa, 0x01, 0xc8, 0x01]);
    }
}
