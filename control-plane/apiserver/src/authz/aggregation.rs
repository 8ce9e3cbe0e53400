//! Writes the rules of aggregated ClusterRoles down, so that whoever reads such a role sees what it grants.
//! The authorizer itself looks through the selectors and does not wait for this.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::selector::LabelSelector;
use windlass_machinery::status::ApiError;

use crate::cacher::{Filter, From};
use crate::follower;
use crate::server::ApiServer;

const GROUP: &str = "rbac.authorization.k8s.io";
const PLURAL: &str = "clusterroles";

/// Follows the ClusterRoles until the server shuts down.
pub(crate) fn start(server: &Arc<ApiServer>) {
    let complain = |error: &ApiError| tracing::debug!(%error, "aggregated roles not in step");
    follower::start(server, |server| Box::pin(follow(server)), complain);
}

async fn follow(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let Some(cacher) = server.cacher(GROUP, PLURAL) else {
        return Ok(());
    };
    let everything = Filter::new(&cacher.resource, None, None, None)?;
    let now = From::Now {
        with_initial: false,
    };
    let watch = server.caches.watch(&cacher, everything.clone(), now)?;
    loop {
        let mut roles = BTreeMap::new();
        for entry in cacher.entries(&everything) {
            roles.insert(entry.name().to_owned(), entry.decode()?);
        }
        for (name, role) in &roles {
            if let Some(changed) = aggregated(role, &roles) {
                let path = format!("/apis/{GROUP}/v1/{PLURAL}/{name}");
                match server.call_self(Method::PUT, &path, Some(&changed)).await {
                    // Changed or deleted meanwhile, which is an event of its own.
                    Err(error) if !matches!(error.code, 404 | 409) => return Err(error),
                    _ => {}
                }
            }
        }
        watch.next().await?;
    }
}

/// The role with the rules that it aggregates, if it has others.
fn aggregated(role: &Value, all: &BTreeMap<String, Value>) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        let Ok(selector) = LabelSelector::from_value(selector) else {
            continue;
        };
        let chosen = all
            .values()
            .filter(|other| meta::name(other) != meta::name(role))
            .filter(|other| selector.matches(meta::labels(other)));
        for rule in chosen.flat_map(|other| other["rules"].as_array().into_iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    let present = role["rules"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if present == rules {
        return None;
    }
    let mut changed = role.clone();
    changed["rules"] = rules.into();
    Some(changed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_of_selected_roles_are_put_together_once_each() {
        let rule =
            |resource: &str| json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]});
        let role = |name: &str, rules: Value| json!({"metadata": {"name": name, "labels": {"into": "view"}}, "rules": rules});
        let mut view = json!({"metadata": {"name": "view"}, "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"into": "view"}}]}});
        let all = BTreeMap::from([
            (
                "a".to_owned(),
                role("a", json!([rule("pods"), rule("services")])),
            ),
            (
                "b".to_owned(),
                role("b", json!([rule("pods"), rule("secrets")])),
            ),
            ("view".to_owned(), view.clone()),
        ]);
        let changed = aggregated(&view, &all).unwrap();
        assert_eq!(
            changed["rules"],
            json!([rule("pods"), rule("services"), rule("secrets")])
        );
        view["rules"] = changed["rules"].clone();
        assert_eq!(aggregated(&view, &all), None);
    }
}
