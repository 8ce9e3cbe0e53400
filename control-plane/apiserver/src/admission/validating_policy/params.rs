//! The objects that a binding gives its policy as `params`.

use std::sync::Arc;

use serde_json::Value;
use windlass_machinery::selector::LabelSelector;

use crate::admission::Attributes;
use crate::cacher::Filter;
use crate::catalog::Endpoint;
use crate::context::to_served;

/// The parameters, each to be evaluated with; `null` alone for a policy or binding that uses none.
///
/// # Errors
/// When there is no such kind, or no object where the binding demands one.
pub(super) fn of(
    attributes: &Attributes<'_>,
    kind: &Value,
    reference: &Value,
) -> Result<Vec<Value>, String> {
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let endpoint = endpoint(attributes, kind)?;
    let namespace = namespace(
        endpoint.resource.namespaced,
        reference["namespace"].as_str().unwrap_or_default(),
        attributes.namespace,
    )?;
    let cacher = endpoint.cacher().map_err(|error| error.to_string())?;
    let entries = match reference["name"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => cacher.get(namespace, name).into_iter().collect(),
        None => {
            let selector = LabelSelector::from_value(&reference["selector"])
                .map_err(|why| format!("paramRef.selector: {why}"))?;
            let within = Some(namespace).filter(|namespace| !namespace.is_empty());
            let filter = Filter::new(&cacher.resource, within, Some(selector), None);
            cacher.entries(&filter.map_err(|error| error.to_string())?)
        }
    };
    if entries.is_empty() && reference["parameterNotFoundAction"] != "Allow" {
        let why = "no params found for policy binding with `Deny` parameterNotFoundAction";
        return Err(why.to_owned());
    }
    let read = entries.iter().map(|entry| {
        let mut param = entry.decode().map_err(|error| error.to_string())?;
        to_served(&endpoint, &mut param).map_err(|error| error.to_string())?;
        Ok(param)
    });
    read.collect()
}

fn endpoint(attributes: &Attributes<'_>, kind: &Value) -> Result<Arc<Endpoint>, String> {
    let text = |key: &str| kind[key].as_str().unwrap_or_default();
    let (api_version, name) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let catalog = attributes.context.server.catalog.load();
    let resource = catalog
        .resources()
        .iter()
        .find(|resource| resource.group == group && resource.kind == name);
    resource
        .and_then(|resource| catalog.endpoint(group, version, &resource.plural))
        .ok_or_else(|| {
            format!("failed to find resource referenced by paramKind: '{api_version}, Kind={name}'")
        })
}

/// Where parameters are looked for: where the binding says, else beside the object.
fn namespace<'a>(namespaced: bool, stated: &'a str, of_object: &'a str) -> Result<&'a str, String> {
    match (namespaced, stated.is_empty()) {
        (false, true) => Ok(""),
        (false, false) => {
            Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned())
        }
        (true, false) => Ok(stated),
        (true, true) if !of_object.is_empty() => Ok(of_object),
        (true, true) => Err(
            "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_lie_where_the_binding_says_or_beside_the_object() {
        let table = [
            (false, "", "ns", Some("")),
            (false, "a", "ns", None),
            (true, "a", "ns", Some("a")),
            (true, "", "ns", Some("ns")),
            (true, "", "", None),
        ];
        for (namespaced, stated, of_object, expected) in table {
            let found = namespace(namespaced, stated, of_object);
            assert_eq!(
                found.ok(),
                expected,
                "{namespaced} {stated:?} {of_object:?}"
            );
        }
    }
}
