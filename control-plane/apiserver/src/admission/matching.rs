//! Which requests a webhook or policy is about: rules, selectors and CEL conditions.

use std::sync::Arc;

use serde_json::{Map, Value};
use windlass_machinery::meta;
use windlass_machinery::selector::LabelSelector;
use windlass_machinery::status::ApiError;

use super::authorizer::Target;
use super::expression::Variables;
use super::{Attributes, question};
use crate::cacher::Filter;
use crate::catalog::Endpoint;

/// Where webhooks and policies are configured.
pub(super) const GROUP: &str = "admissionregistration.k8s.io";

/// The configurations of one kind, in the order of their names; none for a request about configurations, so
/// that nobody can lock themselves out of changing them.
pub(super) fn configured(
    attributes: &Attributes<'_>,
    plural: &str,
) -> Result<Vec<Value>, ApiError> {
    if attributes.endpoint.group() == GROUP {
        return Ok(Vec::new());
    }
    let Some(cacher) = attributes.context.server.cacher(GROUP, plural) else {
        return Ok(Vec::new());
    };
    if cacher.is_empty() {
        return Ok(Vec::new());
    }
    let everything = Filter::new(&cacher.resource, None, None, None)?;
    let entries = cacher.entries(&everything);
    entries.iter().map(|entry| entry.decode()).collect()
}

/// The version of the resource by which one of the rules under `key` covers the request: the request's own,
/// or, unless `matcher` insists on exact matches, another one of the same resource.
pub(super) fn ruled(
    attributes: &Attributes<'_>,
    matcher: &Value,
    key: &str,
) -> Option<Arc<Endpoint>> {
    let asked = attributes.endpoint;
    let catalog = attributes.context.server.catalog.load();
    let versions = asked.resource.versions.iter();
    let others = versions.filter(|version| {
        version.served && version.name != asked.version().name && matcher["matchPolicy"] != "Exact"
    });
    let candidates = std::iter::once(asked.version()).chain(others);
    let rules = matcher[key]
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
    // Only policies' rules can name objects.
    let of_name = rule["resourceNames"]
        .as_array()
        .is_none_or(|names| names.is_empty() || names.iter().any(|name| name == attributes.name));
    scope
        && named
        && of_name
        && has("operations", attributes.operation.as_str())
        && has("apiGroups", attributes.endpoint.group())
        && has("apiVersions", version)
}

/// `pods`, `pods/status`, `pods/*`, `*/scale`, `*` (no subresources) or `*/*`.
fn covers_resource(pattern: &str, plural: &str, subresource: &str) -> bool {
    let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    (resource == "*" || resource == plural) && (sub == subresource || sub == "*")
}

/// Whether the namespace and object selectors of `matcher` select the request.
pub(super) fn selected(
    attributes: &Attributes<'_>,
    matcher: &Value,
    object: Option<&Value>,
) -> bool {
    let namespace = &matcher["namespaceSelector"];
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
    let of_object = &matcher["objectSelector"];
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

/// What expressions about the request may name.
pub(super) fn variables(
    attributes: &Attributes<'_>,
    endpoint: &Endpoint,
    object: Option<&Value>,
) -> Result<Variables, String> {
    let request =
        question::request(attributes, endpoint, object).map_err(|error| error.to_string())?;
    let mut variables = Variables::new();
    variables.set("object", &request["object"]);
    variables.set("oldObject", &request["oldObject"]);
    variables.set("request", &request);
    let namespace = namespace_of(attributes).unwrap_or(Value::Null);
    variables.set("namespaceObject", &namespace);
    let target = Target {
        group: attributes.endpoint.group(),
        resource: attributes.endpoint.plural(),
        subresource: attributes.subresource,
        namespace: attributes.namespace,
        name: attributes.name,
    };
    let context = attributes.context;
    variables.authorize(context.server.authorizer.clone(), &context.user, &target);
    Ok(variables)
}

/// Evaluates the `matchConditions` of `matcher` (KEP-3716): all must hold.
pub(super) fn conditions_hold(
    attributes: &Attributes<'_>,
    matcher: &Value,
    endpoint: &Endpoint,
    object: Option<&Value>,
) -> Result<bool, String> {
    let conditions = matcher["matchConditions"].as_array().map(Vec::as_slice);
    match conditions.unwrap_or_default() {
        [] => Ok(true),
        conditions => all_hold(conditions, &variables(attributes, endpoint, object)?),
    }
}

/// Whether all conditions hold. One that does not settles it, whatever became of the others.
pub(super) fn all_hold(conditions: &[Value], variables: &Variables) -> Result<bool, String> {
    let mut failure = None;
    for condition in conditions {
        match variables.holds(condition["expression"].as_str().unwrap_or_default()) {
            Ok(true) => {}
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
