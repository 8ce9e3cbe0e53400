//! Fills in the defaults that the schema table states.
//!
//! Few built-in fields have one there (a port's protocol); most of their defaults are rules in the kind's own
//! file. Custom resources have all of theirs in the table.

use serde_json::Value;

use crate::schema::{FieldType, Schema, TypeId};

/// Idempotent. A default that is an object is filled in first and then defaulted inside, as structural schemas ask.
pub fn apply(schema: &Schema, id: TypeId, object: &mut Value) {
    let Value::Object(map) = object else { return };
    for field in &schema.get(id).fields {
        if let Some(default) = &field.default {
            let absent = match map.get(&*field.name) {
                None => true,
                Some(value) => value.is_null() && !field.nullable,
            };
            if absent {
                map.insert(field.name.to_string(), default.clone());
            }
        }
        if field.ty.object().is_some()
            && let Some(value) = map.get_mut(&*field.name)
        {
            below(schema, &field.ty, value);
        }
    }
}

fn below(schema: &Schema, ty: &FieldType, value: &mut Value) {
    match (ty, value) {
        (FieldType::Object(id), value) => apply(schema, *id, value),
        (FieldType::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| below(schema, inner, item));
        }
        (FieldType::Map(inner), Value::Object(map)) => {
            map.values_mut().for_each(|item| below(schema, inner, item));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn protocols_default_wherever_ports_stand() {
        let schema = Schema::builtin();
        let id = schema.type_id("io.k8s.api.core.v1.Service").unwrap();
        let mut service =
            json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}});
        apply(&schema, id, &mut service);
        assert_eq!(
            service,
            json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}})
        );
    }
}
