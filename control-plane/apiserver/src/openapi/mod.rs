//! OpenAPI v3: an index of the group versions, and a document each with its schemas and operations.
//!
//! kubectl reads it for `explain`, for patches of types that it does not know, and to learn that the server
//! validates fields itself (the `fieldValidation` and `dryRun` parameters of PATCH). A document is made when
//! it is first asked for and kept in its encoded form; its hash follows from what it is made of, so the
//! index costs nothing.

mod definitions;
mod metrics;
mod paths;
mod v2;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use windlass_api::resource::{Resource, Version};

use self::definitions::Form;
use crate::aggregator::Definitions;
use crate::catalog::Catalog;

/// The documents that were asked for, each with the hash of what it was made of.
#[derive(Default)]
pub(crate) struct OpenApi {
    documents: Mutex<HashMap<String, (String, Bytes)>>,
}

impl OpenApi {
    /// By which clients know that they have what `/openapi/v2` would answer.
    pub(crate) fn v2_hash(catalog: &Catalog, others: &[Definitions], form: V2Form) -> String {
        let mut hasher = Sha256::new();
        hasher.update([u8::from(form == V2Form::Json)]);
        for (group, versions) in catalog.groups() {
            for version in versions {
                hasher.update(hash(&members(catalog, &group, &version)));
            }
        }
        for other in others {
            hasher.update(&other.hash);
        }
        hexadecimal(&hasher.finalize())
    }

    /// What `/openapi/v2` answers, the types of `others` behind its own. Not kept: few clients ask, and it is several
    /// megabytes.
    pub(crate) fn v2(catalog: &Catalog, others: &[Definitions], form: V2Form) -> Vec<u8> {
        let mut all = v2::Definitions::default();
        for (group, versions) in catalog.groups() {
            for version in versions {
                all.add(describe(
                    &group,
                    &version,
                    &members(catalog, &group, &version),
                    Form::V2,
                ));
                // Who asks for protobuf looks up types alone.
                if form == V2Form::Json {
                    all.add_paths(operations(
                        &group,
                        &version,
                        &members(catalog, &group, &version),
                    ));
                }
            }
        }
        for other in others {
            all.add_foreign(&other.types);
        }
        match form {
            V2Form::Json => all.json(crate::discovery::GIT_VERSION),
            V2Form::Protobuf => all.protobuf(crate::discovery::GIT_VERSION),
        }
    }

    /// What `/openapi/v3` answers.
    pub(crate) fn index(&self, catalog: &Catalog) -> Value {
        let mut paths = Map::new();
        for (group, versions) in catalog.groups() {
            for version in versions {
                let path = root(&group, &version);
                let hash = hash(&members(catalog, &group, &version));
                let url = format!("/openapi/v3/{path}?hash={hash}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
        }
        json!({"paths": paths})
    }

    /// What `/openapi/v3/<path>` answers: the encoded document and its hash. `path` is `api/v1` or
    /// `apis/<group>/<version>`; `None` where that is not served.
    pub(crate) fn document(&self, catalog: &Catalog, path: &str) -> Option<(Bytes, String)> {
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => ("", *version),
            ["apis", group, version] => (*group, *version),
            _ => return None,
        };
        let members = members(catalog, group, version);
        if members.is_empty() {
            return None;
        }
        let hash = hash(&members);
        if let Some((known, document)) = self.documents.lock().get(path)
            && *known == hash
        {
            return Some((document.clone(), hash));
        }
        let document = Bytes::from(build(group, version, &members).to_string());
        self.documents
            .lock()
            .insert(path.to_owned(), (hash.clone(), document.clone()));
        Some((document, hash))
    }
}

/// The form of the OpenAPI v2 document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum V2Form {
    Json,
    /// gnostic's `openapi.v2.Document`.
    Protobuf,
}

