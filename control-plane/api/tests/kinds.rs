//! Every kind from the outside: a usual object of each goes through decoding, defaults, validation and printing, as
//! the API server would take it.

use std::collections::HashSet;

use serde_json::Value;
use windlass_api::registry::builtin;
use windlass_api::resource::Convert as _;
use windlass_api::resource::{Column, Resource, Verbs, Version};
use windlass_machinery::validation::Errors;
use windlass_machinery::{fields, patch, yaml};

/// A manifest with the resource and version that it names.
struct Case {
    resource: Resource,
    version: Version,
    object: Value,
}

impl Case {
    fn name(&self) -> String {
        format!("{} {}", self.object["apiVersion"], self.object["kind"])
    }

    /// As stored: decoded, converted, defaulted, prepared.
    fn stored(&self) -> Value {
        let mut object = self.object.clone();
        let report = fields::check(&self.version.schema, self.version.type_id, &mut object);
        assert_eq!(
            report,
            fields::Report::default(),
            "{}: the manifest itself",
            self.name()
        );
        if let Some(convert) = &self.version.convert {
            convert
                .store(std::slice::from_mut(&mut object))
                .expect("built-in versions convert");
        }
        self.resource.strategy.default(&mut object);
        self.resource.strategy.prepare_for_create(&mut object);
        object
    }
}

fn cases() -> Vec<Case> {
    read(include_str!("manifests.yaml"))
}

fn read(documents: &str) -> Vec<Case> {
    let resources = builtin();
    documents
        .split("\n---\n")
        .map(|document| {
            let object = yaml::decode(document.as_bytes()).expect("valid YAML").value;
            let api_version = object["apiVersion"]
                .as_str()
                .expect("an apiVersion")
                .to_owned();
            let (group, name) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
            let resource = resources
                .iter()
                .find(|r| r.group == group && object["kind"] == r.kind.as_ref())
                .unwrap_or_else(|| panic!("no resource for {api_version} {}", object["kind"]));
            let version = resource
                .versions
                .iter()
                .find(|v| v.name == name)
                .expect("a served version");
            Case {
                resource: resource.clone(),
                version: version.clone(),
                object,
            }
        })
        .collect()
}

