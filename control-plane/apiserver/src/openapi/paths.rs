//! The operations of a resource, as OpenAPI v3 paths.

use serde_json::{Map, Value, json};
use windlass_api::resource::{Resource, Subresource, Verbs};

use super::definitions::REFERENCE;

/// The resource version whose operations are written.
pub(super) struct Target<'a> {
    pub resource: &'a Resource,
    pub version: &'a str,
    /// `/api/v1` or `/apis/<group>/<version>`.
    pub root: String,
    pub definition: &'a str,
    pub list_definition: &'a str,
}

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

const LIST_PARAMETERS: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
];
const PATCH_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
    ("force", "boolean"),
];
const DELETE_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
    ),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// Adds the paths of a resource and its subresources.
pub(super) fn add(target: &Target<'_>, paths: &mut Map<String, Value>) {
    let Target { resource, root, .. } = target;
    let plural = &resource.plural;
    let collection = if resource.namespaced {
        if resource.verbs != Verbs::Create {
            paths.insert(format!("{root}/{plural}"), across_namespaces(target));
        }
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };
    paths.insert(collection.clone(), collection_item(target));
    if resource.verbs == Verbs::Create {
        return;
    }
    paths.insert(format!("{collection}/{{name}}"), object_item(target));
    for subresource in resource.subresources_in(target.version) {
        let path = format!("{collection}/{{name}}/{}", subresource.name());
        paths.insert(path, subresource_item(target, subresource));
    }
}

fn across_namespaces(target: &Target<'_>) -> Value {
    json!({
        "get": operation(target, "list", "ForAllNamespaces", LIST_PARAMETERS, None, target.list_definition),
    })
}

fn collection_item(target: &Target<'_>) -> Value {
    let own = target.definition;
    let mut item = Map::new();
    if target.resource.verbs != Verbs::Create {
        item.insert(
            "get".to_owned(),
            operation(
                target,
                "list",
                "",
                LIST_PARAMETERS,
                None,
                target.list_definition,
            ),
        );
    }
    if target.resource.verbs != Verbs::Read {
        item.insert(
            "post".to_owned(),
            operation(target, "post", "", WRITE_PARAMETERS, Some(own), own),
        );
    }
    if matches!(target.resource.verbs, Verbs::All | Verbs::Ending) {
        let parameters = [LIST_PARAMETERS, DELETE_PARAMETERS].concat();
        item.insert(
            "delete".to_owned(),
            operation(
                target,
                "deletecollection",
                "",
                &parameters,
                Some(DELETE_OPTIONS),
                STATUS,
            ),
        );
    }
    with_path_parameters(target, item, false)
}

fn object_item(target: &Target<'_>) -> Value {
    let own = target.definition;
    let mut item = Map::new();
    item.insert(
        "get".to_owned(),
        operation(target, "get", "", &[], None, own),
    );
    if target.resource.verbs.stores() {
        item.insert(
            "put".to_owned(),
            operation(target, "put", "", WRITE_PARAMETERS, Some(own), own),
        );
        item.insert(
            "patch".to_owned(),
            operation(target, "patch", "", PATCH_PARAMETERS, Some(PATCH), own),
        );
        item.insert(
            "delete".to_owned(),
            operation(
                target,
                "delete",
                "",
                DELETE_PARAMETERS,
                Some(DELETE_OPTIONS),
                STATUS,
            ),
        );
    }
    with_path_parameters(target, item, true)
}

