//! The schema table: which fields each type has, and what generic code must know about them.
//!
//! Built-in kinds ([`Schema::builtin`]) and custom resources give the same table, so field validation, patches,
//! server-side apply, defaulting and the protobuf codec are each written once, over `(&Schema, TypeId)`.

#[cfg(test)]
pub(crate) mod arbitrary;
mod builtin;
mod structural;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

/// Types by name; immutable once built.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    ids: HashMap<Box<str>, TypeId>,
}

/// A type's place in its [`Schema`]; meaningless in another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u32);

/// An object type: a Kubernetes kind, or a struct inside one.
#[derive(Debug)]
pub struct Type {
    /// The OpenAPI name, such as `io.k8s.api.core.v1.Pod`.
    pub name: Box<str>,
    /// Sorted by name; what Go embeds is flattened, as in JSON.
    pub fields: Vec<Field>,
    /// Server-side apply treats the struct as one value.
    pub atomic: bool,
    /// Fields that are not listed are kept as they are (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// The value is a Kubernetes object of any kind: apiVersion, kind and metadata are allowed in it.
    pub embedded_resource: bool,
    /// Values of a wrong type are for the schema's rules to complain about (custom resources): an object with some can be
    /// read nevertheless.
    pub ruled: bool,
    pub(crate) slots: Slots,
}

/// One field of a [`Type`].
#[derive(Clone, Debug)]
pub struct Field {
    /// The JSON name.
    pub name: Box<str>,
    /// The protobuf tag; 0 where the field is not on the wire (`apiVersion`, `kind`) or the type has no protobuf.
    pub tag: u32,
    /// Tags of the embedded messages that hold this field on the wire and that JSON does not show, outermost
    /// first.
    pub inline: Box<[u32]>,
    pub ty: FieldType,
    /// How server-side apply merges a list; of no meaning for other types.
    pub list_type: ListType,
    /// Server-side apply treats the map or struct in this field as one value.
    pub atomic: bool,
    /// Server-side apply takes this field's struct apart, although others of its type are one value.
    pub granular: bool,
    /// What Go holds and writes here while nobody has set it, where it does not leave the field out: `null`, `""`, `0`,
    /// and for a struct that is no pointer `{}`, inside which the same holds.
    pub zero: Option<Value>,
    pub patch_strategy: PatchStrategy,
    /// The key by which strategic merge patch matches the elements of a list of objects.
    pub patch_merge_key: Option<Box<str>>,
    pub default: Option<Value>,
    /// Must be present for the API to accept the object (checked by the kind's validation, not while decoding).
    pub required: bool,
    /// An explicit zero (`0`, `false`, `""`, an empty list or map) means something else than absence. Where it does
    /// not (most of the built-in API), Go drops zeros when it writes, and so does this crate when it reads.
    pub keeps_zero: bool,
    /// An explicit null is kept (custom resources).
    pub nullable: bool,
}

/// The type of a field, of a list's element or of a map's value.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldType {
    Bool,
    Int32,
    Int64,
    Float64,
    String,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Go's duration text, `1h30m`.
    Duration,
    /// Any JSON value; no protobuf form.
    Any,
    /// Any JSON object (`runtime.RawExtension`).
    RawExtension,
    /// Any JSON value (`apiextensions.JSON`).
    Json,
    /// The set of fields in a `managedFields` entry.
    FieldsV1,
    /// A JSON schema (the type given) or something simpler; inside CustomResourceDefinitions.
    SchemaOr(SchemaAlternative, TypeId),
    Object(TypeId),
    List(Box<FieldType>),
    /// Keys are strings.
    Map(Box<FieldType>),
}

/// What may stand in place of a JSON schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaAlternative {
    /// `additionalProperties: false`
    Bool,
    /// `items: [{…}, {…}]`
    Schemas,
    /// `dependencies: {a: [b, c]}`
    Strings,
}

/// How server-side apply merges a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Scalars, each owned by itself.
    Set,
    /// Objects, identified by the values of these fields.
    Map(Vec<Box<str>>),
}

/// How strategic merge patch treats a field; both may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged, by merge key or as a set of scalars.
    pub merge: bool,
    /// `$retainKeys` is expected.
    pub retain_keys: bool,
}

impl FieldType {
    /// Whether any JSON value may stand here, with nothing to check inside.
    pub fn is_free(&self) -> bool {
        matches!(
            self,
            Self::Any | Self::RawExtension | Self::Json | Self::FieldsV1 | Self::SchemaOr(..)
        )
    }