fn errors_of(check: impl FnOnce(&mut Errors)) -> Vec<String> {
    let mut errors = Errors::new();
    check(&mut errors);
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn every_stored_kind_has_a_manifest() {
    let covered: HashSet<_> = cases()
        .into_iter()
        .map(|c| (c.resource.group.clone(), c.resource.kind.clone()))
        .collect();
    for resource in builtin().into_iter().filter(|r| r.verbs == Verbs::All) {
        assert!(
            covered.contains(&(resource.group.clone(), resource.kind.clone())),
            "no manifest of {} {}",
            resource.group,
            resource.kind
        );
    }
}

#[test]
fn usual_objects_are_valid_and_may_be_written_again() {
    for case in cases() {
        let strategy = &case.resource.strategy;
        let object = case.stored();
        let found = errors_of(|errors| {
            strategy.validate(&object, None, errors);
            strategy.validate_create(&object, errors);
        });
        assert!(found.is_empty(), "{}: {found:#?}", case.name());

        let mut again = object.clone();
        strategy.default(&mut again);
        strategy.prepare_for_update(&mut again, &object);
        assert_eq!(again, object, "{}: writing it back changes it", case.name());
        let found = errors_of(|errors| strategy.validate_change(&again, &object, errors));
        assert!(found.is_empty(), "{}: {found:#?}", case.name());
        let found = errors_of(|errors| strategy.validate_status_update(&again, &object, errors));
        assert!(found.is_empty(), "{}: {found:#?}", case.name());
    }
}

/// Each document of the file begins with its faults; long sentences are given by their beginning.
#[test]
fn wrong_objects_are_refused_in_kubernetes_words() {
    let documents = include_str!("refused.yaml");
    let mut wrong = Vec::new();
    for (case, document) in read(documents).iter().zip(documents.split("\n---\n")) {
        let expected: Vec<_> = document
            .lines()
            .filter_map(|line| line.strip_prefix("#! "))
            .collect();
        assert!(
            !expected.is_empty(),
            "{}: no fault is expected",
            case.name()
        );
        let object = case.stored();
        let found = errors_of(|errors| {
            case.resource.strategy.validate(&object, None, errors);
            case.resource.strategy.validate_create(&object, errors);
        });
        if !are_as_expected(&found, &expected) {
            wrong.push(format!(
                "{}: expected {expected:#?}, found {found:#?}",
                case.name()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each fault begins as it was written down, and there is no other.
fn are_as_expected(found: &[String], expected: &[&str]) -> bool {
    found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(found, expected)| found.starts_with(expected))
}

/// The same for changes.
#[test]
fn what_may_not_change_is_refused_in_kubernetes_words() {
    let documents = include_str!("changes.yaml");
    let mut wrong = Vec::new();
    for (case, document) in read(documents).iter().zip(documents.split("\n---\n")) {
        let lines = |mark: &'static str| document.lines().filter_map(move |l| l.strip_prefix(mark));
        let change: Value = serde_json::from_str(&lines("#~ ").collect::<String>()).expect("JSON");
        let expected: Vec<_> = lines("#! ").collect();
        assert!(!expected.is_empty(), "{}: no fault", case.name());
        let (strategy, old) = (&case.resource.strategy, case.stored());
        let mut new = old.clone();
        patch::merge(&mut new, &change);
        strategy.default(&mut new);
        strategy.prepare_for_update(&mut new, &old);
        let found = errors_of(|errors| strategy.validate_change(&new, &old, errors));
        if !are_as_expected(&found, &expected) {
            let name = case.name();
            wrong.push(format!("{name}: expected {expected:#?}, found {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A typing error in a default would put a field into objects that their type does not have.
#[test]
fn defaults_only_fill_fields_that_the_type_has() {
    for case in cases() {
        let object = case.stored();
        let storage = &case.resource.versions[case.resource.storage];
        let mut served = object.clone();
        if let Some(convert) = &storage.convert {
            convert.serve(std::slice::from_mut(&mut served)).unwrap();
        }
        let report = fields::check(&storage.schema, storage.type_id, &mut served);
        assert_eq!(report, fields::Report::default(), "{}", case.name());
    }
}

#[test]
fn versions_convert_both_ways_without_loss() {
    for case in cases() {
        let object = case.stored();
        for version in &case.resource.versions {
            let Some(convert) = &version.convert else {
                continue;
            };
            let mut served = object.clone();
            convert.serve(std::slice::from_mut(&mut served)).unwrap();
            let mut back = served.clone();
            let report = fields::check(&version.schema, version.type_id, &mut served);
            assert_eq!(
                report,
                fields::Report::default(),
                "{} as {}",
                case.name(),
                version.name
            );
            convert.store(std::slice::from_mut(&mut back)).unwrap();
            assert_eq!(back, object, "{} through {}", case.name(), version.name);
        }
    }
}

/// Each document of the file begins with its columns and their cells.
#[test]
fn rows_show_what_upstream_shows() {
    let documents = include_str!("tables.yaml");
    let now = windlass_machinery::time::parse_seconds("2026-01-01T01:00:00Z").expect("a time");
    let (mut shown, mut wrong) = (HashSet::new(), Vec::new());
    for (case, document) in read(documents).into_iter().zip(documents.split("\n---\n")) {
        let expected: Vec<(&str, Value)> = document
            .lines()
            .filter_map(|line| line.strip_prefix("#= ")?.split_once(": "))
            .map(|(column, cell)| {
                (
                    column,
                    serde_json::from_str(cell).unwrap_or_else(|_| cell.into()),
                )
            })
            .collect();
        let resource = &case.resource;
        let mut object = case.object.clone();
        if let Some(convert) = &case.version.convert {
            convert.store(std::slice::from_mut(&mut object)).unwrap();
        }
        resource.strategy.default(&mut object);
        let cells = resource.strategy.row(&object, now);
        let found: Vec<(String, Value)> = resource.columns.iter().map(mark).zip(cells).collect();
        let same = found.len() == expected.len()
            && found
                .iter()
                .zip(&expected)
                .all(|((column, cell), (name, value))| column == name && cell == value);
        if !same {
            wrong.push(format!(
                "{}: expected {expected:#?}, found {found:#?}",
                case.name()
            ));
        }
        shown.insert((resource.group.clone(), resource.kind.clone()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for resource in builtin().iter().filter(|r| r.verbs != Verbs::Create) {
        let kind = (resource.group.clone(), resource.kind.clone());
        assert!(shown.contains(&kind), "no table of {kind:?}");
    }
}

/// A column as descriptors write it.
fn mark(column: &Column) -> String {
    let wide = if column.priority > 0 { "+" } else { "" };
    let sort = match (column.kind.as_ref(), column.format.as_ref()) {
        ("string", "") => "",
        ("string", "name") => "=",
        ("integer", "") => "#",
        ("boolean", "") => "?",
        ("date", "") => "@",
        other => panic!("a column of {other:?}"),
    };
    format!("{wide}{sort}{}", column.name)
}

#[test]
fn rows_fill_the_columns_and_selectable_fields_are_readable() {
    for case in cases() {
        let object = case.stored();
        let row = case.resource.strategy.row(&object, 1_800_000_000);
        assert_eq!(row.len(), case.resource.columns.len(), "{}", case.name());
        assert!(
            row.iter().all(|cell| !cell.is_object() && !cell.is_array()),
            "{}: {row:?}",
            case.name()
        );
        for name in case.resource.strategy.selectable() {
            let _ = case.resource.strategy.field(&object, name);
        }
    }
}

/// Whatever a client sends must be refused or taken, never end the process.
#[test]
fn no_rule_panics_on_objects_of_the_wrong_shape() {
    let shapes = [
        serde_json::json!({}),
        serde_json::json!({"metadata": null, "spec": null, "status": null}),
        serde_json::json!({"spec": [], "metadata": {"name": 1}, "data": "x", "rules": {}}),
        serde_json::json!({"spec": {"template": [], "containers": {}, "ports": [1, null]}, "status": 1}),
    ];
    for resource in builtin() {
        for shape in &shapes {
            let mut object = shape.clone();
            let strategy = &resource.strategy;
            strategy.default(&mut object);
            strategy.prepare_for_create(&mut object);
            let old = object.clone();
            strategy.prepare_for_update(&mut object, &old);
            strategy.prepare_for_status_update(&mut object, &old);
            let _ = errors_of(|errors| {
                strategy.validate(&object, None, errors);
                strategy.validate_create(&object, errors);
                strategy.validate_change(&object, &old, errors);
                strategy.validate_status_update(&object, &old, errors);
                strategy.validate_subresource("resize", &object, &old, errors);
                strategy.validate_subresource("ephemeralcontainers", &object, &old, errors);
            });
            let _ = strategy.warnings(&object, Some(&old));
            let _ = strategy.row(&object, 0);
            let _ = strategy.deletion(&object, None);
        }
    }
}
