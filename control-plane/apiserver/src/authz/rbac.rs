//! Role-based access control, evaluated from an index of the RBAC objects.
//!
//! The true copy of roles and bindings is the store; the API server feeds every change of the four kinds into
//! [`Rbac::update`], which keeps compiled rules. Aggregated ClusterRoles are resolved here as well, so they are
//! right as soon as a role with a matching label exists.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::RwLock;
use serde_json::Value;
use windlass_machinery::selector::LabelSelector;

use super::{Attributes, Authorizer, Decision};
use crate::authn::UserInfo;
use crate::json::strings;

/// One `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub paths: Vec<String>,
}

/// Namespace (empty for cluster-scoped) and name.
type Key = (String, String);

#[derive(Default)]
struct Policy {
    roles: BTreeMap<Key, Vec<Rule>>,
    cluster_roles: BTreeMap<String, ClusterRole>,
    bindings: BTreeMap<Key, Binding>,
    cluster_bindings: BTreeMap<String, Binding>,
}

struct ClusterRole {
    rules: Vec<Rule>,
    labels: Value,
    aggregates: Vec<LabelSelector>,
}

struct Binding {
    role: RoleRef,
    users: BTreeSet<String>,
    groups: BTreeSet<String>,
}

#[derive(Clone)]
enum RoleRef {
    Role(String),
    ClusterRole(String),
}

/// The RBAC authorizer.
#[derive(Default)]
pub struct Rbac(RwLock<Policy>);

impl Rbac {
    /// The resources whose changes belong into [`update`](Self::update).
    pub const RESOURCES: [&'static str; 4] = [
        "roles",
        "clusterroles",
        "rolebindings",
        "clusterrolebindings",
    ];

    /// Takes over an object's present state; `None` when it was deleted.
    pub fn update(&self, resource: &str, namespace: &str, name: &str, object: Option<&Value>) {
        let mut policy = self.0.write();
        let key = (namespace.to_owned(), name.to_owned());
        match resource {
            "roles" => set(&mut policy.roles, key, object.map(rules)),
            "rolebindings" => set(
                &mut policy.bindings,
                key,
                object.map(|o| binding(o, namespace)),
            ),
            "clusterroles" => set(
                &mut policy.cluster_roles,
                name.to_owned(),
                object.map(cluster_role),
            ),
            "clusterrolebindings" => {
                set(
                    &mut policy.cluster_bindings,
                    name.to_owned(),
                    object.map(|o| binding(o, "")),
                );
            }
            _ => {}
        }
    }

    /// Every rule that applies to `user` in `namespace`; cluster-wide ones included.
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut found = Vec::new();
        self.0.read().visit(user, namespace, &mut |rule| {
            found.push(rule.clone());
            false
        });
        found
    }

    /// The rules of one of `roles` or `clusterroles`, as a binding to it would grant them.
    pub(crate) fn rules_of(&self, resource: &str, namespace: &str, name: &str) -> Vec<Rule> {
        let policy = self.0.read();
        let role = if resource == "roles" {
            RoleRef::Role(name.to_owned())
        } else {
            RoleRef::ClusterRole(name.to_owned())
        };
        let mut found = Vec::new();
        policy.visit_role(&role, namespace, &mut |rule| {
            found.push(rule.clone());
            false
        });
        found
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}

