//! Message to [`Value`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{Raw, Reader};
use super::{MAGIC, ProtobufError, decode_envelope};
use crate::schema::{Field, FieldType, Schema, SchemaAlternative, Slot, Slots, Type, TypeId};
use crate::{json, time};

/// Messages in messages; the deepest of the API's own types (schemas in CustomResourceDefinitions) need far less.
const MAX_DEPTH: usize = 128;

/// Reads an object of the given type. Unknown fields are skipped, as protobuf asks; `apiVersion` and `kind` are the
/// caller's to add.
pub fn decode(schema: &Schema, id: TypeId, bytes: &[u8]) -> Result<Value, ProtobufError> {
    Decoder { schema }.object(id, bytes, 0)
}

struct Decoder<'s> {
    schema: &'s Schema,
}

impl Decoder<'_> {
    fn object(&self, id: TypeId, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        let ty = self.schema.get(id);
        let mut map = Map::new();
        self.fields(ty, &ty.slots, bytes, &mut map, depth)?;
        Ok(Value::Object(map))
    }

    fn fields(
        &self,
        ty: &Type,
        slots: &Slots,
        bytes: &[u8],
        map: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if depth > MAX_DEPTH {
            return Err(ProtobufError::TooDeep);
        }
        let mut reader = Reader::new(bytes);
        while let Some((tag, raw)) = reader.field()? {
            match slots.get(tag) {
                None => {}
                Some(Slot::Inline(inner)) => {
                    let Raw::Bytes(bytes) = raw else {
                        return Err(ProtobufError::WrongWireType {
                            field: ty.name.to_string(),
                            wire_type: raw.wire_type(),
                        });
                    };
                    self.fields(ty, inner, bytes, map, depth + 1)?;
                }
                Some(Slot::Field(index)) => {
                    let Some(field) = ty.fields.get(*index as usize) else {
                        continue;
                    };
                    self.field(field, raw, map, depth)?;
                }
            }
        }
        Ok(())
    }

    fn field(
        &self,
        field: &Field,
        raw: Raw<'_>,
        map: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        match &field.ty {
            FieldType::List(inner) => {
                let list = map
                    .entry(&*field.name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(items) = list else {
                    return Ok(());
                };
                match (&**inner, raw) {
                    (FieldType::Bool | FieldType::Int32 | FieldType::Int64, Raw::Bytes(packed)) => {
                        let mut reader = Reader::new(packed);
                        while !reader.is_empty() {
                            items.push(scalar(inner, reader.varint()?));
                        }
                    }
                    (inner, raw) => items.extend(self.value(field, inner, raw, depth)?),
                }
            }
            FieldType::Map(inner) => {
                let (key, value) = self.entry(field, inner, raw, depth)?;
                let entries = map
                    .entry(&*field.name)
                    .or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(entries) = entries {
                    entries.insert(key, value);
                }
            }
            ty => {
                // gogo writes every field that is no pointer, zero or not; JSON leaves those out.
                match self
                    .value(field, ty, raw, depth)?
                    .filter(|value| !field.is_empty_value(value))
                {
                    Some(value) => map.insert(field.name.to_string(), value),
                    None => map.remove(&*field.name),
                };
            }
        }
        Ok(())
    }

    /// A map's entry is a message with key and value.
    fn entry(
        &self,
        field: &Field,
        ty: &FieldType,
        raw: Raw<'_>,
        depth: usize,
    ) -> Result<(String, Value), ProtobufError> {
        let mut key = String::new();
        let mut value = None;
        let mut reader = Reader::new(bytes(field, raw)?);
        while let Some((tag, raw)) = reader.field()? {
            match tag {
                1 => key = text(field, raw)?.to_owned(),
                2 => value = self.value(field, ty, raw, depth)?,
                _ => {}
            }
        }
        // An absent value is the type's zero.
        let value = match value {
            Some(value) => value,
            None => self
                .value(field, ty, absent(ty), depth)?
                .unwrap_or_default(),
        };
        Ok((key, value))
    }

    /// One value; nothing for a time that is not set.
    fn value(
        &self,
        field: &Field,
        ty: &FieldType,
        raw: Raw<'_>,
        depth: usize,
    ) -> Result<Option<Value>, ProtobufError> {
        Ok(Some(match ty {
            FieldType::Bool | FieldType::Int32 | FieldType::Int64 => match raw {
                Raw::Varint(value) => scalar(ty, value),
                raw => return Err(wrong(field, raw)),
            },
            FieldType::Float64 => match raw {
                Raw::Fixed64(bytes) => Value::from(f64::from_le_bytes(bytes)),
                raw => return Err(wrong(field, raw)),
            },
            FieldType::String => Value::from(text(field, raw)?),
            FieldType::Bytes => Value::String(STANDARD.encode(bytes(field, raw)?)),
            FieldType::Object(id) => self.object(*id, bytes(field, raw)?, depth + 1)?,
            // Maps and lists cannot hold lists on the wire: a message with the one field `items` stands between.
            FieldType::List(inner) => {
                let mut items = Vec::new();
                let mut reader = Reader::new(bytes(field, raw)?);
                while let Some((tag, raw)) = reader.field()? {
                    if tag == 1 {
                        items.extend(self.value(field, inner, raw, depth + 1)?);
                    }
                }
                Value::Array(items)
            }
            FieldType::Map(_) | FieldType::Any => return Err(wrong(field, raw)),
            FieldType::Quantity => {
                let text = part(field, raw, 1)?.map_or(Ok(""), |raw| text(field, raw))?;
                Value::from(if text.is_empty() { "0" } else { text })
            }
            FieldType::IntOrString => int_or_string(field, raw)?,
            FieldType::Time | FieldType::MicroTime => {
                let seconds = number(field, raw, 1)?;
                let nanos = number(field, raw, 2)?;
                if bytes(field, raw)?.is_empty() {
                    return Ok(None);
                }
                let text = match ty {
                    FieldType::Time => time::format(seconds),
                    _ => time::format_micros(
                        seconds,
                        u32::try_from(nanos).unwrap_or_default() / 1000,
                    ),
                };
                if text.is_empty() {
                    return Err(bad(field, "time out of range"));
                }
                Value::String(text)
            }
            FieldType::Duration => Value::String(time::format_duration(number(field, raw, 1)?)),
            FieldType::RawExtension => match part(field, raw, 1)? {
                Some(raw) => self.raw_extension(field, bytes(field, raw)?, depth)?,
                None => return Ok(None),
            },
            FieldType::Json | FieldType::FieldsV1 => match part(field, raw, 1)? {
                Some(raw) => parse(field, bytes(field, raw)?)?,
                None => return Ok(None),
            },
            FieldType::SchemaOr(alternative, id) => {
                return self.schema_or(field, *alternative, *id, raw, depth);
            }
        }))
    }

    /// JSON, or an object in an envelope.
    fn raw_extension(
        &self,
        field: &Field,
        raw: &[u8],
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        if !raw.starts_with(MAGIC) {
            return parse(field, raw);
        }
        if depth > MAX_DEPTH {
            return Err(ProtobufError::TooDeep);
        }
        let envelope = decode_envelope(raw)?;
        let (group, version) = envelope
            .api_version
            .split_once('/')
            .unwrap_or(("", envelope.api_version));
        let id = self
            .schema
            .kind_id(group, version, envelope.kind)
            .ok_or_else(|| {
                bad(
                    field,
                    &format!("no kind {:?} in {:?}", envelope.kind, envelope.api_version),
                )
            })?;
        let mut value = self.object(id, envelope.raw, depth + 1)?;
        value["apiVersion"] = envelope.api_version.into();
        value["kind"] = envelope.kind.into();
        Ok(value)
    }

    fn schema_or(
        &self,
        field: &Field,
        alternative: SchemaAlternative,
        id: TypeId,
        raw: Raw<'_>,
        depth: usize,
    ) -> Result<Option<Value>, ProtobufError> {
        let mut schema = None;
        let mut others = Vec::new();
        let mut allows = false;
        let mut reader = Reader::new(bytes(field, raw)?);
        while let Some((tag, raw)) = reader.field()? {
            match (alternative, tag) {
                (SchemaAlternative::Bool, 1) => allows = matches!(raw, Raw::Varint(n) if n != 0),
                (SchemaAlternative::Bool, 2) | (_, 1) => {
                    schema = Some(self.object(id, bytes(field, raw)?, depth + 1)?);
                }
                (SchemaAlternative::Schemas, 2) => {
                    others.push(self.object(id, bytes(field, raw)?, depth + 1)?);
                }
                (SchemaAlternative::Strings, 2) => others.push(Value::from(text(field, raw)?)),
                _ => {}
            }
        }
        Ok(Some(match (schema, alternative) {
            (Some(schema), _) => schema,
            (None, SchemaAlternative::Bool) => Value::Bool(allows),
            (None, _) => Value::Array(others),
        }))
    }
}

