//! PersistentVolumeClaims.

use serde_json::{Map, Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::persistent_volume::{
    CLASS_ANNOTATION, access_modes, class, old_annotations, short_modes,
};
use super::pod_spec::warnings;
use super::volume_spec::basic;
use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::labels::{selector, selector_terms};
use crate::validate::quantities::{compare, is_positive, show};
use crate::validate::{optional_name, optional_one_of, same, sentences};

pub struct PersistentVolumeClaim;

/// Defaults of a claim's spec, also in the claim templates of StatefulSets.
pub fn default_spec(object: &mut Value) {
    tree::fill(object, "spec.volumeMode", "Filesystem");
    tree::object_at(object, "spec.resources");
}

/// Takes away sources that nobody may ask for: references into other namespaces (a gate that is off), and by the old field
/// anything but a claim or a snapshot, which servers before the reference ignored as well (KEP-1495).
fn drop_sources(object: &mut Value, old: Option<&Value>) {
    let was = |field: &str| old.is_some_and(|old| old.at("spec").has(field));
    if !object.text("spec.dataSourceRef.namespace").is_empty() && !was("dataSourceRef") {
        tree::remove(object, "spec.dataSourceRef");
    }
    let had = was("dataSource") || was("dataSourceRef");
    let source = object.at("spec.dataSource");
    let known = [
        ("", "PersistentVolumeClaim"),
        ("snapshot.storage.k8s.io", "VolumeSnapshot"),
    ];
    if !had
        && !object.has("spec.dataSourceRef")
        && !known.contains(&(source.text("apiGroup"), source.text("kind")))
    {
        tree::remove(object, "spec.dataSource");
    }
}

/// The old field and the reference name the same thing: who gives one gets both.
fn both_sources(object: &mut Value) {
    let source = object.at("spec.dataSource").clone();
    let reference = object.at("spec.dataSourceRef").clone();
    let within = reference.text("namespace").is_empty();
    let local = |source: &Value| {
        let fields = ["apiGroup", "kind", "name"].into_iter();
        let set = fields.filter(|field| source.has(field));
        set.map(|field| (field.to_owned(), source.at(field).clone()))
            .collect::<Map<_, _>>()
    };
    if source.is_object() && !reference.is_object() {
        tree::set(object, "spec.dataSourceRef", local(&source));
    } else if reference.is_object() && !source.is_object() && within {
        tree::set(object, "spec.dataSource", local(&reference));
    }
}

impl Strategy for PersistentVolumeClaim {
    fn default(&self, object: &mut Value) {
        default_spec(object);
        tree::fill(object, "status.phase", "Pending");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({"phase": "Pending"}));
        drop_sources(object, None);
        both_sources(object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        drop_sources(new, Some(old));
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let kept = old.map(|old| Kept::of(old.at("spec"))).unwrap_or_default();
        spec_with(object.at("spec"), &kept, &Path::new("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let (new_spec, old_spec) = (new.at("spec"), old.at("spec"));
        let mut rest = new_spec.clone();
        // The binder fills in the volume; the class may be given later where it was left open (KEP-3333).
        if old_spec.text("volumeName").is_empty() {
            tree::keep(&mut rest, old_spec, "volumeName");
        }
        let class = new_spec.at("storageClassName");
        let (was, is) = (annotated(old), annotated(new));
        // From the annotation to the field: the same class, said in a newer way.
        let moved = !old_spec.has("storageClassName")
            && was.is_some_and(|was| class == was)
            && (is.is_none() || is == was);
        if was.unwrap_or_default() != is.unwrap_or_default() && !moved {
            let path = Path::new("metadata")
                .child("annotations")
                .child(CLASS_ANNOTATION);
            errors.invalid(&path, is.unwrap_or_default(), "field is immutable");
        }
        if !old_spec.has("storageClassName") && was.is_none_or(|was| class == was) {
            tree::keep(&mut rest, old_spec, "storageClassName");
        }
        let is_bound = new.text("status.phase") == "Bound";
        if is_bound && let Some(before) = old_spec.at("resources.requests").get("storage") {
            let requests = tree::object_at(&mut rest, "resources.requests");
            requests.insert("storage".to_owned(), before.clone());
        }
        if is_bound && rest.has("volumeAttributesClassName") {
            tree::keep(&mut rest, old_spec, "volumeAttributesClassName");
        }
        if !same(&rest, old_spec) {
            let detail = "spec is immutable after creation except resources.requests and \
                          volumeAttributesClassName for bound claims";
            errors.forbidden(&path, detail);
        }
        let storage = |object: &Value, path: &str| object.at(path).get("storage").cloned();
        let wanted = storage(new, "spec.resources.requests");
        let before = storage(old, "spec.resources.requests");
        if let (Some(wanted), Some(before)) = (wanted, before)
            && compare(&wanted, &before).is_some_and(std::cmp::Ordering::is_lt)
        {
            let capacity = storage(old, "status.capacity").unwrap_or_else(|| "0".into());
            if compare(&wanted, &capacity).is_some_and(std::cmp::Ordering::is_le) {
                let path = path.child("resources").child("requests").child("storage");
                errors.forbidden(&path, "field can not be less than status.capacity");
            }
        }
        if !same(new_spec.at("volumeMode"), old_spec.at("volumeMode")) {
            let value = new_spec.at("volumeMode").clone();
            errors.invalid(&Path::new("volumeMode"), value, "field is immutable");
        }
        if old_spec.has("volumeAttributesClassName") {
            let to = match new_spec.at("volumeAttributesClassName").as_str() {
                None => "nil",
                Some("") => "an empty string",
                Some(_) => return,
            };
            let detail = format!("update from non-nil value to {to} is forbidden");
            errors.forbidden(&path.child("volumeAttributesClassName"), detail);
        }
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        if new.list("spec.accessModes").is_empty() {
            errors.required(&Path::new("Spec").child("accessModes"), "");
        }
        let path = Path::new("status");
        for (name, amount) in new.entries("status.capacity") {
            basic(amount, &path.child("capacity").key(name), errors);
        }
        let states = path.child("allocatedResourceStatus");
        for (name, state) in new.entries("status.allocatedResourceStatuses") {
            resource_key(name, &states, errors);
            if !RESIZES.iter().any(|known| state == known) {
                errors.not_supported(&states, name, RESIZES);
            }
        }
        let allocated = path.child("allocatedResources");
        for (name, amount) in new.entries("status.allocatedResources") {
            let before = errors.len();
            resource_key(name, &allocated, errors);
            if errors.len() == before {
                basic(amount, &allocated.key(name), errors);
            }
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        let old = (CLASS_ANNOTATION, "v1.8", "storageClassName");
        old_annotations(new, &[old], &mut found);
        let path = Path::new("spec").child("resources");
        for list in ["requests", "limits"] {
            let amounts = new.at("spec.resources").at(list);
            warnings::fractional(amounts, "storage", &path.child(list), &mut found);
        }
        found
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let phase = if object.has("metadata.deletionTimestamp") {
            "Terminating"
        } else {
            object.text("status.phase")
        };
        let volume = object.text("spec.volumeName");
        let (capacity, modes) = if volume.is_empty() {
            (String::new(), String::new())
        } else {
            let capacity = object.at("status.capacity").get("storage");
            (
                capacity.map_or_else(|| "0".to_owned(), show),
                short_modes(object.list("status.accessModes")),
            )
        };
        cells![
            phase,
            volume,
            capacity,
            modes,
            class(object),
            or(object.text("spec.volumeAttributesClassName"), "<unset>"),
            age(object, now),
            or(object.text("spec.volumeMode"), "<unset>"),
        ]
    }
}

/// The class by the annotation that was there before the field.
fn annotated(object: &Value) -> Option<&str> {
    let annotations = object.at("metadata.annotations");
    annotations.get(CLASS_ANNOTATION).and_then(Value::as_str)
}

/// Steps of making a volume larger.
const RESIZES: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

fn resource_key(name: &str, path: &Path, errors: &mut Errors) {
    let problems = names::is_qualified_name(name);
    let is_native = !name.contains('/') || name.contains("kubernetes.io/");
    if problems.is_empty() && is_native && name != "storage" {
        errors.not_supported(path, name, &["storage"]);
    }
    sentences(problems, path, name, errors);
}

/// What a claim had from before there was a rule against it.
#[derive(Default)]
struct Kept {
    group: bool,
    selector_values: bool,
}

impl Kept {
    fn of(old: &Value) -> Self {
        let mut found = Errors::new();
        selector(old.at("selector"), &Path::root(), &mut found);
        Self {
            group: old.has("dataSource.apiGroup") || old.has("dataSourceRef.apiGroup"),
            selector_values: !found.is_empty(),
        }
    }
}

/// Checks a claim's spec, wherever it stands.
pub fn validate_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    spec_with(spec, &Kept::default(), path, errors);
}

fn spec_with(spec: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
    if spec.list("accessModes").is_empty() {
        let detail = "at least 1 access mode is required";
        errors.required(&path.child("accessModes"), detail);
    }
    if spec.has("selector") {
        let path = path.child("selector");
        selector_terms(spec.at("selector"), !kept.selector_values, &path, errors);
    }
    if !spec.list("accessModes").is_empty() {
        access_modes(spec, "", path, errors);
    }
    let storage_path = path.child("resources").key("storage");
    match spec.at("resources.requests").get("storage") {
        None => errors.required(&storage_path, ""),
        Some(storage) if !is_positive(storage) => {
            errors.invalid(&storage_path, show(storage), "must be greater than zero");
        }
        Some(_) => {}
    }
    let subdomain = names::is_dns1123_subdomain;
    optional_name(spec, "storageClassName", subdomain, path, errors);
    optional_one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errors);
    for field in ["dataSource", "dataSourceRef"] {
        if spec.has(field) {
            data_source(spec.at(field), kept.group, &path.child(field), errors);
        }
    }
    let (source, reference) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    let detail = if source.is_null() || reference.is_null() {
        ""
    } else if !reference.text("namespace").is_empty() {
        "may not be specified when dataSourceRef.namespace is specified"
    } else if !["apiGroup", "kind", "name"]
        .iter()
        .all(|field| same(source.at(field), reference.at(field)))
    {
        "must match dataSourceRef"
    } else {
        ""
    };
    if !detail.is_empty() {
        errors.invalid(path, path.child("dataSource").to_string(), detail);
    }
    optional_name(spec, "volumeAttributesClassName", subdomain, path, errors);
}

/// What a volume is filled with; `any_group` lets a wrong one pass that was there before.
fn data_source(source: &Value, any_group: bool, path: &Path, errors: &mut Errors) {
    for part in ["name", "kind"] {
        if source.text(part).is_empty() {
            errors.required(&path.child(part), "");
        }
    }
    let (group, kind) = (source.text("apiGroup"), source.text("kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(path, kind, detail);
    }
    if !group.is_empty() && !any_group {
        let problems = names::is_dns1123_subdomain(group);
        sentences(problems, &path.child("apiGroup"), group, errors);
    }
    optional_name(source, "namespace", names::is_dns1123_label, path, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn claims_ask_for_modes_and_storage() {
        let path = Path::new("spec");
        assert_eq!(
            lines(|e| validate_spec(&json!({"accessModes": ["RWX"]}), &path, e)),
            [
                "spec.accessModes: Unsupported value: \"RWX\": supported values: \"ReadOnlyMany\", \
                 \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources[storage]: Required value",
            ]
        );
        let good = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        });
        assert!(lines(|e| validate_spec(&good, &path, e)).is_empty());
    }

    #[test]
    fn a_source_is_said_in_both_fields_or_dropped() {
        let made = |given: Value| {
            let mut claim = json!({ "spec": given });
            PersistentVolumeClaim.prepare_for_create(&mut claim);
            claim["spec"].take()
        };
        let snapshot =
            json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        let other = json!({"apiGroup": "a.example", "kind": "Tape", "name": "t"});
        let mut elsewhere = snapshot.clone();
        elsewhere["namespace"] = "b".into();
        let both = |source: &Value| json!({"dataSource": source, "dataSourceRef": source});
        for (given, expected) in [
            (json!({"dataSource": snapshot}), both(&snapshot)),
            (json!({"dataSourceRef": snapshot}), both(&snapshot)),
            (json!({"dataSourceRef": other}), both(&other)),
            (json!({"dataSource": other}), json!({})),
            (json!({"dataSourceRef": elsewhere}), json!({})),
        ] {
            assert_eq!(made(given.clone()), expected, "{given}");
        }
        // What was let in once stays.
        let old = json!({"spec": both(&other)});
        let mut new = json!({"spec": {"dataSource": other}});
        PersistentVolumeClaim.prepare_for_update(&mut new, &old);
        assert_eq!(new["spec"]["dataSource"], other);
    }

    #[test]
    fn a_bound_claim_only_grows() {
        let claim = |storage: &str, phase: &str| {
            json!({
                "spec": {"volumeName": "v", "resources": {"requests": {"storage": storage}}},
                "status": {"phase": phase, "capacity": {"storage": "2Gi"}},
            })
        };
        let check = |new: &Value, old: &Value| {
            lines(|e| PersistentVolumeClaim.validate_update(new, old, e))
        };
        assert!(check(&claim("3Gi", "Bound"), &claim("2Gi", "Bound")).is_empty());
        assert_eq!(
            check(&claim("1Gi", "Bound"), &claim("2Gi", "Bound")),
            [
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
            ]
        );
        assert_eq!(
            check(&claim("3Gi", "Pending"), &claim("2Gi", "Pending")).len(),
            1
        );
    }
}
