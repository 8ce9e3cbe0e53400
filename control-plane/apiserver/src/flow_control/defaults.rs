//! The FlowSchemas and priority levels that every cluster has: upstream's mandatory and suggested ones.

use serde_json::{Value, json};

use super::GROUP;

/// Name, shares, percentage that may be lent, and how many queues of which hand size; 0 queues refuse at once.
const LEVELS: [(&str, u32, u32, u32, u32); 7] = [
    ("catch-all", 5, 0, 0, 0),
    ("global-default", 20, 50, 128, 6),
    ("leader-election", 10, 0, 16, 4),
    ("node-high", 40, 25, 64, 6),
    ("system", 30, 33, 64, 6),
    ("workload-high", 40, 50, 128, 6),
    ("workload-low", 100, 90, 128, 6),
];

pub(super) fn levels() -> Vec<Value> {
    let object = |name: &str, spec: Value| {
        json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "PriorityLevelConfiguration",
            "metadata": metadata(name), "spec": spec,
        })
    };
    let exempt = json!({
        "type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0},
    });
    let limited = LEVELS.map(|(name, shares, lendable, queues, hand)| {
        let response = match queues {
            0 => json!({"type": "Reject"}),
            _ => json!({"type": "Queue", "queuing": {
                "queues": queues, "handSize": hand, "queueLengthLimit": 50,
            }}),
        };
        let spec = json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response,
        }});
        object(name, spec)
    });
    std::iter::once(object("exempt", exempt))
        .chain(limited)
        .collect()
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}})
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn system_accounts() -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}})
}

fn everything() -> (Value, Value) {
    (
        json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}]),
        json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]),
    )
}

fn rule(subjects: Vec<Value>, resources: Value, paths: Value) -> Value {
    let mut rule = json!({"subjects": subjects});
    for (key, rules) in [("resourceRules", resources), ("nonResourceRules", paths)] {
        if rules.is_array() {
            rule[key] = rules;
        }
    }
    rule
}

fn all(subjects: Vec<Value>) -> Vec<Value> {
    let (resources, paths) = everything();
    vec![rule(subjects, resources, paths)]
}

fn resources(verbs: &[&str], group: &str, names: &[&str], namespaces: &[&str]) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": names});
    if namespaces.is_empty() {
        rule["clusterScope"] = true.into();
    } else {
        rule["namespaces"] = json!(namespaces);
    }
    rule
}

pub(super) fn schemas() -> Vec<Value> {
    const BY_USER: &str = "ByUser";
    const BY_NAMESPACE: &str = "ByNamespace";
    const LEASES: &str = "coordination.k8s.io";
    let everybody = || {
        vec![
            group("system:unauthenticated"),
            group("system:authenticated"),
        ]
    };
    let manager = || user("system:kube-controller-manager");
    let scheduler = || user("system:kube-scheduler");
    let write: &[&str] = &["get", "create", "update"];
    let probes = json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]);
    let node = json!([
        resources(&["*"], "", &["nodes", "nodes/status"], &[]),
        resources(&["*"], LEASES, &["leases"], &["*"]),
    ]);
    let election = json!([resources(write, LEASES, &["leases"], &["kube-system"])]);
    let elsewhere = json!([resources(write, LEASES, &["leases"], &["*"])]);
    let endpoints = json!([resources(write, "", &["endpoints"], &["*"])]);
    let table = [
        (
            "exempt",
            1,
            "exempt",
            "",
            all(vec![group("system:masters")]),
        ),
        (
            "probes",
            2,
            "exempt",
            "",
            vec![rule(everybody(), Value::Null, probes)],
        ),
        (
            "system-leader-election",
            100,
            "leader-election",
            BY_USER,
            vec![rule(vec![manager(), scheduler()], election, Value::Null)],
        ),
        (
            "endpoint-controller",
            150,
            "workload-high",
            BY_USER,
            vec![rule(vec![manager()], endpoints, Value::Null)],
        ),
        (
            "workload-leader-election",
            200,
            "leader-election",
            BY_USER,
            vec![rule(vec![system_accounts()], elsewhere, Value::Null)],
        ),
        (
            "system-node-high",
            400,
            "node-high",
            BY_USER,
            vec![rule(vec![group("system:nodes")], node, Value::Null)],
        ),
        (
            "system-nodes",
            500,
            "system",
            BY_USER,
            all(vec![group("system:nodes")]),
        ),
        (
            "kube-controller-manager",
            800,
            "workload-high",
            BY_NAMESPACE,
            all(vec![manager()]),
        ),
        (
            "kube-scheduler",
            800,
            "workload-high",
            BY_NAMESPACE,
            all(vec![scheduler()]),
        ),
        (
            "kube-system-service-accounts",
            900,
            "workload-high",
            BY_NAMESPACE,
            all(vec![system_accounts()]),
        ),
        (
            "service-accounts",
            9000,
            "workload-low",
            BY_USER,
            all(vec![group("system:serviceaccounts")]),
        ),
        (
            "global-default",
            9900,
            "global-default",
            BY_USER,
            all(everybody()),
        ),
        ("catch-all", 10000, "catch-all", BY_USER, all(everybody())),
    ];
    table
        .into_iter()
        .map(|(name, precedence, level, flows, rules)| {
            let mut object = json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema",
                "metadata": metadata(name),
                "spec": {
                    "matchingPrecedence": precedence,
                    "priorityLevelConfiguration": {"name": level},
                    "rules": rules,
                },
            });
            if !flows.is_empty() {
                object["spec"]["distinguisherMethod"] = json!({"type": flows});
            }
            object
        })
        .collect()
}