fn scalar(ty: &FieldType, value: u64) -> Value {
    match ty {
        FieldType::Bool => Value::Bool(value != 0),
        FieldType::Int32 => Value::from(value as i32),
        _ => Value::from(value as i64),
    }
}

/// What stands for a value that an entry leaves out.
fn absent(ty: &FieldType) -> Raw<'static> {
    match ty {
        FieldType::Bool | FieldType::Int32 | FieldType::Int64 => Raw::Varint(0),
        FieldType::Float64 => Raw::Fixed64([0; 8]),
        _ => Raw::Bytes(&[]),
    }
}

fn int_or_string(field: &Field, raw: Raw<'_>) -> Result<Value, ProtobufError> {
    Ok(if number(field, raw, 1)? == 0 {
        Value::from(number(field, raw, 2)? as i32)
    } else {
        Value::from(part(field, raw, 3)?.map_or(Ok(""), |raw| text(field, raw))?)
    })
}

/// The last occurrence of a tag in a small message.
fn part<'a>(field: &Field, raw: Raw<'a>, wanted: u32) -> Result<Option<Raw<'a>>, ProtobufError> {
    let mut found = None;
    let mut reader = Reader::new(bytes(field, raw)?);
    while let Some((tag, raw)) = reader.field()? {
        if tag == wanted {
            found = Some(raw);
        }
    }
    Ok(found)
}

