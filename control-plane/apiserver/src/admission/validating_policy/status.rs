//! `status.typeChecking` of policies: what their expressions would do wrong with the objects that they are about, told to their
//! author before anybody's request meets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use windlass_machinery::status::ApiError;

use super::POLICIES;
use crate::admission::matching::GROUP;
use crate::cacher::{Filter, From};
use crate::catalog::Catalog;
use crate::cel::types::Type;
use crate::cel::{self};
use crate::follower;
use crate::server::ApiServer;

/// More types than this are not checked.
const MAX_TYPES: usize = 10;

/// Checks what there is and what is written until the server shuts down.
pub(crate) fn start(server: &Arc<ApiServer>) {
    let complain = |error: &ApiError| tracing::debug!(%error, "policies' types not checked");
    follower::start(server, |server| Box::pin(follow(server)), complain);
}

async fn follow(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let Some(cacher) = server.cacher(GROUP, POLICIES) else {
        return Ok(());
    };
    let everything = Filter::new(&cacher.resource, None, None, None)?;
    let now = From::Now {
        with_initial: false,
    };
    let watch = server.caches.watch(&cacher, everything.clone(), now)?;
    loop {
        for entry in cacher.entries(&everything) {
            let mut policy = entry.decode()?;
            let generation = policy["metadata"]["generation"].as_i64().unwrap_or(0);
            let observed = policy["status"]["observedGeneration"].as_i64().unwrap_or(0);
            if observed >= generation {
                continue;
            }
            let warnings = warnings(&server.catalog.load(), &policy["spec"]);
            policy["status"]["observedGeneration"] = generation.into();
            policy["status"]["typeChecking"] = match warnings.is_empty() {
                true => json!({}),
                false => json!({"expressionWarnings": warnings}),
            };
            let path = format!("/apis/{GROUP}/v1/{POLICIES}/{}/status", entry.name());
            server.replace_seen(&path, &policy).await?;
        }
        watch.next().await?;
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn warnings(catalog: &Catalog, spec: &Value) -> Vec<Value> {
    let types = types(catalog, &spec["matchConstraints"]);
    let mut warnings = Vec::new();
    for (i, validation) in list(&spec["validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let Some(text) = validation[field].as_str().filter(|text| !text.is_empty()) else {
                continue;
            };
            let found = types.iter().filter_map(|(kind, ty)| {
                let faults = cel::check(text, &variables(catalog, spec, ty)).1;
                (!faults.is_empty()).then(|| format!("{kind}: {}\n", faults.join("\n")))
            });
            let found: Vec<_> = found.collect();
            if !found.is_empty() {
                warnings.push(json!({
                    "fieldRef": format!("spec.validations[{i}].{field}"),
                    "warning": found.join("\n"),
                }));
            }
        }
    }
    warnings
}

/// The types that the rules name, as messages call them; patterns name none.
fn types(catalog: &Catalog, constraints: &Value) -> Vec<(String, Type)> {
    let mut found = BTreeSet::new();
    for rule in list(&constraints["resourceRules"]) {
        let names = |key: &str| list(&rule[key]).iter().filter_map(Value::as_str);
        let any = |key: &str| names(key).any(|name| name.contains('*'));
        if any("apiGroups") || any("apiVersions") {
            continue;
        }
        for group in names("apiGroups") {
            for version in names("apiVersions") {
                for resource in names("resources").filter(|name| !name.contains(['*', '/'])) {
                    found.insert((group, version, resource));
                }
            }
        }
    }
    let types = found.into_iter().filter_map(|(group, version, resource)| {
        let endpoint = catalog.endpoint(group, version, resource)?;
        let of = endpoint.version();
        let kind = format!("{}, Kind={}", endpoint.api_version(), endpoint.kind());
        Some((kind, Type::object(&of.schema, of.type_id)))
    });
    types.take(MAX_TYPES).collect()
}

/// What the policy's expressions may name, about an object of a type.
fn variables(catalog: &Catalog, spec: &Value, object: &Type) -> BTreeMap<String, Type> {
    let mut known = BTreeMap::from([
        ("object".to_owned(), object.clone()),
        ("oldObject".to_owned(), object.clone()),
        ("params".to_owned(), params(catalog, &spec["paramKind"])),
        ("request".to_owned(), request()),
        ("namespaceObject".to_owned(), Type::Dyn),
        ("authorizer".to_owned(), Type::Dyn),
    ]);
    let mut composed = BTreeMap::new();
    for variable in list(&spec["variables"]) {
        let text = |key: &str| variable[key].as_str().unwrap_or_default();
        known.insert(
            "variables".to_owned(),
            Type::Record(Arc::new(composed.clone())),
        );
        let (ty, _) = cel::check(text("expression"), &known);
        composed.insert(text("name").to_owned(), ty);
    }
    known.insert("variables".to_owned(), Type::Record(Arc::new(composed)));
    known
}

fn params(catalog: &Catalog, kind: &Value) -> Type {
    let text = |key: &str| kind[key].as_str().unwrap_or_default();
    let api_version = text("apiVersion");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let mut resources = catalog.resources().iter();
    let resource = resources.find(|r| r.group == group && r.kind == text("kind"));
    let endpoint = resource.and_then(|r| catalog.endpoint(group, version, &r.plural));
    endpoint.map_or(Type::Dyn, |endpoint| {
        let of = endpoint.version();
        Type::object(&of.schema, of.type_id)
    })
}

/// An AdmissionRequest without its objects.
fn request() -> Type {
    let kind = || {
        Type::record([
            ("group", Type::String),
            ("version", Type::String),
            ("kind", Type::String),
        ])
    };
    let resource = || {
        Type::record([
            ("group", Type::String),
            ("version", Type::String),
            ("resource", Type::String),
        ])
    };
    let user = Type::record([
        ("username", Type::String),
        ("uid", Type::String),
        ("groups", Type::List(Box::new(Type::String))),
        (
            "extra",
            Type::Map(Box::new(Type::List(Box::new(Type::String)))),
        ),
    ]);
    Type::record([
        ("uid", Type::String),
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", Type::String),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", Type::String),
        ("name", Type::String),
        ("namespace", Type::String),
        ("operation", Type::String),
        ("userInfo", user),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ])
}
