//! Objects of any type of the table, made from a seed: what the property tests of every codec feed on.

use serde_json::{Map, Value};

use super::{FieldType, Schema, SchemaAlternative, TypeId};
use crate::{quantity::Quantity, time};

/// Deterministic, and good enough to vary shapes.
pub(crate) struct Seed(pub(crate) u64);

impl Seed {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn word(&mut self) -> String {
        const WORDS: [&str; 7] = ["", "a", "web", "üñí", "example.com/x", "line\nbreak", "-"];
        WORDS[self.below(7) as usize].to_owned()
    }
}

/// An object in canonical form: what `fields::check` leaves as it is.
pub(crate) fn object(schema: &Schema, id: TypeId, seed: &mut Seed, depth: usize) -> Value {
    let ty = schema.get(id);
    let mut map = Map::new();
    // Deep down and in wide types fewer fields are set, so that objects stay small.
    let chance = 2 + depth as u64 + ty.fields.len() as u64 / 16;
    for field in &ty.fields {
        // Typed structs insist on times.
        let needed = field.required && matches!(field.ty, FieldType::Time | FieldType::MicroTime);
        if field.tag != 0 && (needed || seed.below(chance) == 0) {
            let value = value(schema, &field.ty, seed, depth + 1);
            if !field.is_empty_value(&value) {
                map.insert(field.name.to_string(), value);
            }
        }
    }
    Value::Object(map)
}

fn value(schema: &Schema, ty: &FieldType, seed: &mut Seed, depth: usize) -> Value {
    match ty {
        FieldType::Bool => Value::Bool(seed.below(2) == 0),
        FieldType::Int32 => Value::from([0, 1, -1, 80, i32::MAX, i32::MIN][seed.below(6) as usize]),
        FieldType::Int64 => {
            Value::from([0, 1, -1, 1 << 40, i64::MAX, i64::MIN][seed.below(6) as usize])
        }
        FieldType::Float64 => Value::from([0.0, 1.5, -2.25, 1e300][seed.below(4) as usize]),
        FieldType::String => Value::from(seed.word()),
        FieldType::Bytes => Value::from(["", "AA==", "/+8=", "YWJj"][seed.below(4) as usize]),
        FieldType::Quantity => {
            let text = ["0", "1500m", "3Gi", "2e3", "-1"][seed.below(5) as usize];
            Value::from(Quantity::parse(text).unwrap().to_string())
        }
        FieldType::IntOrString => match seed.below(3) {
            0 => Value::from("50%"),
            1 => Value::from(0),
            _ => Value::from(-80),
        },
        FieldType::Time => Value::from(time::format(seed.below(1 << 40) as i64 % 4_000_000_000)),
        FieldType::MicroTime => Value::from(time::format_micros(
            seed.below(4_000_000_000) as i64,
            seed.below(1_000_000) as u32,
        )),
        FieldType::Duration => Value::from(time::format_duration(seed.below(1 << 50) as i64)),
        FieldType::Any | FieldType::Json => match seed.below(3) {
            0 => Value::from(seed.word()),
            1 => serde_json::json!({"x": [1, {"y": null}], "z": 1.5}),
            _ => serde_json::json!([true]),
        },
        FieldType::RawExtension | FieldType::FieldsV1 => {
            serde_json::json!({"f:spec": {".": {}, "n": seed.word()}})
        }
        FieldType::SchemaOr(alternative, id) => match (alternative, seed.below(2)) {
            (SchemaAlternative::Bool, 0) => Value::Bool(seed.below(2) == 0),
            (SchemaAlternative::Schemas, 0) if depth < 6 => {
                Value::Array(vec![object(schema, *id, seed, depth + 1)])
            }
            (SchemaAlternative::Strings, 0) => Value::from(vec![seed.word()]),
            _ => object(schema, *id, seed, depth + 3),
        },
        FieldType::Object(id) if depth < 12 => object(schema, *id, seed, depth),
        FieldType::Object(_) => Value::Object(Map::new()),
        FieldType::List(inner) => (0..=seed.below(2))
            .map(|_| value(schema, inner, seed, depth + 1))
            .collect::<Vec<_>>()
            .into(),
        FieldType::Map(inner) => {
            let entries = (0..=seed.below(2)).map(|i| {
                (
                    format!("k{i}{}", seed.word()),
                    value(schema, inner, seed, depth + 1),
                )
            });
            Value::Object(entries.collect())
        }
    }
}