fn number(field: &Field, raw: Raw<'_>, tag: u32) -> Result<i64, ProtobufError> {
    match part(field, raw, tag)? {
        None => Ok(0),
        Some(Raw::Varint(value)) => Ok(value as i64),
        Some(raw) => Err(wrong(field, raw)),
    }
}

fn bytes<'a>(field: &Field, raw: Raw<'a>) -> Result<&'a [u8], ProtobufError> {
    match raw {
        Raw::Bytes(bytes) => Ok(bytes),
        raw => Err(wrong(field, raw)),
    }
}

fn text<'a>(field: &Field, raw: Raw<'a>) -> Result<&'a str, ProtobufError> {
    std::str::from_utf8(bytes(field, raw)?)
        .map_err(|_| ProtobufError::NotUtf8(field.name.to_string()))
}

fn parse(field: &Field, text: &[u8]) -> Result<Value, ProtobufError> {
    json::decode(text)
        .map(|decoded| decoded.value)
        .map_err(|error| bad(field, &error.to_string()))
}

fn wrong(field: &Field, raw: Raw<'_>) -> ProtobufError {
    ProtobufError::WrongWireType {
        field: field.name.to_string(),
        wire_type: raw.wire_type(),
    }
}

fn bad(field: &Field, why: &str) -> ProtobufError {
    ProtobufError::BadValue {
        field: field.name.to_string(),
        why: why.to_owned(),
    }
}