    /// The object type behind lists and maps, if there is one.
    pub fn object(&self) -> Option<TypeId> {
        match self {
            Self::Object(id) => Some(*id),
            Self::List(inner) | Self::Map(inner) => inner.object(),
            _ => None,
        }
    }
}

impl Field {
    /// Whether the value says nothing that absence would not say.
    pub fn is_empty_value(&self, value: &Value) -> bool {
        !self.keeps_zero
            && match (&self.ty, value) {
                // What may be anything is there as soon as it is given: a schema's `default: false`.
                (FieldType::Object(_) | FieldType::Quantity | FieldType::Json, _) => false,
                (_, Value::Bool(value)) => !value,
                (_, Value::Number(value)) => value.as_f64() == Some(0.0),
                (_, Value::String(text)) => text.is_empty(),
                (FieldType::List(_), Value::Array(items)) => items.is_empty(),
                (FieldType::Map(_), Value::Object(map)) => map.is_empty(),
                _ => false,
            }
    }

    /// A field with nothing special about it.
    pub fn new(name: &str, ty: FieldType) -> Self {
        Self {
            name: name.into(),
            tag: 0,
            inline: Box::default(),
            ty,
            list_type: ListType::Atomic,
            atomic: false,
            granular: false,
            zero: None,
            patch_strategy: PatchStrategy::default(),
            patch_merge_key: None,
            default: None,
            required: false,
            keeps_zero: true,
            nullable: false,
        }
    }
}

impl Type {
    pub fn new(name: &str, mut fields: Vec<Field>) -> Self {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let slots = Slots::of(&fields);
        Self {
            name: name.into(),
            fields,
            atomic: false,
            preserve_unknown: false,
            embedded_resource: false,
            ruled: false,
            slots,
        }
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        let index = self
            .fields
            .binary_search_by(|field| (*field.name).cmp(name))
            .ok()?;
        self.fields.get(index)
    }

    /// The name without its package, as Go calls the struct.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// The name of a built-in type in OpenAPI: `io.k8s.api.apps.v1.Deployment` for `apps`, `v1` and `Deployment`.
pub fn type_name(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "api.core",
        "apiextensions.k8s.io" => "apiextensions-apiserver.pkg.apis.apiextensions",
        "apiregistration.k8s.io" => "kube-aggregator.pkg.apis.apiregistration",
        "internal.apiserver.k8s.io" => "api.apiserverinternal",
        "meta.k8s.io" => "apimachinery.pkg.apis.meta",
        "metrics.k8s.io" => "metrics.pkg.apis.metrics",
        group => {
            let package = group.split('.').next().unwrap_or(group);
            return format!("io.k8s.api.{package}.{version}.{kind}");
        }
    };
    format!("io.k8s.{package}.{version}.{kind}")
}

impl Schema {
    /// The types of the built-in API; read once, at first use.
    pub fn builtin() -> Arc<Schema> {
        builtin::schema()
    }

    /// By OpenAPI name: `io.k8s.api.apps.v1.Deployment`.
    pub fn type_id(&self, name: &str) -> Option<TypeId> {
        self.ids.get(name).copied()
    }

    /// By group, version and kind, for built-in groups.
    pub fn kind_id(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        self.type_id(&type_name(group, version, kind))
    }

    /// The type of an id that this schema gave out.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    pub fn types(&self) -> impl Iterator<Item = (TypeId, &Type)> {
        self.types
            .iter()
            .enumerate()
            .map(|(index, ty)| (TypeId(index as u32), ty))
    }

    /// Reserves an id, so that types may refer to each other before they are complete.
    pub fn declare(&mut self, name: &str) -> TypeId {
        if let Some(id) = self.type_id(name) {
            return id;
        }
        let id = TypeId(self.types.len() as u32);
        self.types.push(Type::new(name, Vec::new()));
        self.ids.insert(name.into(), id);
        id
    }

    /// Fills in a declared type.
    pub fn define(&mut self, ty: Type) -> TypeId {
        let id = self.declare(&ty.name);
        self.types[id.0 as usize] = ty;
        id
    }
}

/// Where protobuf tags lead: to fields, or into embedded messages.
#[derive(Debug, Default)]
pub(crate) struct Slots(Vec<(u32, Slot)>);

#[derive(Debug)]
pub(crate) enum Slot {
    /// An index into [`Type::fields`].
    Field(u32),
    Inline(Slots),
}

