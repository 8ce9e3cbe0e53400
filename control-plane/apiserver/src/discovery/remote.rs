//! What the servers behind this one serve, put into the discovery documents.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::legacy::group_value;
use crate::aggregator::Remote;

/// The remotes of each group; they come sorted by group.
fn by_group(remotes: &[Arc<Remote>]) -> impl Iterator<Item = &[Arc<Remote>]> {
    remotes.chunk_by(|a, b| a.group == b.group)
}

fn versions(remotes: &[Arc<Remote>]) -> Vec<String> {
    remotes
        .iter()
        .map(|remote| remote.version.clone())
        .collect()
}

/// Adds groups to an APIGroupList; versions of a group that is there already join it.
pub(crate) fn add_groups(list: &mut Value, remotes: &[Arc<Remote>]) {
    let Some(groups) = list["groups"].as_array_mut() else {
        return;
    };
    for remotes in by_group(remotes) {
        let own = group_value(&remotes[0].group, &versions(remotes));
        match groups.iter_mut().find(|group| group["name"] == own["name"]) {
            Some(group) => join(group, &own),
            None => groups.push(own),
        }
    }
}

fn join(group: &mut Value, other: &Value) {
    let others = other["versions"].as_array().into_iter().flatten();
    if let Some(versions) = group["versions"].as_array_mut() {
        versions.retain(|version| !others.clone().any(|other| other == version));
        versions.extend(others.cloned());
    }
}

/// `/apis/<group>` of a group that only others serve.
pub(crate) fn group(remotes: &[Arc<Remote>], name: &str) -> Option<Value> {
    let remotes = by_group(remotes).find(|remotes| remotes[0].group == name)?;
    let mut value = group_value(name, &versions(remotes));
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

/// Adds groups to an APIGroupDiscoveryList.
pub(crate) fn add_aggregated(list: &mut Value, remotes: &[Arc<Remote>]) {
    let Some(items) = list["items"].as_array_mut() else {
        return;
    };
    for remotes in by_group(remotes) {
        let versions: Vec<Value> = remotes.iter().filter_map(|r| version(r)).collect();
        let name = &remotes[0].group;
        let known = items
            .iter_mut()
            .find(|item| item["metadata"]["name"] == name.as_str());
        match known.and_then(|item| item["versions"].as_array_mut()) {
            Some(present) => {
                present.retain(|old| versions.iter().all(|new| new["version"] != old["version"]));
                present.extend(versions);
            }
            None => items.push(json!({
                "metadata": {"name": name, "creationTimestamp": null}, "versions": versions,
            })),
        }
    }
}

/// An APIVersionDiscovery made of the APIResourceList that the other server answered.
fn version(remote: &Remote) -> Option<Value> {
    let list = remote.resources()?;
    let listed = list["resources"].as_array()?;
    let kind = |entry: &Value| {
        let text = |key: &str, own: &str| match entry[key].as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => own.to_owned(),
        };
        json!({
            "group": text("group", &remote.group), "version": text("version", &remote.version),
            "kind": entry["kind"],
        })
    };
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    let mut resources = Vec::new();
    for entry in listed.iter().filter(|entry| !name(entry).contains('/')) {
        let mut resource = Map::new();
        resource.insert("resource".to_owned(), name(entry).into());
        resource.insert("responseKind".to_owned(), kind(entry));
        let scope = if entry["namespaced"] == true {
            "Namespaced"
        } else {
            "Cluster"
        };
        resource.insert("scope".to_owned(), scope.into());
        resource.insert("singularResource".to_owned(), entry["singularName"].clone());
        for key in ["verbs", "shortNames", "categories"] {
            if entry[key].is_array() {
                resource.insert(key.to_owned(), entry[key].clone());
            }
        }
        let below = format!("{}/", name(entry));
        let subresources: Vec<Value> = listed
            .iter()
            .filter_map(|sub| {
                let name = name(sub).strip_prefix(&below)?.to_owned();
                Some(json!({"subresource": name, "responseKind": kind(sub), "verbs": sub["verbs"]}))
            })
            .collect();
        if !subresources.is_empty() {
            resource.insert("subresources".to_owned(), subresources.into());
        }
        resources.push(Value::Object(resource));
    }
    Some(json!({"version": remote.version, "resources": resources, "freshness": "Current"}))
}
