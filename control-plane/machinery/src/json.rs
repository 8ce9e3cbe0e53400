//! JSON text to [`Value`], with what a strict server must know: which fields stood twice.
//!
//! Nesting is limited to 128 levels by the parser, so depth costs an error and no stack.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::trail::Trail;

/// A decoded body.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    /// Paths (`spec.containers[0].name`) of fields that appeared more than once; the last one won.
    pub duplicates: Vec<String>,
}

/// A body that is no JSON or YAML.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// Decodes one JSON value; anything after it is an error.
pub fn decode(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed {
        at: &Trail::ROOT,
        duplicates: &mut duplicates,
    }
    .deserialize(&mut deserializer)
    .map_err(|error| DecodeError(error.to_string()))?;
    deserializer
        .end()
        .map_err(|error| DecodeError(error.to_string()))?;
    Ok(Decoded { value, duplicates })
}

/// How many duplicates are worth telling.
const MAX_DUPLICATES: usize = 100;

/// Deserializes any self-describing format into a [`Value`], noting duplicate keys.
pub(crate) struct Seed<'a> {
    at: &'a Trail<'a>,
    duplicates: &'a mut Vec<String>,
}

impl<'a> Seed<'a> {
    pub(crate) fn root(duplicates: &'a mut Vec<String>) -> Self {
        Self {
            at: &Trail::ROOT,
            duplicates,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let at = self.at.index(items.len());
            match seq.next_element_seed(Seed {
                at: &at,
                duplicates: self.duplicates,
            })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let at = self.at.key(&key);
            let value = map.next_value_seed(Seed {
                at: &at,
                duplicates: self.duplicates,
            })?;
            if object.contains_key(&key) && self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(at.path());
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_named_by_path_and_the_last_one_wins() {
        let decoded =
            decode(br#"{"spec":{"replicas":1,"replicas":2,"c":[{"name":"a","name":"b"}]}}"#)
                .unwrap();
        assert_eq!(
            decoded.value,
            json!({"spec": {"replicas": 2, "c": [{"name": "b"}]}})
        );
        assert_eq!(decoded.duplicates, ["spec.replicas", "spec.c[0].name"]);
    }

    #[test]
    fn broken_text_is_an_error() {
        for text in ["", "{", "{}x", r#"{"a":}"#, "[1,]", "nul"] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
        assert!(decode(&[b'"', 0xff, b'"']).is_err());
    }

    #[test]
    fn nesting_beyond_the_limit_is_an_error_and_not_a_crash() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(decode(deep(120).as_bytes()).is_ok());
        assert!(decode(deep(129).as_bytes()).is_err());
        assert!(decode("{\"a\":".repeat(1_000_000).as_bytes()).is_err());
    }
}
