//! APIServices of the group versions that this server answers itself: without a Service, always available.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use windlass_api::metrics;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{GROUP, PLURAL, availability};
use crate::cacher::Filter;
use crate::server::ApiServer;

/// On the APIServices that come and go with what they stand for.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const BUILT_IN: &str = "onstart";
const CUSTOM: &str = "true";
const INTERVAL: Duration = Duration::from_secs(2);

/// Keeps them in step with the catalog for ever.
pub(super) async fn keep(server: &Arc<ApiServer>) {
    let mut done: Vec<String> = Vec::new();
    loop {
        let served = served(server);
        let names: Vec<String> = served.keys().cloned().collect();
        if names != done
            || server
                .cacher(GROUP, PLURAL)
                .is_some_and(|c| c.len() < names.len())
        {
            match register(server, &served).await {
                Ok(()) => done = names,
                Err(error) => tracing::warn!(%error, "APIServices could not be registered"),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The APIServices that should be, by name.
fn served(server: &ApiServer) -> BTreeMap<String, Value> {
    let catalog = server.catalog.load();
    let custom: HashSet<(&str, &str)> = catalog
        .resources()
        .iter()
        .flat_map(|r| r.versions.iter().map(move |v| (r, v)))
        .filter(|(_, version)| version.openapi.is_some())
        .map(|(resource, version)| (&*resource.group, &*version.name))
        .collect();
    let mut wanted = BTreeMap::new();
    for (place, (group, versions)) in catalog.groups().iter().enumerate() {
        if group == metrics::GROUP {
            // metrics-server brings this one, and Helm refuses to install what is there already.
            continue;
        }
        for (rank, version) in versions.iter().enumerate() {
            let is_custom = custom.contains(&(group.as_str(), version.as_str()));
            // Earlier groups come first in discovery, as upstream numbers them; custom ones come last.
            let (group_priority, version_priority) = if is_custom {
                (1000, 100 - i64::try_from(rank).unwrap_or(99).min(99))
            } else {
                let place = i64::try_from(place).unwrap_or(160).min(160);
                (
                    18_000 - 100 * place,
                    15 - i64::try_from(rank).unwrap_or(14).min(14),
                )
            };
            let name = format!("{version}.{group}");
            let object = json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": "APIService",
                "metadata": {
                    "name": name, "labels": {MANAGED: if is_custom { CUSTOM } else { BUILT_IN }},
                },
                "spec": {
                    "group": group, "version": version,
                    "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
                },
            });
            wanted.insert(name, object);
        }
    }
    wanted
}

async fn register(
    server: &Arc<ApiServer>,
    wanted: &BTreeMap<String, Value>,
) -> Result<(), ApiError> {
    let Some(cacher) = server.cacher(GROUP, PLURAL) else {
        return Ok(());
    };
    server.caches.wait_current().await?;
    let path = format!("/apis/{GROUP}/v1/{PLURAL}");
    for (name, object) in wanted {
        let present = match cacher.get("", name) {
            Some(entry) => entry.decode()?,
            None => match server.create_missing(&path, object).await? {
                Some(made) => made,
                None => continue,
            },
        };
        if present["spec"]["service"].is_null() {
            let message = "Local APIServices are always available".to_owned();
            availability::tell(server, present, ("True", "Local", message)).await?;
        }
    }
    let everything = Filter::new(&cacher.resource, None, None, None)?;
    for entry in cacher.entries(&everything) {
        let of_custom = entry.label(MANAGED) == Some(CUSTOM);
        if !of_custom || wanted.contains_key(entry.name()) {
            continue;
        }
        let object = entry.decode()?;
        if object["spec"]["service"].is_null() && !meta::is_deleting(&object) {
            let own = format!("{path}/{}", entry.name());
            match server.call_self(Method::DELETE, &own, None).await {
                Err(error) if error.code != 404 => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}
