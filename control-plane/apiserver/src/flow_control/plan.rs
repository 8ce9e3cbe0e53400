//! FlowSchemas and priority levels, ready to classify requests.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use windlass_machinery::meta;

use super::Flow;
use super::level::{Level, Pool, Seats};
use crate::authn::UserInfo;
use crate::json::strings;
use crate::request::RequestInfo;

/// Requests worked on at once, by all levels together: upstream's 400 reading and 200 writing.
const SEATS: usize = 600;
const ALL: &str = "*";

pub(super) struct Plan {
    /// In the order of their precedence.
    schemas: Vec<Schema>,
    levels: HashMap<String, Named>,
    pool: Arc<Pool>,
}

/// A priority level and its object's uid; an exempt one holds nobody up.
struct Named {
    uid: Arc<str>,
    level: Option<Arc<Level>>,
}

struct Schema {
    uid: Arc<str>,
    level: String,
    flows: Flows,
    rules: Vec<Rule>,
}

/// What tells the flows of a schema apart.
#[derive(Clone, Copy)]
enum Flows {
    One,
    ByUser,
    ByNamespace,
}

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    /// Verbs and paths.
    paths: Vec<(Vec<String>, Vec<String>)>,
}

enum Subject {
    User(String),
    Group(String),
    ServiceAccount(String, String),
}

struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

/// Where a request belongs.
pub(super) struct Place {
    pub flow: Flow,
    /// `None` is exempt.
    pub level: Option<Arc<Level>>,
    /// What tells the request's flow from others of its level.
    pub key: String,
}

impl Plan {
    /// Levels that `before` has as well are taken over, with those who sit and wait there.
    pub(super) fn new(schemas: &[Value], levels: &[Value], before: Option<&Self>) -> Self {
        let shares = |level: &Value| level["spec"]["limited"]["nominalConcurrencyShares"].as_u64();
        let total: u64 = levels.iter().filter_map(shares).sum::<u64>().max(1);
        let pool = before.map_or_else(Arc::default, |plan| plan.pool.clone());
        let named = levels.iter().map(|object| {
            let name = meta::name(object).to_owned();
            let shared = shares(object).unwrap_or(30);
            let seats = usize::try_from(shared).unwrap_or(0) * SEATS;
            let seats = seats
                .div_ceil(usize::try_from(total).unwrap_or(usize::MAX))
                .max(1);
            let limited = &object["spec"]["limited"];
            let percent = |field: &str| {
                let percent = limited[field].as_u64()?;
                Some(seats * usize::try_from(percent).unwrap_or(0) / 100)
            };
            let seats = Seats {
                own: seats,
                lendable: percent("lendablePercent").unwrap_or(0).min(seats),
                borrowable: percent("borrowingLimitPercent").unwrap_or(SEATS),
            };
            let room = room(&limited["limitResponse"]);
            let level = (object["spec"]["type"] != "Exempt").then(|| {
                let known = before.and_then(|plan| plan.levels.get(&name)?.level.clone());
                match known.filter(|level| level.has_room(room)) {
                    Some(level) => {
                        level.resize(seats);
                        level
                    }
                    None => Arc::new(Level::new(seats, room, pool.clone())),
                }
            });
            let uid = uid(object);
            (name, Named { uid, level })
        });
        let levels: HashMap<_, _> = named.collect();
        let limited = levels
            .values()
            .filter_map(|named: &Named| named.level.clone());
        pool.set_levels(&limited.collect::<Vec<_>>());
        let mut schemas: Vec<&Value> = schemas.iter().collect();
        schemas.sort_by_key(|schema| {
            let precedence = schema["spec"]["matchingPrecedence"]
                .as_i64()
                .unwrap_or(1000);
            (precedence, meta::name(schema).to_owned())
        });
        Self {
            schemas: schemas.into_iter().map(schema).collect(),
            levels,
            pool,
        }
    }

    pub(super) fn has_level(&self, name: &str) -> bool {
        self.levels.contains_key(name)
    }

    /// The limited levels with their own seats, those at work and those who wait.
    pub(super) fn counts(&self) -> Vec<(String, (usize, usize, usize))> {
        let limited = self.levels.iter().filter_map(|(name, named)| {
            let level = named.level.as_ref()?;
            Some((name.clone(), level.counts()))
        });
        let mut counts: Vec<_> = limited.collect();
        counts.sort();
        counts
    }

    pub(super) fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Place {
        for schema in &self.schemas {
            let Some(named) = self.levels.get(&schema.level) else {
                continue;
            };
            if !schema.rules.iter().any(|rule| rule.covers(user, info)) {
                continue;
            }
            let by = match schema.flows {
                Flows::One => "",
                Flows::ByUser => user.name.as_str(),
                Flows::ByNamespace => info.namespace.as_str(),
            };
            return Place {
                flow: Flow {
                    schema: schema.uid.clone(),
                    level: named.uid.clone(),
                },
                level: named.level.clone(),
                // Flows of two schemas are never the same one.
                key: format!("{}/{by}", schema.uid),
            };
        }
        // `catch-all` covers everybody; should it be gone, nobody is to be shut out.
        let uid: Arc<str> = "".into();
        Place {
            flow: Flow {
                schema: uid.clone(),
                level: uid,
            },
            level: None,
            key: String::new(),
        }
    }
}

/// How many requests may wait, in all queues together.
fn room(response: &Value) -> usize {
    if response["type"] != "Queue" {
        return 0;
    }
    let number = |field: &str, default: u64| response["queuing"][field].as_u64().unwrap_or(default);
    let waiting = number("queues", 64) * number("queueLengthLimit", 50);
    usize::try_from(waiting).unwrap_or(usize::MAX)
}

