//! Discovery: which groups, versions and resources there are, aggregated (KEP-3352) and in the older lists.

use serde_json::{Value, json};
use windlass_api::resource::{Resource, Subresource, Verbs};

use crate::catalog::{Catalog, api_version};

/// The Kubernetes version that the API follows, with Windlass' own behind the plus sign.
pub const GIT_VERSION: &str = concat!("v1.35.0+windlass.", env!("CARGO_PKG_VERSION"));

/// What `/version` answers.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "35",
        "emulationMajor": "1",
        "emulationMinor": "35",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "34",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (rust)",
        "compiler": "rustc",
        "platform": concat!("linux/", "amd64"),
    })
}

/// What `/api` answers to a client that does not know the aggregated form; `server` is host and port.
pub fn core_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// What `/apis` answers in the older form.
pub fn groups(catalog: &Catalog) -> Value {
    let named = catalog
        .groups()
        .into_iter()
        .filter(|(group, _)| !group.is_empty());
    json!({
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": named.map(|(group, versions)| group_entry(&group, &versions)).collect::<Vec<_>>(),
    })
}

/// What `/apis/<group>` answers; `None` for an unknown group.
pub fn group(catalog: &Catalog, name: &str) -> Option<Value> {
    let (group, versions) = catalog
        .groups()
        .into_iter()
        .find(|(group, _)| group == name)?;
    let mut entry = group_entry(&group, &versions);
    entry["kind"] = "APIGroup".into();
    entry["apiVersion"] = "v1".into();
    Some(entry)
}

fn group_entry(group: &str, versions: &[String]) -> Value {
    let entry =
        |version: &String| json!({"groupVersion": api_version(group, version), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

/// What `/api/v1` or `/apis/<group>/<version>` answers; `None` where nothing is served.
pub fn resources(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let members: Vec<_> = members(catalog, group, version).collect();
    if members.is_empty() {
        return None;
    }
    let mut list = Vec::new();
    for resource in members {
        list.push(legacy_entry(resource, group));
        list.extend(
            resource
                .subresources
                .iter()
                .map(|s| legacy_subresource(resource, s)),
        );
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": list,
    }))
}

fn members<'c>(
    catalog: &'c Catalog,
    group: &'c str,
    version: &'c str,
) -> impl Iterator<Item = &'c Resource> {
    catalog
        .resources()
        .iter()
        .map(AsRef::as_ref)
        .filter(move |r: &&Resource| {
            r.group == group && r.versions.iter().any(|v| v.name == version)
        })
}

fn legacy_entry(resource: &Resource, group: &str) -> Value {
    let mut entry = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs.names(),
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if resource.verbs == Verbs::All {
        // Upstream: a hash of what is stored; equal for equal storage versions.
        let stored = &resource.versions[resource.storage].name;
        entry["storageVersionHash"] = storage_hash(group, stored, &resource.kind).into();
    }
    entry
}

/// The first eight bytes of SHA-256 over `group/version/kind`, in base64, as upstream computes it.
fn storage_hash(group: &str, version: &str, kind: &str) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(format!("{}/{kind}", api_version(group, version)));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn legacy_subresource(resource: &Resource, subresource: &Subresource) -> Value {
    let (group, version, kind) = response_kind(resource, subresource);
    let mut entry = json!({
        "name": format!("{}/{}", resource.plural, subresource.name()),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": verbs(subresource),
    });
    if let Some(version) = version {
        entry["group"] = group.into();
        entry["version"] = version.into();
    }
    entry
}

/// Group, version and kind of what a subresource takes and gives; no version where they are the parent's.
fn response_kind<'r>(
    resource: &'r Resource,
    subresource: &Subresource,
) -> (&'static str, Option<&'static str>, &'r str) {
    match subresource {
        Subresource::Scale(_) => ("autoscaling", Some("v1"), "Scale"),
        Subresource::Eviction => ("policy", Some("v1"), "Eviction"),
        Subresource::Token => ("authentication.k8s.io", Some("v1"), "TokenRequest"),
        Subresource::Binding => ("", None, "Binding"),
        Subresource::Exec => ("", None, "PodExecOptions"),
        Subresource::Attach => ("", None, "PodAttachOptions"),
        Subresource::PortForward => ("", None, "PodPortForwardOptions"),
        Subresource::Proxy => ("", None, proxy_options(&resource.kind)),
        _ => ("", None, &resource.kind),
    }
}

fn proxy_options(kind: &str) -> &'static str {
    match kind {
        "Node" => "NodeProxyOptions",
        "Service" => "ServiceProxyOptions",
        _ => "PodProxyOptions",
    }
}

fn verbs(subresource: &Subresource) -> &'static [&'static str] {
    match subresource {
        Subresource::Status
        | Subresource::Scale(_)
        | Subresource::Approval
        | Subresource::EphemeralContainers
        | Subresource::Resize => &["get", "patch", "update"],
        Subresource::Finalize => &["update"],
        Subresource::Binding | Subresource::Eviction | Subresource::Token => &["create"],
        Subresource::Log => &["get"],
        Subresource::Exec | Subresource::Attach | Subresource::PortForward => &["create", "get"],
        Subresource::Proxy => &["create", "delete", "get", "patch", "update"],
    }
}

/// The aggregated form: of the core group for `/api`, of all others for `/apis`. `api_version` is
/// `apidiscovery.k8s.io/v2` or `…/v2beta1`, as the client asked.
pub fn aggregated(catalog: &Catalog, core: bool, form: &str) -> Value {
    let groups = catalog
        .groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = members(catalog, &group, version)
                        .map(|resource| aggregated_entry(resource, &group, version))
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let mut metadata = json!({"creationTimestamp": null});
            if !group.is_empty() {
                metadata["name"] = group.into();
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": form,
        "metadata": {},
        "items": items,
    })
}

fn aggregated_entry(resource: &Resource, group: &str, version: &str) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|subresource| {
            let (own_group, own_version, name) = response_kind(resource, subresource);
            let response = match own_version {
                Some(own_version) => kind(own_group, own_version, name),
                None => kind(group, version, name),
            };
            json!({
                "subresource": subresource.name(),
                "responseKind": response,
                "verbs": verbs(subresource),
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
        entry["subresources"] = json!(subresources);
    }
    entry
}