impl Policy {
    /// Calls `found` with the rules of `user` until it answers true; answers whether it did.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        found: &mut dyn FnMut(&Rule) -> bool,
    ) -> bool {
        for binding in self.cluster_bindings.values() {
            if binding.names(user) && self.visit_role(&binding.role, "", found) {
                return true;
            }
        }
        if namespace.is_empty() {
            return false;
        }
        let first = (namespace.to_owned(), String::new());
        self.bindings
            .range(first..)
            .take_while(|((ns, _), _)| ns == namespace)
            .any(|(_, binding)| {
                binding.names(user) && self.visit_role(&binding.role, namespace, found)
            })
    }

    fn visit_role(
        &self,
        role: &RoleRef,
        namespace: &str,
        found: &mut dyn FnMut(&Rule) -> bool,
    ) -> bool {
        match role {
            RoleRef::Role(name) => self
                .roles
                .get(&(namespace.to_owned(), name.clone()))
                .is_some_and(|rules| rules.iter().any(found)),
            RoleRef::ClusterRole(name) => match self.cluster_roles.get_key_value(name) {
                Some((name, role)) => self.visit_cluster_role(name, role, &mut Vec::new(), found),
                None => false,
            },
        }
    }

    /// What is aggregated may be aggregated itself, and may by mistake lead back to where it began.
    fn visit_cluster_role<'r>(
        &'r self,
        name: &'r str,
        role: &'r ClusterRole,
        seen: &mut Vec<&'r str>,
        found: &mut dyn FnMut(&Rule) -> bool,
    ) -> bool {
        if seen.contains(&name) {
            return false;
        }
        seen.push(name);
        if role.rules.iter().any(&mut *found) {
            return true;
        }
        role.aggregates.iter().any(|selector| {
            self.cluster_roles
                .iter()
                .filter(|(_, other)| selector.matches(other.labels.as_object()))
                .any(|(name, other)| self.visit_cluster_role(name, other, seen, found))
        })
    }
}

impl Binding {
    fn names(&self, user: &UserInfo) -> bool {
        self.users.contains(&user.name) || user.groups.iter().any(|g| self.groups.contains(g))
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let allowed = self
            .0
            .read()
            .visit(attributes.user, attributes.namespace, &mut |rule| {
                rule.allows(attributes)
            });
        if allowed {
            Decision::Allow
        } else {
            Decision::NoOpinion
        }
    }
}

pub(super) const ALL: &str = "*";

impl Rule {
    /// What `cluster-admin` holds.
    pub(crate) fn everything() -> [Self; 2] {
        let all = || vec![ALL.to_owned()];
        let resources = Self {
            verbs: all(),
            groups: all(),
            resources: all(),
            ..Self::default()
        };
        let paths = Self {
            verbs: all(),
            paths: all(),
            ..Self::default()
        };
        [resources, paths]
    }

    fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        if attributes.resource.is_empty() {
            return self
                .paths
                .iter()
                .any(|pattern| path_matches(pattern, attributes.path));
        }
        has(&self.groups, attributes.group)
            && self.covers_resource(attributes.resource, attributes.subresource)
            && (self.names.is_empty() || self.names.iter().any(|n| n == attributes.name))
    }

    /// `pods`, `pods/log`, `*/scale` or `*`; a plain name does not cover its subresources.
    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources
            .iter()
            .any(|pattern| match pattern.split_once('/') {
                None => pattern == ALL || (pattern == resource && subresource.is_empty()),
                Some((parent, child)) => {
                    child == subresource && (parent == ALL || parent == resource)
                }
            })
    }
}

pub(super) fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

pub(super) fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

