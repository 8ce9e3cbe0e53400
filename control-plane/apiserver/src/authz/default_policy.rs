//! The roles and bindings that every cluster has: upstream's bootstrap policy, as a table.
//!
//! They carry `kubernetes.io/bootstrapping: rbac-defaults` and
//! `rbac.authorization.kubernetes.io/autoupdate`, so a server of a newer build adds what they lack.

use serde_json::{Value, json};

use super::controller_roles::{CONTROLLERS, NAMESPACED, NAMESPACED_BINDINGS, OFFERED};

/// verbs, API groups, resources; comma-separated, `""` (here `core`) written as `core`.
struct Rule(&'static str, &'static str, &'static str);

struct Role {
    name: &'static str,
    /// The user-facing role that this one is aggregated into.
    into: &'static str,
    rules: &'static [Rule],
}

const GROUP: &str = "rbac.authorization.k8s.io";
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";
const EVENTS: Rule = Rule("create,patch,update", "core,events.k8s.io", "events");

const fn role(name: &'static str, rules: &'static [Rule]) -> Role {
    Role {
        name,
        into: "",
        rules,
    }
}

const ROLES: &[Role] = &[
    role("cluster-admin", &[Rule("*", "*", "*")]),
    role(
        "system:basic-user",
        &[
            Rule(
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews,selfsubjectrulesreviews",
            ),
            Rule("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    role(
        "system:auth-delegator",
        &[
            Rule("create", "authentication.k8s.io", "tokenreviews"),
            Rule("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    Role {
        name: "windlass:aggregate-metrics-to-view",
        into: "view",
        rules: &[Rule(READ, "metrics.k8s.io", "pods,nodes")],
    },
    Role {
        name: "system:aggregate-to-view",
        into: "view",
        rules: &[
            Rule(
                READ,
                "core",
                "configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status,bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status,namespaces",
            ),
            Rule(READ, "discovery.k8s.io", "endpointslices"),
            Rule(
                READ,
                "apps",
                "controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
            ),
            Rule(
                READ,
                "autoscaling",
                "horizontalpodautoscalers,horizontalpodautoscalers/status",
            ),
            Rule(READ, "batch", "cronjobs,cronjobs/status,jobs,jobs/status"),
            Rule(
                READ,
                "policy",
                "poddisruptionbudgets,poddisruptionbudgets/status",
            ),
            Rule(
                READ,
                "networking.k8s.io",
                "ingresses,ingresses/status,networkpolicies",
            ),
            Rule(
                READ,
                "resource.k8s.io",
                "resourceclaims,resourceclaims/status,resourceclaimtemplates",
            ),
        ],
    },
    Role {
        name: "system:aggregate-to-edit",
        into: "edit",
        rules: &[
            Rule(
                READ,
                "core",
                "pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy",
            ),
            Rule("impersonate", "core", "serviceaccounts"),
            Rule(
                WRITE,
                "core",
                "pods,pods/attach,pods/exec,pods/portforward,pods/proxy,configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy",
            ),
            Rule("create", "core", "pods/eviction,serviceaccounts/token"),
            Rule(
                WRITE,
                "apps",
                "daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale",
            ),
            Rule(WRITE, "autoscaling", "horizontalpodautoscalers"),
            Rule(WRITE, "batch", "cronjobs,jobs"),
            Rule(WRITE, "policy", "poddisruptionbudgets"),
            Rule(WRITE, "networking.k8s.io", "ingresses,networkpolicies"),
            Rule(
                "create,delete,deletecollection,get,list,patch,update,watch",
                "coordination.k8s.io",
                "leases",
            ),
            Rule(
                WRITE,
                "resource.k8s.io",
                "resourceclaims,resourceclaimtemplates",
            ),
        ],
    },
    Role {
        name: "system:aggregate-to-admin",
        into: "admin",
        rules: &[
            Rule(
                "create",
                "authorization.k8s.io",
                "localsubjectaccessreviews",
            ),
            Rule(
                "create,delete,deletecollection,get,list,patch,update,watch",
                "rbac.authorization.k8s.io",
                "rolebindings,roles",
            ),
        ],
    },
    role(
        "system:node",
        &[
            Rule("create", "authentication.k8s.io", "tokenreviews"),
            Rule(
                "create",
                "authorization.k8s.io",
                "localsubjectaccessreviews,subjectaccessreviews",
            ),
            Rule(READ, "core", "services"),
            Rule("create,get,list,watch,patch,update,delete", "core", "nodes"),
            Rule("patch,update", "core", "nodes/status"),
            EVENTS,
            Rule("create,delete,get,list,watch", "core", "pods"),
            Rule("patch,update", "core", "pods/status"),
            Rule("create", "core", "pods/eviction"),
            // Secrets, ConfigMaps, claims and tokens of its own pods: see the Node authorizer.
            Rule(READ, "core", "endpoints,namespaces"),
            Rule("create", "coordination.k8s.io", "leases"),
            Rule("create", "storage.k8s.io", "csinodes"),
            Rule(READ, "storage.k8s.io", "csidrivers"),
            Rule(READ, "node.k8s.io", "runtimeclasses"),
            Rule(
                "create,get,list,watch",
                "certificates.k8s.io",
                "certificatesigningrequests",
            ),
            Rule(READ, "discovery.k8s.io", "endpointslices"),
            Rule(READ, "networking.k8s.io", "networkpolicies"),
        ],
    ),
    role(
        "system:node-proxier",
        &[
            Rule(READ, "core", "services,endpoints"),
            Rule(READ, "core", "nodes"),
            EVENTS,
            Rule(READ, "discovery.k8s.io", "endpointslices"),
            Rule(READ, "networking.k8s.io", "servicecidrs"),
        ],
    ),
    role(
        "system:kube-scheduler",
        &[
            EVENTS,
            Rule(
                "create,get,list,watch,update,patch",
                "coordination.k8s.io",
                "leases",
            ),
            Rule(
                READ,
                "core",
                "nodes,namespaces,replicationcontrollers,services,persistentvolumeclaims,persistentvolumes",
            ),
            Rule("delete,get,list,watch", "core", "pods"),
            Rule("create", "core", "bindings,pods/binding"),
            Rule("patch,update", "core", "pods/status"),
            Rule(READ, "apps", "replicasets,statefulsets"),
            Rule(READ, "policy", "poddisruptionbudgets"),
            Rule(
                READ,
                "storage.k8s.io",
                "csinodes,csidrivers,csistoragecapacities,storageclasses,volumeattachments",
            ),
            Rule(
                READ,
                "resource.k8s.io",
                "deviceclasses,resourceclaims,resourceslices",
            ),
            // Whoever gives devices out writes whose they are.
            Rule(
                "patch,update",
                "resource.k8s.io",
                "resourceclaims,resourceclaims/status",
            ),
            Rule("create", "authentication.k8s.io", "tokenreviews"),
            Rule("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    // With WaitForFirstConsumer the scheduler binds volumes.
    role(
        "system:volume-scheduler",
        &[
            Rule(
                "get,list,patch,update,watch",
                "core",
                "persistentvolumeclaims,persistentvolumes",
            ),
            Rule(READ, "storage.k8s.io", "storageclasses"),
        ],
    ),
    // What a node agent needs beyond upstream's kubelet: it answers cluster DNS and publishes itself for it, and
    // enforces policies.
    role(
        "windlass:node-agent",
        &[
            Rule(
                "create,delete,get,list,patch,update,watch",
                "discovery.k8s.io",
                "endpointslices",
            ),
            // Everybody's pods are peers of this node's in policies.
            Rule(READ, "core", "pods,namespaces,nodes"),
            Rule(READ, "networking.k8s.io", "networkpolicies,servicecidrs"),
            Rule(
                READ,
                "policy.networking.k8s.io",
                "clusternetworkpolicies,adminnetworkpolicies,baselineadminnetworkpolicies",
            ),
        ],
    ),
    // One identity runs every controller: garbage collection and namespace deletion reach every resource.
    role("system:kube-controller-manager", &[Rule("*", "*", "*")]),
    role(
        "system:kube-dns",
        &[Rule("list,watch", "core", "endpoints,services")],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[Rule(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/nodeclient",
        )],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[Rule(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/selfnodeclient",
        )],
    ),
    role(
        "system:node-bootstrapper",
        &[Rule(
            "create,get,list,watch",
            "certificates.k8s.io",
            "certificatesigningrequests",
        )],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            Rule("create,delete,get,list,watch", "core", "persistentvolumes"),
            Rule("get,list,update,watch", "core", "persistentvolumeclaims"),
            Rule(READ, "storage.k8s.io", "storageclasses"),
            Rule("watch", "core", "events"),
            EVENTS,
        ],
    ),
];

/// Roles about paths: name, paths.
const PATH_ROLES: &[(&str, &str)] = &[
    (
        "system:discovery",
        "/api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/",
    ),
    (
        "system:public-info-viewer",
        "/healthz,/livez,/readyz,/version,/version/",
    ),
    (
        "system:monitoring",
        "/healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*",
    ),
    (
        "system:service-account-issuer-discovery",
        "/.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
    ),
];

/// User-facing roles, and into which of them each is aggregated itself.
const AGGREGATED: &[(&str, &str)] = &[("admin", ""), ("edit", "admin"), ("view", "edit")];

/// ClusterRoleBindings: role, subjects as `Group:…` or `User:…`.
const BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["Group:system:masters"]),
    ("system:monitoring", &["Group:system:monitoring"]),
    ("system:discovery", &["Group:system:authenticated"]),
    ("system:basic-user", &["Group:system:authenticated"]),
    (
        "system:public-info-viewer",
        &["Group:system:authenticated", "Group:system:unauthenticated"],
    ),
    (
        "system:service-account-issuer-discovery",
        &["Group:system:serviceaccounts"],
    ),
    ("system:node", &["Group:system:nodes"]),
    // As kubeadm binds it: a node renews its own certificate.
    (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &["Group:system:nodes"],
    ),
    ("windlass:node-agent", &["Group:system:nodes"]),
    ("system:node-proxier", &["User:system:kube-proxy"]),
    ("system:kube-scheduler", &["User:system:kube-scheduler"]),
    ("system:volume-scheduler", &["User:system:kube-scheduler"]),
    (
        "system:kube-controller-manager",
        &["User:system:kube-controller-manager"],
    ),
];

/// Every default object with its resource name.
pub fn objects() -> Vec<(&'static str, Value)> {
    let mut objects = Vec::new();
    for role in ROLES {
        let mut object = cluster_role(role.name, role.rules.iter().map(rule).collect());
        if !role.into.is_empty() {
            object["metadata"]["labels"][aggregation_label(role.into)] = json!("true");
        }
        if role.name == "cluster-admin" || role.name == "system:kube-controller-manager" {
            let all_paths = json!({"verbs": ["*"], "nonResourceURLs": ["*"]});
            object["rules"]
                .as_array_mut()
                .into_iter()
                .for_each(|r| r.push(all_paths.clone()));
        }
        objects.push(("clusterroles", object));
    }
    for (name, paths) in PATH_ROLES {
        let rule = json!({"verbs": ["get"], "nonResourceURLs": list(paths)});
        objects.push(("clusterroles", cluster_role(name, vec![rule])));
    }
    for (name, into) in AGGREGATED {
        let mut object = cluster_role(name, Vec::new());
        object["aggregationRule"] = json!({
            "clusterRoleSelectors": [{"matchLabels": {aggregation_label(name): "true"}}],
        });
        if !into.is_empty() {
            object["metadata"]["labels"][aggregation_label(into)] = json!("true");
        }
        objects.push(("clusterroles", object));
    }
    objects.extend(
        BINDINGS
            .iter()
            .map(|(role, subjects)| ("clusterrolebindings", binding(role, subjects))),
    );
    for (name, rules) in OFFERED {
        objects.push(("clusterroles", cluster_role(name, lines(rules))));
    }
    for (controller, rules) in CONTROLLERS {
        let name = format!("system:controller:{controller}");
        let account = format!("ServiceAccount:{controller}");
        objects.push(("clusterroles", cluster_role(&name, lines(rules))));
        objects.push(("clusterrolebindings", binding(&name, &[&account])));
    }
    for (namespace, name, rules) in NAMESPACED {
        let mut role = cluster_role(name, lines(rules));
        role["kind"] = json!("Role");
        role["metadata"]["namespace"] = json!(namespace);
        objects.push(("roles", role));
    }
    for (namespace, name, role, subjects) in NAMESPACED_BINDINGS {
        let mut binding = binding(name, subjects);
        binding["kind"] = json!("RoleBinding");
        binding["metadata"]["namespace"] = json!(namespace);
        binding["roleRef"] = json!({"apiGroup": GROUP, "kind": "Role", "name": role});
        objects.push(("rolebindings", binding));
    }
    objects
}

/// Rules as [`super::controller_roles`] writes them.
fn lines(text: &'static str) -> Vec<Value> {
    let parse = |line: &'static str| {
        let mut words = line.split_whitespace();
        let (Some(groups), Some(resources), Some(verbs)) =
            (words.next(), words.next(), words.next())
        else {
            return rule(&EVENTS);
        };
        let verbs = list(verbs).into_iter().flat_map(|verb| match verb {
            "read" => list(READ),
            verb => vec![verb],
        });
        let mut object = rule(&Rule("", groups, resources));
        object["verbs"] = verbs.collect();
        if let Some(names) = words.next() {
            object["resourceNames"] = json!(list(names));
        }
        object
    };
    text.lines().map(parse).collect()
}

fn aggregation_label(role: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{role}")
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    })
}

fn cluster_role(name: &str, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "ClusterRole",
        "metadata": metadata(name),
        "rules": rules,
    })
}

