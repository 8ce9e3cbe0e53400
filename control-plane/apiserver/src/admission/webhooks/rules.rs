//! Which webhooks a request concerns.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use windlass_machinery::meta;
use windlass_machinery::selector::LabelSelector;
use windlass_machinery::status::ApiError;

use super::review;
use crate::admission::expression::Variables;
use crate::admission::{Attributes, Operation};
use crate::cacher::Filter;
use crate::catalog::Endpoint;

/// A webhook that is to be called.
pub(super) struct Hook {
    pub(super) name: String,
    pub(super) target: Target,
    /// PEM certificates that its server's must lead to.
    pub(super) ca: Vec<u8>,
    pub(super) timeout_seconds: u64,
    pub(super) ignore_failure: bool,
    pub(super) free_of_side_effects: bool,
    pub(super) reinvoke: bool,
    /// The version of the resource that its rules name.
    pub(super) endpoint: Arc<Endpoint>,
}

pub(super) enum Target {
    Service {
        namespace: String,
        name: String,
        port: u16,
        path: String,
    },
    Url(String),
}

const GROUP: &str = "admissionregistration.k8s.io";

/// The webhooks of `plural` that the request concerns, in the order of their configurations' names.
///
/// # Errors
/// 500 when a match condition cannot be evaluated and the webhook's policy is to fail.
pub(super) async fn matching(
    attributes: &Attributes<'_>,
    plural: &str,
    object: Option<&Value>,
) -> Result<Vec<Hook>, ApiError> {
    // Nobody can lock themselves out of changing the configurations.
    if attributes.endpoint.group() == GROUP {
        return Ok(Vec::new());
    }
    let server = &attributes.context.server;
    let Some(cacher) = server.cacher(GROUP, plural) else {
        return Ok(Vec::new());
    };
    if cacher.is_empty() {
        return Ok(Vec::new());
    }
    let everything = Filter::new(&cacher.resource, None, None, None)?;
    let mut hooks = Vec::new();
    for entry in cacher.entries(&everything) {
        let configuration = entry.decode()?;
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            hooks.extend(concerned(attributes, webhook, object)?);
        }
    }
    Ok(hooks)
}

fn concerned(
    attributes: &Attributes<'_>,
    webhook: &Value,
    object: Option<&Value>,
) -> Result<Option<Hook>, ApiError> {
    let Some(endpoint) = ruled(attributes, webhook) else {
        return Ok(None);
    };
    if !selected(attributes, webhook, object) {
        return Ok(None);
    }
    let name = webhook["name"].as_str().unwrap_or_default().to_owned();
    let ignore_failure = webhook["failurePolicy"] == "Ignore";
    match conditions_hold(attributes, webhook, &endpoint, object) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(_) if ignore_failure => return Ok(None),
        Err(why) => {
            return Err(attributes.forbidden(&format!("webhook {name:?}: match condition: {why}")));
        }
    }
    let client = &webhook["clientConfig"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let service = &client["service"];
    let target = match client["url"].as_str() {
        Some(url) => Target::Url(url.to_owned()),
        None => Target::Service {
            namespace: text(&service["namespace"]),
            name: text(&service["name"]),
            port: service["port"]
                .as_u64()
                .and_then(|p| u16::try_from(p).ok())
                .unwrap_or(443),
            path: text(&service["path"]),
        },
    };
    Ok(Some(Hook {
        name,
        target,
        ca: STANDARD
            .decode(client["caBundle"].as_str().unwrap_or_default())
            .unwrap_or_default(),
        timeout_seconds: webhook["timeoutSeconds"].as_u64().unwrap_or(10),
        ignore_failure,
        free_of_side_effects: matches!(
            webhook["sideEffects"].as_str(),
            Some("None" | "NoneOnDryRun")
        ),
        reinvoke: webhook["reinvocationPolicy"] == "IfNeeded",
        endpoint,
    }))
}