/// `api/v1` or `apis/<group>/<version>`.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// The resources of a group version.
fn members(catalog: &Catalog, group: &str, version: &str) -> Vec<(Arc<Resource>, usize)> {
    let of_group = catalog
        .resources()
        .iter()
        .filter(|resource| resource.group == group);
    of_group
        .filter_map(|resource| {
            let at = resource
                .versions
                .iter()
                .position(|v| v.served && v.name == version)?;
            Some((resource.clone(), at))
        })
        .collect()
}

/// Of everything that the document is made of; custom resources make a new `Schema` with every change.
fn hash(members: &[(Arc<Resource>, usize)]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    for (resource, version) in members {
        let version = &resource.versions[*version];
        hasher.update(resource.plural.as_bytes());
        hasher.update(version.name.as_bytes());
        if definition_name(version).is_none_or(|name| !is_built_in(name)) {
            hasher.update((Arc::as_ptr(&version.schema) as usize).to_ne_bytes());
        }
        for subresource in resource.subresources_in(&version.name) {
            hasher.update(subresource.name());
        }
    }
    hexadecimal(&hasher.finalize())
}

/// By which one document is told from another.
pub(crate) fn hash_of(document: &[u8]) -> String {
    hexadecimal(&Sha256::digest(document))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}

fn definition_name(version: &Version) -> Option<&str> {
    Some(&*version.schema.get(version.type_id).name)
}

fn is_built_in(definition: &str) -> bool {
    definition.starts_with("io.k8s.")
}

/// The schemas of a group version; those of its kinds name them.
fn describe(
    group: &str,
    version: &str,
    members: &[(Arc<Resource>, usize)],
    form: Form,
) -> Map<String, Value> {
    let mut schemas = definitions::definitions(group, version);
    schemas.extend(definitions::list_meta());
    for (resource, at) in members {
        let served = &resource.versions[*at];
        let Some(name) = definition_name(served).map(str::to_owned) else {
            continue;
        };
        if let Some(schema) = &served.openapi {
            schemas.extend(definitions::metadata());
            schemas.insert(name.clone(), definitions::custom(schema, form));
        }
        let gvk = json!({"group": group, "version": version, "kind": resource.kind});
        if let Some(definition) = schemas.get_mut(&name).and_then(Value::as_object_mut) {
            definition.insert("x-kubernetes-group-version-kind".to_owned(), json!([gvk]));
        }
        schemas.insert(
            format!("{name}List"),
            definitions::list_definition(
                (&resource.list_kind, &in_words(resource)),
                &name,
                group,
                version,
            ),
        );
    }
    schemas
}

/// What a resource's objects are called: the plural, with the kind's gaps between its words.
fn in_words(resource: &Resource) -> String {
    let mut words = String::new();
    let mut before = 'A';
    for (at, (letter, plural)) in resource
        .kind
        .chars()
        .zip(resource.plural.chars())
        .enumerate()
    {
        if at > 0 && letter.is_ascii_uppercase() && before.is_ascii_lowercase() {
            words.push(' ');
        }
        words.push(plural);
        before = letter;
    }
    words.extend(resource.plural.chars().skip(resource.kind.len()));
    words
}

fn build(group: &str, version: &str, members: &[(Arc<Resource>, usize)]) -> Value {
    let schemas = describe(group, version, members, Form::V3);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": crate::discovery::GIT_VERSION},
        "paths": operations(group, version, members),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "in": "header", "name": "authorization",
                "description": "Bearer Token authentication",
            }},
        },
    })
}

/// The paths of a group version.
fn operations(
    group: &str,
    version: &str,
    members: &[(Arc<Resource>, usize)],
) -> Map<String, Value> {
    let mut operations = Map::new();
    for (resource, at) in members {
        let Some(name) = definition_name(&resource.versions[*at]) else {
            continue;
        };
        let target = paths::Target {
            resource,
            version,
            root: format!("/{}", root(group, version)),
            definition: name,
            list_definition: &format!("{name}List"),
        };
        paths::add(&target, &mut operations);
    }
    operations
}
