//! Aggregated discovery (`apidiscovery.k8s.io`, KEP-3352): all groups of `/api` or `/apis` in one document.

use serde_json::{Value, json};

use super::{kind_of, members, verbs_of};
use crate::catalog::Catalog;

/// The document of `/api` (`core`) or `/apis`.
pub(crate) fn aggregated(catalog: &Catalog, core: bool, beta: bool) -> Value {
    let items: Vec<Value> = catalog
        .groups()
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| version_value(catalog, group, version))
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": content_version(beta),
        "metadata": {},
        "items": items,
    })
}

fn content_version(beta: bool) -> &'static str {
    if beta {
        "apidiscovery.k8s.io/v2beta1"
    } else {
        "apidiscovery.k8s.io/v2"
    }
}

fn version_value(catalog: &Catalog, group: &str, version: &str) -> Value {
    let resources: Vec<Value> = members(catalog.resources(), group, version)
        .map(|resource| {
            let kind = |group: &str, version: &str, kind: &str| {
                json!({"group": group, "version": version, "kind": kind})
            };
            let subresources: Vec<Value> = resource
                .subresources_in(version)
                .iter()
                .map(|subresource| {
                    let (sub_group, sub_version, sub_kind) = kind_of(resource, subresource);
                    let (sub_group, sub_version) =
                        if sub_version.is_empty() { (group, version) } else { (sub_group, sub_version) };
                    json!({
                        "subresource": subresource.name(),
                        "responseKind": kind(sub_group, sub_version, &sub_kind),
                        "verbs": verbs_of(subresource),
                    })
                })
                .collect();
            let mut entry = json!({
                "resource": resource.plural,
                "responseKind": kind(group, version, &resource.kind),
                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": resource.singular,
                "verbs": resource.verbs.names(),
            });
            if !resource.short_names.is_empty() {
                entry["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                entry["categories"] = json!(resource.categories);
            }
            if !subresources.is_empty() {
                entry["subresources"] = subresources.into();
            }
            entry
        })
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}
