//! Writes the rules of aggregated ClusterRoles: those of every role that their selectors choose.
//!
//! Authorization computes the union itself; this copy is what people and their tools read.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use windlass_informers::{Informer, Key};

use crate::runtime::{Context, Controller, Outcome, Queue, Result, patch, run_workers};

struct Aggregation {
    context: Context,
    roles: Arc<Informer<ClusterRole>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (roles,) = context.synced::<(ClusterRole,)>().await;
    let (own, view) = (Arc::clone(&queue), Arc::clone(&roles));
    let _own = roles.on_change(move |change| {
        let role = change.object();
        own.add(Key::of(role.as_ref()));
        for aggregated in view.list() {
            if aggregated.aggregation_rule.is_some() {
                own.add(Key::of(aggregated.as_ref()));
            }
        }
    });
    let controller = Arc::new(Aggregation {
        context: context.clone(),
        roles,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

/// Every rule of the selected roles once, by the order of their names.
fn union(role: &ClusterRole, mut all: Vec<Arc<ClusterRole>>) -> Option<Vec<PolicyRule>> {
    let chosen = role.aggregation_rule.as_ref()?;
    let selectors: Vec<Selector> = chosen
        .cluster_role_selectors
        .iter()
        .flatten()
        .filter_map(|selector| Selector::try_from(selector.clone()).ok())
        .collect();
    all.sort_by_key(|other| other.name_any());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for other in all {
        let selected = selectors
            .iter()
            .any(|selector| selector.matches(other.labels()));
        if !selected || other.metadata.name == role.metadata.name {
            continue;
        }
        for rule in other.rules.iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

impl Controller for Aggregation {
    type Key = Key;
    const NAME: &'static str = "clusterrole-aggregation";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(role) = self.roles.by_key(key) else {
            return Ok(Outcome::Done);
        };
        if let Some(rules) = union(&role, self.roles.list())
            && role.rules.as_deref().unwrap_or_default() != rules
        {
            let updated = ClusterRole {
                rules: Some(rules),
                ..role.as_ref().clone()
            };
            patch(&self.context.cluster_api(), role.as_ref(), &updated).await?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn role(name: &str, label: &str, verbs: &[&str], more: Value) -> Arc<ClusterRole> {
        let mut object = json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            object[key] = value.clone();
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn rules_of_selected_roles_are_joined_once() {
        let rule =
            json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}});
        let view = role("view", "view", &["none"], rule);
        let all = vec![
            role("b", "view", &["list"], json!({})),
            role("a", "view", &["get"], json!({})),
            role("c", "view", &["get"], json!({})),
            role("d", "edit", &["delete"], json!({})),
            Arc::clone(&view),
        ];
        let verbs: Vec<_> = union(&view, all)
            .unwrap()
            .into_iter()
            .flat_map(|rule| rule.verbs)
            .collect();
        assert_eq!(verbs, ["get", "list"]);
    }
}