/// Before an object exists its name stands for it.
fn uid(object: &Value) -> Arc<str> {
    match meta::uid(object) {
        "" => meta::name(object).into(),
        uid => uid.into(),
    }
}

fn schema(object: &Value) -> Schema {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rules = spec["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| Rule {
            subjects: rule["subjects"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|subject| match subject["kind"].as_str()? {
                    "User" => Some(Subject::User(text(&subject["user"]["name"]))),
                    "Group" => Some(Subject::Group(text(&subject["group"]["name"]))),
                    _ => {
                        let account = &subject["serviceAccount"];
                        let (namespace, name) =
                            (text(&account["namespace"]), text(&account["name"]));
                        Some(Subject::ServiceAccount(namespace, name))
                    }
                })
                .collect(),
            resources: rule["resourceRules"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|rule| ResourceRule {
                    verbs: strings(&rule["verbs"]),
                    groups: strings(&rule["apiGroups"]),
                    resources: strings(&rule["resources"]),
                    cluster_scope: rule["clusterScope"] == true,
                    namespaces: strings(&rule["namespaces"]),
                })
                .collect(),
            paths: rule["nonResourceRules"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|rule| (strings(&rule["verbs"]), strings(&rule["nonResourceURLs"])))
                .collect(),
        });
    Schema {
        uid: uid(object),
        level: text(&spec["priorityLevelConfiguration"]["name"]),
        flows: match spec["distinguisherMethod"]["type"].as_str() {
            Some("ByUser") => Flows::ByUser,
            Some("ByNamespace") => Flows::ByNamespace,
            _ => Flows::One,
        },
        rules: rules.collect(),
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

impl Rule {
    fn covers(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|subject| subject.is(user)) {
            return false;
        }
        if info.is_resource {
            return self.resources.iter().any(|rule| rule.covers(info));
        }
        self.paths.iter().any(|(verbs, paths)| {
            let here = |pattern: &String| match pattern.strip_suffix('*') {
                Some(prefix) => info.path.starts_with(prefix),
                None => *pattern == info.path,
            };
            has(verbs, info.verb) && paths.iter().any(here)
        })
    }
}

impl Subject {
    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Self::User(name) => name == ALL || *name == user.name,
            Self::Group(name) => name == ALL || user.in_group(name),
            Self::ServiceAccount(namespace, name) => {
                let account = user.name.strip_prefix("system:serviceaccount:");
                account
                    .and_then(|account| account.split_once(':'))
                    .is_some_and(|(ns, account)| {
                        ns == namespace && (name == ALL || name == account)
                    })
            }
        }
    }
}

impl ResourceRule {
    fn covers(&self, info: &RequestInfo) -> bool {
        let resource = if info.subresource.is_empty() {
            info.resource.clone()
        } else {
            format!("{}/{}", info.resource, info.subresource)
        };
        let scope = if info.namespace.is_empty() {
            self.cluster_scope
        } else {
            has(&self.namespaces, &info.namespace)
        };
        scope
            && has(&self.verbs, info.verb)
            && has(&self.groups, &info.group)
            && has(&self.resources, &resource)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authn::{GROUP_MASTERS, GROUP_NODES};
    use crate::flow_control::defaults;

    fn level_of(
        plan: &Plan,
        user: &UserInfo,
        resource: &str,
        group: &str,
        namespace: &str,
    ) -> String {
        let info = RequestInfo {
            is_resource: true,
            verb: "update",
            resource: resource.to_owned(),
            group: group.to_owned(),
            namespace: namespace.to_owned(),
            ..RequestInfo::default()
        };
        plan.classify(user, &info).flow.level.to_string()
    }

    #[test]
    fn a_flood_does_not_reach_nodes_and_leases() {
        let plan = Plan::new(&defaults::schemas(), &defaults::levels(), None);
        let all = "system:authenticated";
        let node = UserInfo::new("system:node:a", &[GROUP_NODES, all]);
        let leases = ("leases", "coordination.k8s.io", "kube-node-lease");
        let of = |user: &UserInfo, (resource, group, namespace): (&str, &str, &str)| {
            level_of(&plan, user, resource, group, namespace)
        };
        let pods = ("pods", "", "x");
        assert_eq!(of(&node, leases), "node-high");
        assert_eq!(of(&node, pods), "system");
        let scheduler = UserInfo::new("system:kube-scheduler", &[all]);
        let own = ("leases", "coordination.k8s.io", "kube-system");
        assert_eq!(of(&scheduler, own), "leader-election");
        assert_eq!(of(&scheduler, pods), "workload-high");
        let account = UserInfo::service_account("x", "y", "");
        assert_eq!(of(&account, pods), "workload-low");
        let of_system = UserInfo::service_account("kube-system", "y", "");
        assert_eq!(of(&of_system, pods), "workload-high");
        assert_eq!(of(&UserInfo::new("jane", &[all]), pods), "global-default");
        assert_eq!(of(&UserInfo::new("root", &[GROUP_MASTERS]), pods), "exempt");
    }

    #[test]
    fn an_own_schema_comes_before_the_defaults_by_its_precedence() {
        let mut schemas = defaults::schemas();
        schemas.push(json!({"metadata": {"name": "mine", "uid": "u"}, "spec": {
            "matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "catch-all"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "jane"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["x"]}],
            }],
        }}));
        let plan = Plan::new(&schemas, &defaults::levels(), None);
        let jane = UserInfo::new("jane", &["system:authenticated"]);
        assert_eq!(level_of(&plan, &jane, "pods", "", "x"), "catch-all");
        assert_eq!(level_of(&plan, &jane, "pods", "", "y"), "global-default");
    }
}
