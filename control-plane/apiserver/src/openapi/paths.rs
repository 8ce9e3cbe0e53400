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

/// Name, type and meaning of a query parameter.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = (
    "pretty",
    "string",
    "Whether the answer is indented for people to read. Browsers, curl and wget get it so unasked.",
);
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "All: everything is done as ever, but the result is not kept.",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "Who makes the change, for the books about who owns which field. Apply patches need it.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore, Warn (the default) or Strict.",
);
const LIST_PARAMETERS: &[Parameter] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "Asks a watch for events that tell how far it has come.",
    ),
    (
        "continue",
        "string",
        "The token in the previous page's metadata: asks for the page behind it.",
    ),
    (
        "fieldSelector",
        "string",
        "Restricts the list of returned objects by their fields. All by default.",
    ),
    (
        "labelSelector",
        "string",
        "Restricts the list of returned objects by their labels. All by default.",
    ),
    (
        "limit",
        "integer",
        "How many objects one answer holds at most. A token in its metadata leads to the rest.",
    ),
    (
        "resourceVersion",
        "string",
        "From which state of the cluster the answer may come, or a watch begins.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How a list takes resourceVersion: Exact or NotOlderThan.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Begins a watch with an event for each object that is there, and a bookmark behind them.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "After how many seconds a list or watch ends, whatever happens.",
    ),
    (
        "watch",
        "boolean",
        "Watch for changes to the described resources in place of a list.",
    ),
];
const WRITE_PARAMETERS: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH_PARAMETERS: &[Parameter] = &[
    DRY_RUN,
    FIELD_MANAGER,
    FIELD_VALIDATION,
    (
        "force",
        "boolean",
        "Lets an apply patch take fields over from those who own them.",
    ),
];
const DELETE_PARAMETERS: &[Parameter] = &[
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "How many seconds the object has to end; 0 is at once, nothing what its kind has.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Deletes an object that can no longer be read, without regard to what depends on it.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Superseded by propagationPolicy: whether dependents stay.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
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
    if target.resource.verbs.names().contains(&"deletecollection") {
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

fn query_parameter((name, kind, about): &Parameter) -> Value {
    json!({"name": name, "in": "query", "description": about,
           "schema": {"type": kind, "uniqueItems": true}})
}

/// What an operation does, in a line.
fn about(kind: &str, action: &str, suffix: &str) -> String {
    let part = match suffix {
        "" | "ForAllNamespaces" => String::new(),
        subresource => format!("{} of ", subresource.to_ascii_lowercase()),
    };
    let the = if part.is_empty() {
        format!("the specified {kind}")
    } else {
        format!("{part}the specified {kind}")
    };
    match action {
        "list" => format!("list or watch objects of kind {kind}"),
        "deletecollection" => format!("delete collection of {kind}"),
        "post" => format!("create {part}a {kind}"),
        "delete" => format!("delete a {kind}"),
        "get" => format!("read {the}"),
        "put" => format!("replace {the}"),
        "patch" => format!("partially update {the}"),
        _ => {
            let split = suffix.find("t").map_or(0, |at| at + 1);
            let (method, subresource) = suffix.split_at(split);
            let (method, subresource) = (method.to_uppercase(), subresource.to_lowercase());
            format!("connect {method} requests to {subresource} of {kind}")
        }
    }
}

/// One operation; without a `response` schema it answers plain text.
fn operation(
    target: &Target<'_>,
    action: &str,
    suffix: &str,
    parameters: &[Parameter],
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
    let parameters: Vec<Value> = parameters.iter().map(query_parameter).collect();
    let content = if response.is_empty() {
        json!({"text/plain": {"schema": {"type": "string"}}})
    } else {
        json!({"application/json": {"schema": {"$ref": format!("{REFERENCE}{response}")}}})
    };
    let mut operation = json!({
        "description": about(&resource.kind, action, suffix),
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
    let parameter = |name: &str, about: &str| {
        json!({"name": name, "in": "path", "required": true, "description": about,
               "schema": {"type": "string", "uniqueItems": true}})
    };
    let mut parameters = Vec::new();
    if named {
        let about = format!("name of the {}", target.resource.kind);
        parameters.push(parameter("name", &about));
    }
    if target.resource.namespaced {
        parameters.push(parameter(
            "namespace",
            "where the object is, or the objects are",
        ));
    }
    parameters.push(query_parameter(&PRETTY));
    item.insert("parameters".to_owned(), Value::Array(parameters));
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