fn rule(rule: &Rule) -> Value {
    let groups = list(rule.1)
        .into_iter()
        .map(|g| if g == "core" { "" } else { g });
    json!({
        "verbs": list(rule.0),
        "apiGroups": groups.collect::<Vec<_>>(),
        "resources": list(rule.2),
    })
}

fn list(text: &'static str) -> Vec<&'static str> {
    text.split(',').collect()
}

fn binding(role: &str, subjects: &[&str]) -> Value {
    let subjects =
        subjects
            .iter()
            .filter_map(|s| s.split_once(':'))
            .map(|(kind, name)| match kind {
                "ServiceAccount" => json!({"kind": kind, "name": name, "namespace": "kube-system"}),
                _ => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
            });
    json!({
        "apiVersion": API_VERSION,
        "kind": "ClusterRoleBinding",
        "metadata": metadata(role),
        "roleRef": {
            "apiGroup": GROUP,
            "kind": "ClusterRole",
            "name": role,
        },
        "subjects": subjects.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::UserInfo;
    use crate::authz::{Attributes, Authorizer, Decision, Rbac};

    fn bootstrapped() -> Rbac {
        let rbac = Rbac::default();
        for (resource, object) in objects() {
            rbac.update(
                resource,
                object["metadata"]["namespace"].as_str().unwrap_or_default(),
                object["metadata"]["name"].as_str().unwrap(),
                Some(&object),
            );
        }
        rbac
    }

    fn path(user: &UserInfo, path: &str) -> Decision {
        bootstrapped().authorize(&Attributes {
            user,
            verb: "get",
            group: "",
            version: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path,
        })
    }

    #[test]
    fn an_anonymous_user_sees_health_and_nothing_else() {
        let anonymous = UserInfo::anonymous();
        assert_eq!(path(&anonymous, "/readyz"), Decision::Allow);
        assert_eq!(path(&anonymous, "/api"), Decision::NoOpinion);
        assert_eq!(path(&anonymous, "/metrics"), Decision::NoOpinion);
    }

    #[test]
    fn a_controller_with_an_account_of_its_own_may_do_its_work_and_no_more() {
        let rbac = bootstrapped();
        let account = UserInfo::service_account("kube-system", "replicaset-controller", "u");
        let may = |verb, group, resource, subresource, name| {
            rbac.authorize(&Attributes {
                user: &account,
                verb,
                group,
                version: "v1",
                resource,
                subresource,
                namespace: "default",
                name,
                path: "",
            })
        };
        assert_eq!(may("create", "", "pods", "", ""), Decision::Allow);
        let status = may("update", "apps", "replicasets", "status", "r");
        assert_eq!(status, Decision::Allow);
        assert_eq!(
            may("create", "events.k8s.io", "events", "", ""),
            Decision::Allow
        );
        assert_eq!(may("get", "", "secrets", "", "s"), Decision::NoOpinion);
        for (_, object) in objects() {
            let rules = object["rules"].as_array().into_iter().flatten();
            for rule in rules {
                let verbs = rule["verbs"].as_array().unwrap();
                assert!(
                    !verbs.is_empty() && verbs.iter().all(|v| v != ""),
                    "{object}"
                );
            }
        }
    }

    #[test]
    fn the_admin_role_holds_what_edit_and_view_hold() {
        let rbac = bootstrapped();
        let rules = rbac.rules_of("clusterroles", "", "admin");
        assert!(
            rules
                .iter()
                .any(|r| r.resources.contains(&"rolebindings".to_owned()))
        );
        assert!(
            rules
                .iter()
                .any(|r| r.resources.contains(&"pods/exec".to_owned()))
        );
        assert!(
            rules
                .iter()
                .any(|r| r.resources.contains(&"pods/log".to_owned()))
        );
    }
}
