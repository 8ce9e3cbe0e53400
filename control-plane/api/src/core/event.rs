//! Events, as both the core and the events.k8s.io group show them.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{cells, or, since};
use crate::tree::{self, Tree};
use crate::validate::sentences;

/// Core Events.
pub struct Event;

/// Selectable fields; `crate::events` has its own names for them, in the same order.
pub const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

impl Strategy for Event {
    fn default(&self, object: &mut Value) {
        default_core(object);
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        validate_core(object, "reportingComponent", errors);
    }

    fn selectable(&self) -> &'static [&'static str] {
        FIELDS
    }

    fn field(&self, object: &Value, name: &str) -> String {
        field(object, name)
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        row(object, now)
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

/// A selectable field by its core name.
pub fn field(object: &Value, name: &str) -> String {
    match name {
        "source" => or(
            object.text("source.component"),
            object.text("reportingComponent"),
        )
        .to_owned(),
        _ => object.text(name).to_owned(),
    }
}

/// Fields that upstream always serves, set or not.
pub fn default_core(object: &mut Value) {
    tree::object_at(object, "source");
    for field in ["reportingComponent", "reportingInstance"] {
        tree::fill(object, field, "");
    }
}

/// What both groups ask of an Event. Those of code written for the newer API carry an `eventTime`, and with it
/// who reported what.
pub fn validate_core(object: &Value, controller_field: &str, errors: &mut Errors) {
    let namespace = object.text("metadata.namespace");
    let involved = object.text("involvedObject.namespace");
    let is_new = !object.text("eventTime").is_empty();
    let belongs = if involved.is_empty() {
        namespace == "default" || (is_new && namespace == "kube-system")
    } else {
        is_new || involved == namespace
    };
    if !belongs {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(&path, involved, "does not match event.namespace");
    }
    if is_new {
        let controller = object.text("reportingComponent");
        let path = Path::new(controller_field);
        if controller.is_empty() {
            errors.required(&path, "");
        }
        sentences(
            names::is_qualified_name(controller),
            &path,
            controller,
            errors,
        );
        for (field, required, max) in [
            ("reportingInstance", true, 128),
            ("action", true, 128),
            ("reason", true, 128),
            ("message", false, 1024),
        ] {
            let text = object.text(field);
            if required && text.is_empty() {
                errors.required(&Path::new(field), "");
            }
            if text.len() > max {
                let detail = format!("can have at most {max} characters");
                errors.invalid(&Path::new(field), "", detail);
            }
        }
    }
    sentences(
        names::is_dns1123_subdomain(namespace),
        &Path::new("namespace"),
        namespace,
        errors,
    );
}

pub fn row(object: &Value, now: i64) -> Vec<Value> {
    let first = match object.text("firstTimestamp") {
        "" => since(object.text("eventTime"), now),
        at => since(at, now),
    };
    let mut last = match object.text("lastTimestamp") {
        "" => first.clone(),
        at => since(at, now),
    };
    let mut count = object.int("count").unwrap_or_default();
    if object.has("series") {
        last = since(object.text("series.lastObservedTime"), now);
        count = object.int("series.count").unwrap_or_default();
    } else if count == 0 {
        count = 1;
    }
    let kind = object.text("involvedObject.kind").to_lowercase();
    let target = match object.text("involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = or(
        object.text("source.component"),
        object.text("reportingComponent"),
    );
    let source = match or(object.text("source.host"), object.text("reportingInstance")) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    cells![
        last,
        object.text("type"),
        object.text("reason"),
        target,
        object.text("involvedObject.fieldPath"),
        source,
        object.text("message").trim(),
        first,
        count,
        object.text("metadata.name"),
    ]
}

pub fn validate_series(object: &Value, errors: &mut Errors) {
    if object.has("series") {
        let path = Path::new("series");
        if object.int("series.count").unwrap_or_default() < 2 {
            errors.invalid(&path.child("count"), "", "should be at least 2");
        }
        if object.text("series.lastObservedTime").is_empty() {
            errors.required(&path.child("lastObservedTime"), "");
        }
    }
}

/// The checks that only writers of the newer API meet: it has no use for the older counters and times.
pub fn validate_new(object: &Value, errors: &mut Errors) {
    validate_series(object, errors);
    if object.text("eventTime").is_empty() {
        errors.required(&Path::new("eventTime"), "");
    }
    let kind = object.text("type");
    if !["Normal", "Warning"].contains(&kind) {
        errors.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    let source = object.at("source");
    let is_set = |field: &str| match object.at(field) {
        Value::Null => false,
        Value::Number(number) => number.as_i64() != Some(0),
        _ => true,
    };
    for (field, wrong) in [
        ("firstTimestamp", is_set("firstTimestamp")),
        ("lastTimestamp", is_set("lastTimestamp")),
        ("count", is_set("count")),
        (
            "source",
            !source.text("component").is_empty() || !source.text("host").is_empty(),
        ),
    ] {
        if wrong {
            errors.invalid(&Path::new(field), "", "needs to be unset");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use windlass_machinery::time;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn rows_tell_what_happened_to_whom() {
        let now = time::parse_seconds("2026-01-01T00:10:00Z").expect("a time");
        let object = json!({
            "metadata": {"name": "web.1"},
            "involvedObject": {"kind": "Pod", "name": "web"},
            "source": {"component": "scheduler"},
            "type": "Normal",
            "reason": "Scheduled",
            "message": " assigned \n",
            "firstTimestamp": "2026-01-01T00:00:00Z",
            "lastTimestamp": "2026-01-01T00:09:30Z",
            "count": 2,
        });
        assert_eq!(
            row(&object, now),
            [
                json!("30s"),
                json!("Normal"),
                json!("Scheduled"),
                json!("pod/web"),
                json!(""),
                json!("scheduler"),
                json!("assigned"),
                json!("10m"),
                json!(2),
                json!("web.1"),
            ]
        );
    }

    #[test]
    fn an_event_stays_in_its_objects_namespace() {
        let check = |namespace: &str, involved: &str| {
            let object = json!({"metadata": {"namespace": namespace}, "involvedObject": {"namespace": involved}});
            lines(|e| Event.validate(&object, None, e))
        };
        assert!(check("a", "a").is_empty());
        assert!(check("default", "").is_empty());
        assert_eq!(
            check("a", "b"),
            ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
        );
    }

    #[test]
    fn events_with_a_time_say_who_reported_what() {
        let object = json!({
            "metadata": {"namespace": "a"},
            "involvedObject": {"namespace": "a"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingComponent": "c",
            "count": 1,
        });
        assert_eq!(
            lines(|e| Event.validate(&object, None, e)),
            [
                "reportingInstance: Required value",
                "action: Required value",
                "reason: Required value",
            ]
        );
        assert_eq!(
            lines(|e| validate_new(&object, e)),
            [
                "type: Invalid value: \"\": has invalid value: ",
                "count: Invalid value: \"\": needs to be unset",
            ]
        );
    }
}