impl Slots {
    fn of(fields: &[Field]) -> Self {
        let mut slots = Self::default();
        for (index, field) in fields
            .iter()
            .enumerate()
            .filter(|(_, field)| field.tag != 0)
        {
            slots.insert(&field.inline, field.tag, index as u32);
        }
        slots
    }

    fn insert(&mut self, inline: &[u32], tag: u32, index: u32) {
        match inline.split_first() {
            None => {
                let at = self.0.partition_point(|(t, _)| *t < tag);
                self.0.insert(at, (tag, Slot::Field(index)));
            }
            Some((outer, inline)) => {
                let at = self.0.partition_point(|(t, _)| t < outer);
                if self.0.get(at).is_none_or(|(t, _)| t != outer) {
                    self.0.insert(at, (*outer, Slot::Inline(Self::default())));
                }
                if let Some((_, Slot::Inline(inner))) = self.0.get_mut(at) {
                    inner.insert(inline, tag, index);
                }
            }
        }
    }

    /// In ascending order of tags.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.0.iter().map(|(tag, slot)| (*tag, slot))
    }

    pub(crate) fn get(&self, tag: u32) -> Option<&Slot> {
        // Tags are dense and small: the slot is nearly always at its tag's own place.
        if let Some((found, slot)) = self.0.get((tag as usize).wrapping_sub(1))
            && *found == tag
        {
            return Some(slot);
        }
        let at = self.0.binary_search_by_key(&tag, |(t, _)| *t).ok()?;
        self.0.get(at).map(|(_, slot)| slot)
    }
}

#[cfg(test)]
mod typed;

#[cfg(test)]
mod tests {
    use super::*;

    fn field<'a>(schema: &'a Schema, ty: &str, name: &str) -> &'a Field {
        schema.get(schema.type_id(ty).unwrap()).field(name).unwrap()
    }

    #[test]
    fn the_builtin_table_knows_merge_keys_list_types_and_tags() {
        let schema = Schema::builtin();
        let ports = field(&schema, "io.k8s.api.core.v1.ServiceSpec", "ports");
        assert_eq!(ports.tag, 1);
        assert_eq!(
            ports.list_type,
            ListType::Map(vec!["port".into(), "protocol".into()])
        );
        assert_eq!(ports.patch_merge_key.as_deref(), Some("port"));
        assert!(ports.patch_strategy.merge);
        let protocol = field(&schema, "io.k8s.api.core.v1.ServicePort", "protocol");
        assert_eq!(protocol.default, Some("TCP".into()));
        let containers = field(&schema, "io.k8s.api.core.v1.PodSpec", "containers");
        assert!(containers.required);
        assert_eq!(
            containers.ty.object(),
            schema.type_id("io.k8s.api.core.v1.Container")
        );
        let strategy = field(&schema, "io.k8s.api.apps.v1.DeploymentSpec", "strategy");
        assert!(strategy.patch_strategy.retain_keys && !strategy.patch_strategy.merge);
        assert!(
            schema
                .get(
                    schema
                        .type_id("io.k8s.api.core.v1.ObjectReference")
                        .unwrap()
                )
                .atomic
        );
    }

    #[test]
    fn embedded_structs_are_flat_in_json_and_nested_on_the_wire() {
        let schema = Schema::builtin();
        let host_path = field(&schema, "io.k8s.api.core.v1.Volume", "hostPath");
        assert_eq!((&*host_path.inline, host_path.tag), (&[2][..], 1));
        let volume = schema.get(schema.type_id("io.k8s.api.core.v1.Volume").unwrap());
        let Some(Slot::Inline(source)) = volume.slots.get(2) else {
            panic!("not inline")
        };
        let Some(Slot::Field(index)) = source.get(1) else {
            panic!("no field")
        };
        assert_eq!(&*volume.fields[*index as usize].name, "hostPath");
    }

    #[test]
    fn groups_lead_to_their_packages() {
        let schema = Schema::builtin();
        for (group, version, kind) in [
            ("", "v1", "Pod"),
            ("apps", "v1", "Deployment"),
            ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
            ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"),
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            ("apiregistration.k8s.io", "v1", "APIService"),
            ("meta.k8s.io", "v1", "DeleteOptions"),
            ("metrics.k8s.io", "v1beta1", "PodMetrics"),
            ("resource.k8s.io", "v1", "ResourceClaim"),
        ] {
            assert!(
                schema.kind_id(group, version, kind).is_some(),
                "{group}/{version} {kind}"
            );
        }
        assert!(schema.kind_id("apps", "v1", "Pod").is_none());
    }
}