fn subresource_item(target: &Target<'_>, subresource: &Subresource) -> Value {
    const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
    let suffix = capitalized(subresource.name());
    let mut item = Map::new();
    let mut read_write = |schema: &str| {
        item.insert(
            "get".to_owned(),
            operation(target, "get", &suffix, &[], None, schema),
        );
        item.insert(
            "put".to_owned(),
            operation(
                target,
                "put",
                &suffix,
                WRITE_PARAMETERS,
                Some(schema),
                schema,
            ),
        );
        item.insert(
            "patch".to_owned(),
            operation(
                target,
                "patch",
                &suffix,
                PATCH_PARAMETERS,
                Some(PATCH),
                schema,
            ),
        );
    };
    match subresource {
        Subresource::Status
        | Subresource::Approval
        | Subresource::EphemeralContainers
        | Subresource::Resize => read_write(target.definition),
        Subresource::Scale(_) => read_write(SCALE),
        Subresource::Finalize => {
            let own = target.definition;
            let put = operation(target, "put", &suffix, WRITE_PARAMETERS, Some(own), own);
            item.insert("put".to_owned(), put);
        }
        Subresource::Binding | Subresource::Eviction | Subresource::Token => {
            let schema = match subresource {
                Subresource::Binding => "io.k8s.api.core.v1.Binding",
                Subresource::Eviction => "io.k8s.api.policy.v1.Eviction",
                _ => "io.k8s.api.authentication.v1.TokenRequest",
            };
            let post = operation(
                target,
                "post",
                &suffix,
                WRITE_PARAMETERS,
                Some(schema),
                schema,
            );
            item.insert("post".to_owned(), post);
        }
        Subresource::Log => {
            item.insert(
                "get".to_owned(),
                operation(target, "get", &suffix, &[], None, ""),
            );
        }
        Subresource::Exec | Subresource::Attach | Subresource::PortForward | Subresource::Proxy => {
            for (method, action) in [("get", "connect"), ("post", "connect")] {
                let suffix = format!("{}{suffix}", capitalized(method));
                item.insert(
                    method.to_owned(),
                    operation(target, action, &suffix, &[], None, ""),
                );
            }
        }
    }
    with_path_parameters(target, item, true)
}

/// One operation; without a `response` schema it answers plain text.
fn operation(
    target: &Target<'_>,
    action: &str,
    suffix: &str,
    parameters: &[(&str, &str)],
    body: Option<&str>,
    response: &str,
) -> Value {
    let Target {
        resource, version, ..
    } = target;
    let scope = if resource.namespaced && suffix != "ForAllNamespaces" {
        "Namespaced"
    } else {
        ""
    };
    let group = group_name(&resource.group);
    let id = format!(
        "{action}{group}{}{scope}{}{suffix}",
        capitalized(version),
        resource.kind
    );
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|(name, kind)| {
            json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
        })
        .collect();
    let content = if response.is_empty() {
        json!({"text/plain": {"schema": {"type": "string"}}})
    } else {
        json!({"application/json": {"schema": {"$ref": format!("{REFERENCE}{response}")}}})
    };
    let mut operation = json!({
        "operationId": id,
        "tags": [format!("{}_{version}", group.to_ascii_lowercase())],
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": content}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {
            "group": resource.group, "version": version, "kind": resource.kind,
        },
    });
    if let Some(schema) = body {
        operation["requestBody"] = json!({"content": request_content(resource, schema)});
    }
    operation
}

fn request_content(resource: &Resource, schema: &str) -> Value {
    if schema != PATCH {
        return json!({"application/json": {"schema": {"$ref": format!("{REFERENCE}{schema}")}}});
    }
    let types = [
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    // Clients that find a strategic merge offered use it, and need to know the type for it.
    let is_custom = resource.versions.iter().any(|v| v.openapi.is_some());
    let offered = if is_custom { 3 } else { types.len() };
    // A patch is any JSON; upstream describes it as an object without properties.
    let any = json!({"schema": {"type": "object"}});
    types[..offered]
        .iter()
        .map(|kind| ((*kind).to_owned(), any.clone()))
        .collect::<Map<_, _>>()
        .into()
}

fn with_path_parameters(target: &Target<'_>, mut item: Map<String, Value>, named: bool) -> Value {
    let parameter = |name: &str| {
        json!({"name": name, "in": "path", "required": true,
               "schema": {"type": "string", "uniqueItems": true}})
    };
    let mut parameters = Vec::new();
    if named {
        parameters.push(parameter("name"));
    }
    if target.resource.namespaced {
        parameters.push(parameter("namespace"));
    }
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), Value::Array(parameters));
    }
    Value::Object(item)
}

/// `Core`, `Apps`, `RbacAuthorization`: as generated clients name their classes.
fn group_name(group: &str) -> String {
    if group.is_empty() {
        return "Core".to_owned();
    }
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    short.split(['.', '-']).map(capitalized).collect()
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_ascii_uppercase().to_string() + chars.as_str()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_strategic_merge_is_offered_for_built_in_kinds_only() {
        let offered = |resource: &Resource| {
            let content = request_content(resource, PATCH);
            content["application/strategic-merge-patch+json"].is_object()
        };
        let builtin = windlass_api::registry::builtin();
        let mut resource = builtin.into_iter().find(|r| r.plural == "pods").unwrap();
        assert!(offered(&resource));
        resource.versions[0].openapi = Some(Arc::new(Value::Null));
        assert!(!offered(&resource));
    }
}
