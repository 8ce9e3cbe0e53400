//! Joins what the two sources know into the table's text.
//!
//! The text is one line a type (`name`, then `atomic` for structs that server-side apply treats as one value)
//! and one indented line a field: JSON name, protobuf tag, type, then what else is known about it. The reader is
//! `windlass_machinery::schema::builtin`, which documents the form.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

use super::openapi::{Definition, Definitions};
use super::proto::{Field, Message, Messages, Shape};

/// Scalars whose explicit zero is kept: see the file.
const POINTERS: &str = include_str!("pointers.txt");
/// What Go never leaves out: see the file.
const ZEROS: &str = include_str!("zeros.txt");
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Messages that JSON shows as something other than an object with the message's fields.
const SPECIAL: [(&str, &str); 12] = [
    ("apimachinery.pkg.api.resource.Quantity", "Quantity"),
    ("apimachinery.pkg.api.resource.QuantityValue", "Quantity"),
    ("apimachinery.pkg.util.intstr.IntOrString", "IntOrString"),
    ("apimachinery.pkg.apis.meta.v1.Time", "Time"),
    ("apimachinery.pkg.apis.meta.v1.MicroTime", "MicroTime"),
    ("apimachinery.pkg.apis.meta.v1.Duration", "Duration"),
    ("apimachinery.pkg.apis.meta.v1.FieldsV1", "FieldsV1"),
    ("apimachinery.pkg.runtime.RawExtension", "RawExtension"),
    (
        "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSON",
        "JSON",
    ),
    (
        "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray",
        "SchemaOrArray",
    ),
    (
        "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool",
        "SchemaOrBool",
    ),
    (
        "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
        "SchemaOrStringArray",
    ),
];

/// `api.core.v1.Pod` -> `io.k8s.api.core.v1.Pod`.
fn openapi_name(message: &str) -> String {
    let (root, rest) = message.split_once('.').unwrap_or((message, ""));
    format!("io.k8s.{}.{rest}", root.replace('_', "-"))
}

fn package(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(package, _)| package)
}

pub(super) fn join(messages: &Messages, definitions: &Definitions) -> Result<String> {
    let packages: BTreeSet<&str> = definitions.keys().map(|name| package(name)).collect();
    let mut text = String::from(
        "# Facts about the types of the Kubernetes API v1.35; written by `cargo xtask schema`, read by builtin.rs.\n",
    );
    let mut problems = Vec::new();
    for (name, message) in messages {
        let full = openapi_name(name);
        // What k8s-openapi leaves out is not served (retired versions), but for lists and the options of requests.
        let listed = || {
            let items = message.fields.iter().find(|field| field.name == "items");
            items.is_some_and(|items| definitions.contains_key(&openapi_name(&items.ty)))
        };
        let served = definitions.contains_key(&full) || full.starts_with(META) || listed();
        if !served || !packages.contains(package(&full)) || special(messages, name).is_some() {
            continue;
        }
        let atomic = message
            .markers
            .iter()
            .any(|(k, v)| k == "structType" && v == "atomic");
        writeln!(text, "{full}{}", if atomic { " atomic" } else { "" })?;
        let mut lines = Lines {
            messages,
            name,
            lines: Vec::new(),
            seen: BTreeSet::new(),
        };
        let definition = definitions.get(&full);
        if let Err(error) = lines.fields(message, definition) {
            problems.push(format!("{full}: {error:#}"));
        }
        lines.lines.sort();
        text.extend(lines.lines);
    }
    ensure!(
        problems.is_empty(),
        "fields without a match:\n{}",
        problems.join("\n")
    );
    Ok(text)
}

/// The table's word for a message that is not an object in JSON.
fn special(messages: &Messages, name: &str) -> Option<String> {
    if let Some((_, word)) = SPECIAL.iter().find(|(message, _)| *message == name) {
        return Some((*word).to_owned());
    }
    // `protobuf.nullable` wraps a Go slice type; JSON has the slice.
    let message = messages.get(name)?;
    let wrapper = message
        .markers
        .iter()
        .any(|(key, _)| key == "protobuf.nullable");
    wrapper.then(|| "[]string".to_owned())
}

/// The property that a proto field is, if any.
fn json_name(field: &Field, properties: Option<&BTreeSet<String>>) -> Option<String> {
    let Some(properties) = properties else {
        return Some(field.name.clone());
    };
    // Some differ in case (`clusterIP`), some in what a proto name cannot hold (`$ref`, `x-kubernetes-…`).
    let letters = |name: &str| name.replace(['-', '$'], "").to_ascii_lowercase();
    properties
        .get(&field.name)
        .or_else(|| {
            properties
                .iter()
                .find(|p| letters(p) == letters(&field.name))
        })
        .cloned()
}

/// What Go writes in a field that nobody has set, if it writes something. What a struct holds is said of its own type.
fn zero(owner: &str, field: &str) -> Result<Option<serde_json::Value>> {
    let line = ZEROS
        .lines()
        .find_map(|line| line.strip_prefix(owner)?.strip_prefix(' '));
    let Some(line) = line else { return Ok(None) };
    let object: serde_json::Value = serde_json::from_str(line).context(line)?;
    Ok(object.get(field).map(|zero| match zero {
        serde_json::Value::Object(_) => serde_json::Value::Object(serde_json::Map::new()),
        zero => zero.clone(),
    }))
}