/// The version of the resource by which a rule covers the request: the request's own, or, unless the
/// webhook insists on exact matches, another one of the same resource.
fn ruled(attributes: &Attributes<'_>, webhook: &Value) -> Option<Arc<Endpoint>> {
    let asked = attributes.endpoint;
    let catalog = attributes.context.server.catalog.load();
    let versions = asked.resource.versions.iter();
    let others = versions.filter(|version| {
        version.name != asked.version().name && webhook["matchPolicy"] != "Exact"
    });
    let candidates = std::iter::once(asked.version()).chain(others);
    let rules = webhook["rules"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for version in candidates {
        if rules
            .iter()
            .any(|rule| covers(rule, attributes, &version.name))
        {
            return catalog.endpoint(asked.group(), &version.name, asked.plural());
        }
    }
    None
}

fn covers(rule: &Value, attributes: &Attributes<'_>, version: &str) -> bool {
    let has = |key: &str, wanted: &str| {
        let items = rule[key].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().any(|item| item == "*" || item == wanted)
    };
    let operation = match attributes.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
    };
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => attributes.endpoint.resource.namespaced,
        Some("Cluster") => !attributes.endpoint.resource.namespaced,
        _ => true,
    };
    let resources = rule["resources"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let named = resources.iter().filter_map(Value::as_str).any(|pattern| {
        covers_resource(
            pattern,
            attributes.endpoint.plural(),
            attributes.subresource,
        )
    });
    scope
        && named
        && has("operations", operation)
        && has("apiGroups", attributes.endpoint.group())
        && has("apiVersions", version)
}

/// `pods`, `pods/status`, `pods/*`, `*/scale`, `*` (no subresources) or `*/*`.
fn covers_resource(pattern: &str, plural: &str, subresource: &str) -> bool {
    let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    (resource == "*" || resource == plural) && (sub == subresource || sub == "*")
}

fn selected(attributes: &Attributes<'_>, webhook: &Value, object: Option<&Value>) -> bool {
    let namespace = &webhook["namespaceSelector"];
    if !is_everything(namespace)
        && (attributes.endpoint.resource.namespaced || is_namespace(attributes))
    {
        let labels = if is_namespace(attributes) {
            object.or(attributes.old).and_then(meta::labels).cloned()
        } else {
            namespace_labels(attributes)
        };
        if !selects(namespace, labels.as_ref()) {
            return false;
        }
    }
    let of_object = &webhook["objectSelector"];
    is_everything(of_object)
        || [object, attributes.old]
            .into_iter()
            .flatten()
            .any(|object| selects(of_object, meta::labels(object)))
}

fn is_everything(selector: &Value) -> bool {
    selector.as_object().is_none_or(Map::is_empty)
}

fn selects(selector: &Value, labels: Option<&Map<String, Value>>) -> bool {
    LabelSelector::from_value(selector).is_ok_and(|selector| selector.matches(labels))
}

fn is_namespace(attributes: &Attributes<'_>) -> bool {
    attributes.endpoint.group().is_empty() && attributes.endpoint.plural() == "namespaces"
}

fn namespace_of(attributes: &Attributes<'_>) -> Option<Value> {
    let namespaces = attributes.context.server.cacher("", "namespaces")?;
    namespaces.get("", attributes.namespace)?.decode().ok()
}

fn namespace_labels(attributes: &Attributes<'_>) -> Option<Map<String, Value>> {
    meta::labels(&namespace_of(attributes)?).cloned()
}

/// Evaluates `matchConditions` (KEP-3716): all must hold.
fn conditions_hold(
    attributes: &Attributes<'_>,
    webhook: &Value,
    endpoint: &Endpoint,
    object: Option<&Value>,
) -> Result<bool, String> {
    let conditions = webhook["matchConditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if conditions.is_empty() {
        return Ok(true);
    }
    let (_, question) = review::request(attributes, endpoint, object);
    let request = &question["request"];
    let mut variables = Variables::new();
    variables.set("object", &request["object"]);
    variables.set("oldObject", &request["oldObject"]);
    variables.set("request", request);
    let namespace = namespace_of(attributes).unwrap_or(json!(null));
    variables.set("namespaceObject", &namespace);
    let mut failure = None;
    for condition in conditions {
        match variables.holds(condition["expression"].as_str().unwrap_or_default()) {
            Ok(true) => {}
            // One that does not hold settles it, whatever became of the others.
            Ok(false) => return Ok(false),
            Err(why) => failure = Some(why),
        }
    }
    failure.map_or(Ok(true), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_resources_as_upstream_reads_them() {
        let table = [
            ("pods", "pods", "", true),
            ("pods", "pods", "status", false),
            ("pods/*", "pods", "status", true),
            ("pods/*", "pods", "", true),
            ("*", "pods", "status", false),
            ("*/*", "pods", "status", true),
            ("*/scale", "deployments", "scale", true),
            ("deployments", "pods", "", false),
        ];
        for (pattern, plural, subresource, expected) in table {
            assert_eq!(
                covers_resource(pattern, plural, subresource),
                expected,
                "{pattern}"
            );
        }
    }
}
