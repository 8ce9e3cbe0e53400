//! Fills in the defaults that the schema table states, and the zeros that Go never leaves out.
//!
//! Few built-in fields have a default there (a port's protocol); most of theirs are rules in the kind's own
//! file. Custom resources have all of theirs in the table.

use serde_json::Value;

use crate::schema::{Field, FieldType, Schema, TypeId};

/// Idempotent. A default that is an object is filled in first and then defaulted inside, as structural schemas ask.
pub fn apply(schema: &Schema, id: TypeId, object: &mut Value) {
    let missing = |field: &Field, is_null: bool| {
        let default = field.default.as_ref();
        default.filter(|_| !is_null || !field.nullable).cloned()
    };
    Fill { schema, missing }.object(id, object);
}

/// Writes what Go's encoder writes of fields that nobody has set (`rules: null`, a condition's `lastProbeTime: null`, a
/// Service's `status: {"loadBalancer": {}}`), so that an object reads as upstream's does. Idempotent.
pub fn zeros(schema: &Schema, id: TypeId, object: &mut Value) {
    let missing = |field: &Field, _: bool| field.zero.clone();
    Fill { schema, missing }.object(id, object);
}

/// A walk that asks what is to stand in each field that is absent or null.
struct Fill<'s, F> {
    schema: &'s Schema,
    missing: F,
}

impl<F: Fn(&Field, bool) -> Option<Value>> Fill<'_, F> {
    fn object(&self, id: TypeId, object: &mut Value) {
        let Value::Object(map) = object else { return };
        for field in &self.schema.get(id).fields {
            let present = map.get(&*field.name);
            if present.is_none_or(Value::is_null)
                && let Some(value) = (self.missing)(field, present.is_some())
            {
                map.insert(field.name.to_string(), value);
            }
            if field.ty.object().is_some()
                && let Some(value) = map.get_mut(&*field.name)
            {
                self.below(&field.ty, value);
            }
        }
    }

    fn below(&self, ty: &FieldType, value: &mut Value) {
        match (ty, value) {
            (FieldType::Object(id), value) => self.object(*id, value),
            (FieldType::List(inner), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.below(inner, item));
            }
            (FieldType::Map(inner), Value::Object(map)) => {
                map.values_mut().for_each(|item| self.below(inner, item));
            }
            _ => {}
        }
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

    /// The facts of Go's tags, as its own encoder states them, with all that is nested.
    #[test]
    fn every_type_is_written_as_go_writes_its_zero_value() {
        const FACTS: &str = include_str!("../../../xtask/src/schema/zeros.txt");
        let schema = Schema::builtin();
        let mut found = 0;
        for (id, ty) in schema.types() {
            let line = FACTS
                .lines()
                .find_map(|line| line.strip_prefix(&*ty.name)?.strip_prefix(' '));
            let expected: Value = serde_json::from_str(line.unwrap_or("{}")).unwrap();
            let mut object = json!({});
            zeros(&schema, id, &mut object);
            assert_eq!(object, expected, "{}", ty.name);
            found += usize::from(line.is_some());
        }
        let facts = FACTS.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(found, facts.count());
    }

    #[test]
    fn what_go_never_leaves_out_stands_wherever_its_struct_does() {
        let schema = Schema::builtin();
        let id = schema.type_id("io.k8s.api.core.v1.Pod").unwrap();
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}]}});
        zeros(&schema, id, &mut pod);
        let expected = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {}}]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null,
                "lastTransitionTime": "2026-01-02T03:04:05Z"}]}});
        assert_eq!(pod, expected);
        zeros(&schema, id, &mut pod);
        assert_eq!(pod, expected);
    }
}