struct Lines<'a> {
    messages: &'a Messages,
    name: &'a str,
    lines: Vec<String>,
    seen: BTreeSet<String>,
}

impl Lines<'_> {
    fn fields(&mut self, message: &Message, definition: Option<&Definition>) -> Result<()> {
        self.message(message, definition, &mut Vec::new())?;
        // TypeMeta is embedded too, and is not in the message at all: the envelope carries it.
        let typed = match definition {
            Some(definition) => {
                definition.properties.contains("kind") && !self.seen.contains("kind")
            }
            None => {
                self.name.ends_with("Options")
                    || message
                        .fields
                        .iter()
                        .any(|f| f.ty.ends_with(".v1.ListMeta"))
            }
        };
        if typed {
            for name in ["apiVersion", "kind"] {
                self.lines.push(format!("  {name} 0 string\n"));
                self.seen.insert(name.to_owned());
            }
        }
        if let Some(definition) = definition {
            let missing: Vec<_> = definition.properties.difference(&self.seen).collect();
            ensure!(missing.is_empty(), "no message field for {missing:?}");
        }
        Ok(())
    }

    /// The lines of a message's fields; `inline` holds the tags of the messages around it that JSON does not show.
    fn message(
        &mut self,
        message: &Message,
        definition: Option<&Definition>,
        inline: &mut Vec<String>,
    ) -> Result<()> {
        for field in &message.fields {
            if let Some(json) = json_name(field, definition.map(|d| &d.properties)) {
                self.line(&json, field, &inline.join("."), definition)?;
                continue;
            }
            // A Go struct embedded without a JSON name: its fields stand in the outer object.
            let inner = self
                .messages
                .get(&field.ty)
                .with_context(|| format!("no property for {}", field.name))?;
            inline.push(field.tag.to_string());
            self.message(inner, definition, inline)
                .with_context(|| format!("in {}", field.name))?;
            inline.pop();
        }
        Ok(())
    }

    fn line(
        &mut self,
        json: &str,
        field: &Field,
        inline: &str,
        definition: Option<&Definition>,
    ) -> Result<()> {
        ensure!(self.seen.insert(json.to_owned()), "{json} twice");
        let scalar = match field.ty.as_str() {
            "bool" | "int32" | "int64" | "double" | "string" | "bytes" => field.ty.clone(),
            name if name.contains('.') => match special(self.messages, name) {
                Some(word) => word,
                None if package(name) == package(self.name) => {
                    format!(".{}", name.rsplit('.').next().unwrap_or(name))
                }
                None => openapi_name(name),
            },
            other => bail!("unknown type {other}"),
        };
        let shape = match field.shape {
            Shape::One => "",
            Shape::List => "[]",
            Shape::Map => "{}",
        };
        let mut line = format!("  {json} {} {shape}{scalar}", field.tag);
        if !inline.is_empty() {
            write!(line, " inline={inline}")?;
        }
        let owner = openapi_name(self.name);
        let named_in = |facts: &str| {
            facts.lines().any(|line| {
                let mut words = line.split(' ');
                words.next() == Some(&owner) && words.any(|field| field == json)
            })
        };
        if named_in(POINTERS) {
            line.push_str(" pointer");
        }
        if definition.is_some_and(|d| d.required.contains(json)) {
            line.push_str(" required");
        }
        if let Some(zero) = zero(&owner, json)? {
            write!(line, " zero={zero}")?;
        }
        let keys: Vec<_> = field.marker("listMapKey").collect();
        for list_type in field.marker("listType").take(1) {
            match list_type {
                "atomic" => {}
                "set" => line.push_str(" set"),
                "map" => write!(line, " map={}", keys.join(","))?,
                other => bail!("unknown list type {other}"),
            }
        }
        if ["mapType", "structType"]
            .iter()
            .any(|m| field.marker(m).any(|value| value == "atomic"))
        {
            line.push_str(" atomic");
        }
        if field.marker("structType").any(|value| value == "granular") {
            line.push_str(" granular");
        }
        for key in field.marker("patchMergeKey").take(1) {
            write!(line, " key={key}")?;
        }
        for strategy in field.marker("patchStrategy").take(1) {
            write!(line, " patch={strategy}")?;
        }
        for default in field.marker("default").take(1) {
            let default = match default {
                // Two Go constants are named instead of spelled out.
                "ref(AzureDataDiskCachingReadWrite)" => "\"ReadWrite\"",
                "ref(AzureSharedBlobDisk)" => "\"Shared\"",
                literal => literal,
            };
            let value: serde_json::Value =
                serde_json::from_str(default).with_context(|| format!("default {default}"))?;
            // An empty string is what an absent one means: not worth storing.
            if value != "" {
                write!(line, " default={value}")?;
            }
        }
        line.push('\n');
        self.lines.push(line);
        Ok(())
    }
}
