//! Events of events.k8s.io/v1: other names for the fields of core Events, and stricter rules.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::core::event::FIELDS as CORE_FIELDS;
use crate::core::event::{default_core, field, row, validate_core, validate_new, validate_series};
use crate::resource::{Conversion, Strategy};
use crate::tree::{self, Tree};
use crate::validate::{immutable, same, sentences};

pub const CONVERSION: Conversion = Conversion::Fixed {
    to_storage,
    from_storage,
};

/// Names here, names in core Events.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(value) = tree::remove(object, from) {
        tree::set(object, to, value);
    }
}

fn to_storage(object: &mut Value) {
    for (new, core) in NAMES {
        rename(object, new, core);
    }
    tree::set(object, "apiVersion", "v1");
}

fn from_storage(object: &mut Value) {
    for (new, core) in NAMES {
        rename(object, core, new);
    }
    tree::set(object, "apiVersion", "events.k8s.io/v1");
}

/// One for each of core's selectable fields, in the same order: both groups read one index.
const FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "deprecatedSource",
    "type",
];

/// All values are in the storage version: core Events.
pub struct Event;

impl Strategy for Event {
    fn default(&self, object: &mut Value) {
        default_core(object);
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        validate_core(object, "reportingController", errors);
    }

    /// What older clients wrote through core keeps being updatable here.
    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let name = object.text("metadata.name");
        if !name.is_empty() {
            let path = Path::new("metadata").child("name");
            sentences(names::is_dns1123_subdomain(name), &path, name, errors);
        }
        validate_new(object, errors);
    }

    /// What happened does not change; only how often is counted on.
    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        if !same(new.at("series"), old.at("series")) {
            validate_series(new, errors);
        }
        for field in [
            "involvedObject",
            "reason",
            "message",
            "source",
            "firstTimestamp",
            "lastTimestamp",
            "count",
            "type",
            "eventTime",
            "action",
            "related",
        ] {
            immutable(new, old, field, errors);
        }
        // The stored object has the core group's name for this one.
        let controller = new.at("reportingComponent");
        if !same(controller, old.at("reportingComponent")) {
            let path = Path::new("reportingController");
            errors.invalid(&path, controller.clone(), "field is immutable");
        }
        immutable(new, old, "reportingInstance", errors);
    }

    fn selectable(&self) -> &'static [&'static str] {
        FIELDS
    }

    fn field(&self, object: &Value, name: &str) -> String {
        let position = FIELDS.iter().position(|field| *field == name);
        position.map_or_else(String::new, |position| field(object, CORE_FIELDS[position]))
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        row(object, now)
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_change_and_nothing_is_lost() {
        let new = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "e"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "regarding": {"kind": "Pod", "name": "p"},
            "note": "hello",
            "reportingController": "c",
            "reportingInstance": "i",
            "deprecatedCount": 3,
        });
        let mut object = new.clone();
        to_storage(&mut object);
        assert_eq!(object["apiVersion"], "v1");
        assert_eq!(object["message"], "hello");
        assert_eq!(object["involvedObject"]["name"], "p");
        assert_eq!(Event.field(&object, "regarding.kind"), "Pod");
        assert_eq!(Event.field(&object, "reportingController"), "c");
        assert_eq!(FIELDS.len(), CORE_FIELDS.len());
        from_storage(&mut object);
        assert_eq!(object, new);
    }
}