/// The rules of a Role or ClusterRole object.
pub(crate) fn rules(role: &Value) -> Vec<Rule> {
    let items = role["rules"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    items
        .iter()
        .map(|rule| Rule {
            verbs: strings(&rule["verbs"]),
            groups: strings(&rule["apiGroups"]),
            resources: strings(&rule["resources"]),
            names: strings(&rule["resourceNames"]),
            paths: strings(&rule["nonResourceURLs"]),
        })
        .collect()
}

fn cluster_role(role: &Value) -> ClusterRole {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    let aggregates = selectors
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        // A selector that validation would refuse selects nothing.
        .filter_map(|selector| LabelSelector::from_value(selector).ok())
        .collect::<Vec<_>>();
    // The aggregated rules are computed; what is stored beside a selector is only a copy.
    let rules = if aggregates.is_empty() {
        rules(role)
    } else {
        Vec::new()
    };
    ClusterRole {
        rules,
        labels: role["metadata"]["labels"].clone(),
        aggregates,
    }
}

fn binding(object: &Value, namespace: &str) -> Binding {
    let name = object["roleRef"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let role = match object["roleRef"]["kind"].as_str() {
        Some("Role") => RoleRef::Role(name),
        _ => RoleRef::ClusterRole(name),
    };
    let mut users = BTreeSet::new();
    let mut groups = BTreeSet::new();
    for subject in object["subjects"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    {
        let Some(name) = subject["name"].as_str() else {
            continue;
        };
        match subject["kind"].as_str() {
            Some("User") => {
                users.insert(name.to_owned());
            }
            Some("Group") => {
                groups.insert(name.to_owned());
            }
            Some("ServiceAccount") => {
                let namespace = subject["namespace"].as_str().unwrap_or(namespace);
                users.insert(UserInfo::service_account(namespace, name, "").name);
            }
            _ => {}
        }
    }
    Binding {
        role,
        users,
        groups,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy() -> Rbac {
        let rbac = Rbac::default();
        let put = |resource: &str, ns: &str, name: &str, object: Value| {
            rbac.update(resource, ns, name, Some(&object));
        };
        put(
            "clusterroles",
            "",
            "reader",
            json!({"metadata": {"labels": {"agg": "yes"}}, "rules": [
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
            {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/metrics/*"]}]}),
        );
        put(
            "clusterroles",
            "",
            "sum",
            json!({"aggregationRule": {"clusterRoleSelectors": [
            {"matchLabels": {"agg": "yes"}}]}}),
        );
        put(
            "roles",
            "a",
            "one",
            json!({"rules": [
            {"verbs": ["*"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["only"]}]}),
        );
        put(
            "clusterrolebindings",
            "",
            "r",
            json!({"roleRef": {"kind": "ClusterRole", "name": "sum"},
            "subjects": [{"kind": "Group", "name": "devs"}]}),
        );
        put(
            "rolebindings",
            "a",
            "r",
            json!({"roleRef": {"kind": "Role", "name": "one"},
            "subjects": [{"kind": "ServiceAccount", "name": "sa"}]}),
        );
        rbac
    }

    fn ask(user: &UserInfo, verb: &str, resource: &str, sub: &str, ns: &str, name: &str) -> bool {
        let attributes = Attributes {
            user,
            verb,
            group: "",
            version: "v1",
            resource,
            subresource: sub,
            namespace: ns,
            name,
            path: "",
        };
        policy().authorize(&attributes) == Decision::Allow
    }

    #[test]
    fn what_is_aggregated_may_be_aggregated_itself() {
        let rbac = policy();
        let chain = |name: &str, own: &str, selected: &str| {
            let role = json!({"metadata": {"labels": {"in": own}}, "aggregationRule": {
                "clusterRoleSelectors": [{"matchLabels": {"in": selected}}, {"matchLabels": {"agg": selected}}]}});
            rbac.update("clusterroles", "", name, Some(&role));
        };
        chain("top", "bottom", "top");
        chain("middle", "top", "middle");
        // Leads back to the top.
        chain("bottom", "middle", "bottom");
        assert!(rbac.rules_of("clusterroles", "", "top").is_empty());
        chain("bottom", "middle", "yes");
        let found = rbac.rules_of("clusterroles", "", "top");
        assert_eq!(
            found.len(),
            2,
            "those of the reader, which the bottom aggregates: {found:?}"
        );
    }

    #[test]
    fn rules_grant_what_they_name_and_nothing_else() {
        let dev = UserInfo::new("jane", &["devs"]);
        assert!(
            ask(&dev, "get", "pods", "", "x", "p"),
            "through the aggregated role"
        );
        assert!(ask(&dev, "get", "pods", "log", "x", "p"));
        assert!(
            !ask(&dev, "get", "pods", "exec", "x", "p"),
            "a subresource must be named"
        );
        assert!(!ask(&dev, "delete", "pods", "", "x", "p"));
        let account = UserInfo::service_account("a", "sa", "");
        assert!(ask(&account, "update", "configmaps", "", "a", "only"));
        assert!(!ask(&account, "update", "configmaps", "", "a", "other"));
        assert!(!ask(&account, "update", "configmaps", "", "b", "only"));
    }

    #[test]
    fn a_deleted_binding_grants_nothing() {
        let rbac = policy();
        rbac.update("clusterrolebindings", "", "r", None);
        assert!(
            rbac.rules_for(&UserInfo::new("jane", &["devs"]), "")
                .is_empty()
        );
    }

    #[test]
    fn paths_match_by_prefix_only_with_a_star() {
        assert!(path_matches("/metrics/*", "/metrics/cadvisor"));
        assert!(!path_matches("/healthz", "/healthz/ping"));
    }
}
