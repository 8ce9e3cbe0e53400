//! Reads of an object only what selectors look at: its labels, and what stands at most one field deep.
//!
//! Built-in kinds select by nothing deeper (`spec.nodeName`, `involvedObject.uid`), and what is deeper is nearly
//! all of an object. When a server starts it reads every object there is, so this decides how long that takes.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// An object without what selectors by `selectable` fields do not need; null when it is none.
pub(super) fn read(stored: &[u8], selectable: &[&str]) -> Value {
    // Custom resources may select by any path.
    let deep = |path: &&str| {
        let steps = path.trim_start_matches('.');
        steps.matches('.').count() > 1 || steps.contains('[')
    };
    if selectable.iter().any(deep) {
        return serde_json::from_slice(stored).unwrap_or_default();
    }
    let mut deserializer = serde_json::Deserializer::from_slice(stored);
    Part::Object
        .deserialize(&mut deserializer)
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// What part of an object is being read, and with it what becomes of its fields.
#[derive(Clone, Copy)]
enum Part {
    Object,
    Metadata,
    /// A field of the object, or the labels: of what is in it the scalars are kept.
    Field,
    /// Kept if it is a scalar.
    Leaf,
}

impl Part {
    /// What a field of this part is; `None` where it is passed over.
    fn of(self, key: &str) -> Option<Self> {
        match (self, key) {
            (Self::Object, "metadata") => Some(Self::Metadata),
            // Large, and nobody selects by it.
            (Self::Object, "data" | "binaryData") => None,
            (Self::Object, _) | (Self::Metadata, "labels") => Some(Self::Field),
            (Self::Field, _) => Some(Self::Leaf),
            (Self::Metadata | Self::Leaf, _) => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Option<Value>;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        if matches!(self, Self::Leaf) {
            while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(None);
        }
        let mut kept = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            match self.of(&key) {
                Some(part) => {
                    if let Some(value) = fields.next_value_seed(part)? {
                        kept.insert(key, value);
                    }
                }
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(Value::Object(kept)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STORED: &[u8] =
        br#"{"kind":"Pod","metadata":{"name":"a","labels":{"app":"web","none":null},
        "managedFields":[{"manager":"x"}]},"type":"Opaque","data":null,
        "spec":{"nodeName":"n","hostNetwork":true,"containers":[{"name":"c"}],"deep":{"er":1}},
        "status":{"phase":"Running","replicas":3}}"#;

    #[test]
    fn labels_and_what_is_one_field_deep_is_read() {
        let expected = json!({
            "kind": "Pod", "type": "Opaque", "metadata": {"labels": {"app": "web"}},
            "spec": {"nodeName": "n", "hostNetwork": true}, "status": {"phase": "Running", "replicas": 3},
        });
        assert_eq!(read(STORED, &["spec.nodeName", "type"]), expected);
        assert_eq!(read(STORED, &[".spec.nodeName"]), expected);
        assert_eq!(read(STORED, &[]), expected);
        assert_eq!(read(b"no object", &[]), Value::Null);
    }

    #[test]
    fn a_deeper_field_is_there_when_it_is_selectable() {
        assert_eq!(read(STORED, &[".spec.deep.er"])["spec"]["deep"]["er"], 1);
    }

    /// Every built-in kind's fields read from a shallow object as from the whole one.
    #[test]
    fn no_built_in_kind_selects_by_anything_deeper() {
        for resource in windlass_api::registry::builtin() {
            for name in resource.strategy.selectable() {
                assert!(name.matches('.').count() <= 1, "{} {name}", resource.plural);
            }
        }
    }
}
