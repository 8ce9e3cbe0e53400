//! [`Value`] to message.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::ProtobufError;
use super::wire::{FIXED64, put_bytes, put_int, put_message, put_tag};
use crate::fields::BASE64;
use crate::schema::{Field, FieldType, Schema, SchemaAlternative, Slot, Slots, Type, TypeId};
use crate::time;

/// Writes an object of the given type, fields in the order of their tags. Fields that the type does not have are
/// left out; so are `apiVersion` and `kind`, which belong into the envelope.
pub fn encode(schema: &Schema, id: TypeId, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    let mut out = Vec::with_capacity(512);
    let ty = schema.get(id);
    let Value::Object(map) = object else {
        return Err(ProtobufError::BadValue {
            field: ty.name.to_string(),
            why: "not an object".to_owned(),
        });
    };
    Encoder { schema }.fields(ty, &ty.slots, map, &mut out)?;
    Ok(out)
}

type Written = Result<(), ProtobufError>;

struct Encoder<'s> {
    schema: &'s Schema,
}

impl Encoder<'_> {
    fn fields(
        &self,
        ty: &Type,
        slots: &Slots,
        map: &Map<String, Value>,
        out: &mut Vec<u8>,
    ) -> Written {
        for (tag, slot) in slots.iter() {
            match slot {
                Slot::Inline(inner) => {
                    put_message(out, tag, |out| self.fields(ty, inner, map, out))?
                }
                Slot::Field(index) => {
                    let Some(field) = ty.fields.get(*index as usize) else {
                        continue;
                    };
                    if let Some(value) = map.get(&*field.name).filter(|value| !value.is_null()) {
                        self.field(field, value, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn field(&self, field: &Field, value: &Value, out: &mut Vec<u8>) -> Written {
        match (&field.ty, value) {
            (FieldType::List(inner), Value::Array(items)) => items
                .iter()
                .try_for_each(|item| self.value(field, field.tag, inner, item, out)),
            (FieldType::Map(inner), Value::Object(map)) => {
                map.iter().try_for_each(|(key, value)| {
                    put_message(out, field.tag, |out| {
                        put_bytes(out, 1, key.as_bytes());
                        self.value(field, 2, inner, value, out)
                    })
                })
            }
            (ty, value) => self.value(field, field.tag, ty, value, out),
        }
    }

    fn value(
        &self,
        field: &Field,
        tag: u32,
        ty: &FieldType,
        value: &Value,
        out: &mut Vec<u8>,
    ) -> Written {
        match (ty, value) {
            (FieldType::Bool, Value::Bool(value)) => put_int(out, tag, i64::from(*value)),
            (FieldType::Int32 | FieldType::Int64, Value::Number(number)) => {
                put_int(
                    out,
                    tag,
                    number
                        .as_i64()
                        .ok_or_else(|| bad(field, "not an integer"))?,
                );
            }
            (FieldType::Float64, Value::Number(number)) => {
                put_tag(out, tag, FIXED64);
                out.extend_from_slice(&number.as_f64().unwrap_or_default().to_le_bytes());
            }
            (FieldType::String, Value::String(text)) => put_bytes(out, tag, text.as_bytes()),
            (FieldType::Bytes, Value::String(text)) => {
                let bytes = BASE64
                    .decode(text)
                    .map_err(|error| bad(field, &error.to_string()))?;
                put_bytes(out, tag, &bytes);
            }
            (FieldType::Object(id), Value::Object(map)) => {
                let ty = self.schema.get(*id);
                put_message(out, tag, |out| self.fields(ty, &ty.slots, map, out))?;
            }
            (FieldType::List(inner), Value::Array(items)) => put_message(out, tag, |out| {
                items
                    .iter()
                    .try_for_each(|item| self.value(field, 1, inner, item, out))
            })?,
            (FieldType::Quantity, value) => {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    _ => return Err(bad(field, "not a quantity")),
                };
                message(out, tag, |out| put_bytes(out, 1, text.as_bytes()));
            }
            (FieldType::IntOrString, Value::Number(number)) => {
                let number = number
                    .as_i64()
                    .ok_or_else(|| bad(field, "not an integer"))?;
                message(out, tag, |out| int_or_string(out, 0, number, ""));
            }
            (FieldType::IntOrString, Value::String(text)) => {
                message(out, tag, |out| int_or_string(out, 1, 0, text));
            }
            (FieldType::Time | FieldType::MicroTime, Value::String(text)) => {
                let (seconds, nanos) = time::parse(text).ok_or_else(|| bad(field, "not a time"))?;
                let nanos = if *ty == FieldType::Time { 0 } else { nanos };
                message(out, tag, |out| {
                    put_int(out, 1, seconds);
                    put_int(out, 2, i64::from(nanos));
                });
            }
            (FieldType::Time | FieldType::MicroTime, Value::Null) => message(out, tag, |_| {}),
            (FieldType::Duration, Value::String(text)) => {
                let nanos =
                    time::parse_duration(text).ok_or_else(|| bad(field, "not a duration"))?;
                message(out, tag, |out| put_int(out, 1, nanos));
            }
            (FieldType::RawExtension | FieldType::Json | FieldType::FieldsV1, value) => {
                let text = value.to_string();
                message(out, tag, |out| put_bytes(out, 1, text.as_bytes()));
            }
            (FieldType::SchemaOr(alternative, id), value) => {
                put_message(out, tag, |out| {
                    self.schema_or(field, *alternative, *id, value, out)
                })?;
            }
            _ => return Err(bad(field, "a value of the wrong type")),
        }
        Ok(())
    }

    fn schema_or(
        &self,
        field: &Field,
        alternative: SchemaAlternative,
        id: TypeId,
        value: &Value,
        out: &mut Vec<u8>,
    ) -> Written {
        let schema = FieldType::Object(id);
        match (alternative, value) {
            (SchemaAlternative::Bool, Value::Bool(allows)) => put_int(out, 1, i64::from(*allows)),
            (SchemaAlternative::Bool, value) => {
                put_int(out, 1, 1);
                self.value(field, 2, &schema, value, out)?;
            }
            (SchemaAlternative::Schemas, Value::Array(items)) => {
                items
                    .iter()
                    .try_for_each(|item| self.value(field, 2, &schema, item, out))?;
            }
            (SchemaAlternative::Strings, Value::Array(items)) => {
                items
                    .iter()
                    .try_for_each(|item| self.value(field, 2, &FieldType::String, item, out))?;
            }
            (_, value) => self.value(field, 1, &schema, value, out)?,
        }
        Ok(())
    }
}

fn int_or_string(out: &mut Vec<u8>, kind: i64, number: i64, text: &str) {
    put_int(out, 1, kind);
    put_int(out, 2, number);
    put_bytes(out, 3, text.as_bytes());
}

fn message(out: &mut Vec<u8>, tag: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let infallible: Result<(), std::convert::Infallible> = put_message(out, tag, |out| {
        write(out);
        Ok(())
    });
    let Ok(()) = infallible;
}

fn bad(field: &Field, why: &str) -> ProtobufError {
    ProtobufError::BadValue {
        field: field.name.to_string(),
        why: why.to_owned(),
    }
}
