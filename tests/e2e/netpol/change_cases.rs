//! What is asked while policies, labels, pods and agents come and go.

use serde_json::{Value, json};

use super::cases::{Case, base, is, is_in, only, policy};
use super::model::PodName;
use super::world::{Action, World, labels};

pub(super) fn changes(world: &World) -> Vec<Case> {
    let apply = Action::Apply;
    let neighbour = &world.model.pods[&PodName::new("x", "b")].addresses;
    let [but_neighbour, only_neighbour] = [true, false].map(|but| {
        let blocks = neighbour.iter().map(|address| {
            let all = if address.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            match but {
                true => json!({"ipBlock": {"cidr": all, "except": [only(*address)]}}),
                false => json!({"ipBlock": {"cidr": only(*address)}}),
            }
        });
        json!([{"to": blocks.collect::<Value>()}])
    });
    let a = is("pod", "a");
    let everybody = json!({});
    let ingress = |name: &str, rules: Value| policy(name, "x", &a, "ingress", rules);
    let mut on_81 = base();
    on_81["spec"]["ingress"][0]["ports"] = json!([{"protocol": "UDP", "port": "serve-81-udp"}]);
    let mut labelled = base();
    labelled["spec"]["ingress"][0]["from"] = json!([{"namespaceSelector": is("new-ns", "qrs")}]);
    let mut labelled_pod = base();
    labelled_pod["spec"]["ingress"][0]["from"] = json!([{
        "podSelector": is("new-label", "abc"), "namespaceSelector": is_in("ns", &["y", "z"]),
    }]);
    let yb = PodName::new("y", "b");
    let from_y = |port: u16| json!([{"from": [{"namespaceSelector": is("ns", "y")}], "ports": [{"port": port}]}]);
    let new = labels(&[("ns", "y"), ("new-ns", "qrs")]);
    let xa = PodName::new("x", "a");
    let w = |pod: &str| PodName::new("w", pod);
    let pod_labels = |pod: &str| labels(&[("pod", pod)]);
    vec![
        Case::new(
            "a policy comes and goes",
            vec![
                vec![apply(base())],
                vec![Action::Delete("x", "base".into())],
            ],
        )
        .first(),
        Case::new(
            "a policy changes its port",
            vec![vec![apply(base())], vec![apply(on_81)]],
        )
        .first(),
        Case::new(
            "allow all becomes deny all",
            vec![
                vec![apply(policy("it", "x", &everybody, "ingress", json!([{}])))],
                vec![apply(policy("it", "x", &everybody, "ingress", json!([])))],
                vec![apply(policy("it", "x", &everybody, "egress", json!([])))],
            ],
        )
        .first(),
        Case::new(
            "policies are added one by one",
            vec![
                vec![apply(ingress("on-81", from_y(81)))],
                vec![apply(ingress("on-80", from_y(80)))],
                vec![apply(ingress("all", json!([{}])))],
                vec![Action::Delete("x", "all".into())],
                vec![
                    Action::Delete("x", "on-81".into()),
                    Action::Delete("x", "on-80".into()),
                ],
            ],
        ),
        Case::new(
            "a namespace is labelled, and no longer",
            vec![
                vec![apply(labelled)],
                vec![Action::LabelNamespace("y", new)],
                vec![Action::LabelNamespace("y", labels(&[("ns", "y")]))],
            ],
        )
        .first(),
        Case::new(
            "a pod is labelled, and no longer",
            vec![
                vec![apply(labelled_pod)],
                vec![Action::LabelPod(
                    yb.clone(),
                    labels(&[("pod", "b"), ("new-label", "abc")]),
                )],
                vec![Action::LabelPod(yb, labels(&[("pod", "b")]))],
            ],
        )
        .first(),
        Case::new(
            "a pod becomes a target, and no longer",
            vec![
                vec![apply(policy(
                    "it",
                    "x",
                    &is("target", "isolated"),
                    "ingress",
                    json!([]),
                ))],
                vec![Action::LabelPod(
                    xa.clone(),
                    labels(&[("target", "isolated")]),
                )],
                vec![Action::LabelPod(xa, labels(&[("pod", "a")]))],
            ],
        ),
        Case::new(
            "a namespace with pods comes and goes",
            vec![
                vec![apply(base())],
                vec![
                    Action::CreateNamespace("w", labels(&[("ns", "y")])),
                    Action::CreatePod(w("a"), pod_labels("a")),
                    Action::CreatePod(w("b"), pod_labels("b")),
                ],
                vec![Action::DeletePod(w("a"))],
                vec![Action::DeleteNamespace("w")],
            ],
        ),
        Case::new(
            "a port by its name, and a namespace that has no rule comes and goes",
            vec![
                vec![apply(policy(
                    "it",
                    "x",
                    &everybody,
                    "ingress",
                    json!([{"ports": [{"port": "serve-81-tcp"}]}]),
                ))],
                vec![
                    Action::CreateNamespace("w", labels(&[("ns", "w")])),
                    Action::CreatePod(w("a"), pod_labels("a")),
                ],
                vec![Action::DeletePod(w("a"))],
                vec![Action::DeleteNamespace("w")],
            ],
        ),
        Case::new(
            "an exception becomes all that there is",
            vec![
                vec![apply(policy("it", "x", &a, "egress", but_neighbour))],
                vec![apply(policy("it", "x", &a, "egress", only_neighbour))],
            ],
        ),
        Case::new(
            "a pod comes and goes",
            vec![
                vec![apply(base())],
                vec![Action::CreatePod(PodName::new("x", "e"), pod_labels("b"))],
                vec![Action::DeletePod(PodName::new("x", "e"))],
            ],
        ),
        Case::new(
            "a pod that is ending is still subject to policies",
            vec![
                vec![
                    apply(base()),
                    Action::CreatePod(PodName::new("x", "d"), pod_labels("b")),
                ],
                vec![Action::EndPod(PodName::new("x", "d"))],
                vec![apply(policy(
                    "late",
                    "x",
                    &is("pod", "b"),
                    "ingress",
                    from_y(80),
                ))],
                vec![Action::Delete("x", "late".into())],
                vec![Action::DeletePod(PodName::new("x", "d"))],
            ],
        )
        .first(),
        Case::new(
            "pods come again with other addresses",
            vec![
                vec![apply(base())],
                vec![Action::RecreatePod(PodName::new("x", "a"))],
                vec![Action::RecreatePod(PodName::new("y", "b"))],
            ],
        )
        .first(),
        Case::new(
            "agents are killed while policies change",
            vec![
                vec![apply(base()), Action::KillAgents],
                vec![
                    Action::KillAgents,
                    apply(policy("in", "y", &a, "ingress", json!([]))),
                ],
                vec![
                    Action::Delete("x", "base".into()),
                    Action::KillAgents,
                    Action::LabelPod(PodName::new("y", "a"), labels(&[("pod", "b")])),
                ],
                vec![
                    Action::KillAgents,
                    Action::RecreatePod(PodName::new("y", "b")),
                ],
            ],
        ),
        Case::new(
            "a policy changes while a pod starts",
            vec![vec![
                apply(base()),
                Action::RecreatePod(PodName::new("y", "a")),
                apply(policy("in", "y", &a, "ingress", json!([]))),
                Action::RecreatePod(PodName::new("y", "a")),
                Action::Delete("y", "in".into()),
                apply(policy(
                    "out",
                    "y",
                    &a,
                    "egress",
                    json!([{"ports": [{"port": 81}]}]),
                )),
            ]],
        ),
    ]
}
