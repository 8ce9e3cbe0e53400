//! What the upstream end-to-end suite and the policy conformance tools ask about, as a table of our own.

use k8s_openapi::serde_json::{Value, json};

use super::{OUTSIDE, PODS, XA, XB, YA, ZC, egress, ingress, policy};
use crate::world::{TCP, UDP};

/// One attempt of a case: ends by their places, protocol, port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub from: usize,
    pub to: usize,
    pub protocol: u8,
    pub port: u16,
}

impl Attempt {
    fn is_from(self, namespace: &str) -> bool {
        PODS.get(self.from).is_some_and(|pod| pod.0 == namespace)
    }

    fn is_to(self, namespace: &str) -> bool {
        PODS.get(self.to).is_some_and(|pod| pod.0 == namespace)
    }

    fn is(self, protocol: u8, port: u16) -> bool {
        (self.protocol, self.port) == (protocol, port)
    }
}

pub(super) struct Case {
    pub name: &'static str,
    pub policies: Vec<Value>,
    pub allows: fn(Attempt) -> bool,
}

#[allow(clippy::too_many_lines, reason = "a table")]
pub(super) fn cases() -> Vec<Case> {
    let a = || json!({"matchLabels": {"pod": "a"}});
    let case = |name, policies, allows| Case {
        name,
        policies,
        allows,
    };
    vec![
        case("no policy allows everything", vec![], |_| true),
        case(
            "an empty ingress list isolates a namespace",
            vec![ingress("x", json!({}), json!([]))],
            |it| !it.is_to("x"),
        ),
        case(
            "an empty egress list isolates a namespace",
            vec![egress("x", json!({}), json!([]))],
            |it| !it.is_from("x"),
        ),
        case(
            "both directions at once",
            vec![policy(
                "x",
                json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
            )],
            |it| !it.is_to("x") && !it.is_from("x"),
        ),
        case(
            "an empty rule allows everybody in",
            vec![ingress("x", a(), json!([{}]))],
            |_| true,
        ),
        case(
            "a pod selector means the policy's own namespace",
            vec![ingress(
                "x",
                a(),
                json!([{"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}]),
            )],
            |it| it.to != XA || it.from == XB,
        ),
        case(
            "a namespace selector means all of its pods",
            vec![ingress(
                "x",
                a(),
                json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]),
            )],
            |it| it.to != XA || it.from == YA,
        ),
        case(
            "an empty namespace selector means every pod and nobody outside",
            vec![ingress(
                "x",
                json!({}),
                json!([{"from": [{"namespaceSelector": {}}]}]),
            )],
            |it| !it.is_to("x") || it.from != OUTSIDE,
        ),
        case(
            "both selectors in one peer must match",
            vec![ingress(
                "x",
                json!({"matchLabels": {"pod": "b"}}),
                json!([{"from": [{
                    "namespaceSelector": {"matchExpressions": [
                        {"key": "ns", "operator": "NotIn", "values": ["x"]},
                    ]},
                    "podSelector": a(),
                }]}]),
            )],
            |it| it.to != XB || it.from == YA,
        ),
        case(
            "selectors in two peers need not both match",
            vec![ingress(
                "x",
                json!({"matchLabels": {"pod": "b"}}),
                json!([{"from": [
                    {"namespaceSelector": {"matchLabels": {"ns": "z"}}},
                    {"podSelector": a()},
                ]}]),
            )],
            |it| it.to != XB || it.from == ZC || it.from == XA,
        ),
        case(
            "a port allows its protocol only",
            vec![ingress("x", a(), json!([{"ports": [{"port": 80}]}]))],
            |it| it.to != XA || it.is(TCP, 80),
        ),
        case(
            "udp is not tcp",
            vec![ingress(
                "x",
                a(),
                json!([{"ports": [{"port": 81, "protocol": "UDP"}]}]),
            )],
            |it| it.to != XA || it.is(UDP, 81),
        ),
        case(
            "a named port is the target's",
            vec![ingress(
                "x",
                a(),
                json!([{"ports": [{"port": "serve-81"}]}]),
            )],
            |it| it.to != XA || it.is(TCP, 81),
        ),
        case(
            "a named port in egress is that of whoever is dialled",
            vec![egress("x", a(), json!([{"ports": [{"port": "serve-80"}]}]))],
            |it| it.from != XA || (it.is(TCP, 80) && it.to != OUTSIDE),
        ),
        case(
            "a range of ports ends where it says",
            vec![ingress(
                "x",
                a(),
                json!([{"ports": [{"port": 60, "endPort": 80}, {"port": 81, "endPort": 90, "protocol": "UDP"}]}]),
            )],
            |it| it.to != XA || it.is(TCP, 80) || it.is(UDP, 81),
        ),
        case(
            "a protocol without a port means all of its ports",
            vec![ingress("x", a(), json!([{"ports": [{"protocol": "UDP"}]}]))],
            |it| it.to != XA || it.protocol == UDP,
        ),
        case(
            "rules and policies add up",
            vec![
                ingress("x", a(), json!([{"ports": [{"port": 80}]}])),
                ingress(
                    "x",
                    json!({}),
                    json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]}]),
                ),
            ],
            |it| !it.is_to("x") || it.from == ZC || (it.to == XA && it.is(TCP, 80)),
        ),
        case(
            "egress to a namespace, one port",
            vec![egress(
                "x",
                a(),
                json!([{
                    "to": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}],
                    "ports": [{"port": 80}],
                }]),
            )],
            |it| it.from != XA || (it.to == YA && it.is(TCP, 80)),
        ),
        case(
            "what one end lets out the other must let in",
            vec![
                egress(
                    "x",
                    a(),
                    json!([{"to": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]),
                ),
                ingress("y", json!({}), json!([{"ports": [{"port": 80}]}])),
            ],
            |it| (it.from != XA || it.to == YA) && (it.to != YA || it.is(TCP, 80)),
        ),
        case(
            "a block may be a pod's address",
            vec![ingress(
                "x",
                a(),
                json!([{"from": [{"ipBlock": {"cidr": "10.244.0.12/32"}}]}]),
            )],
            |it| it.to != XA || it.from == YA,
        ),
        case(
            "a block without a pod's address",
            vec![egress(
                "x",
                a(),
                json!([{"to": [{"ipBlock": {"cidr": "10.244.0.0/24", "except": ["10.244.0.12/32"]}}]}]),
            )],
            |it| it.from != XA || matches!(it.to, XB | ZC),
        ),
        case(
            "an exception of one block may be allowed by another",
            vec![egress(
                "x",
                a(),
                json!([{"to": [
                    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/28"]}},
                    {"ipBlock": {"cidr": "10.244.0.13/32"}},
                ]}]),
            )],
            |it| it.from != XA || matches!(it.to, ZC | OUTSIDE),
        ),
        case(
            "a block is who is outside, whatever the node makes of the address",
            vec![ingress(
                "x",
                json!({}),
                json!([{"from": [{"ipBlock": {"cidr": "192.0.2.0/30"}}], "ports": [{"port": 80}]}]),
            )],
            |it| !it.is_to("x") || (it.from == OUTSIDE && it.is(TCP, 80)),
        ),
        case(
            "a selector of nobody concerns nobody",
            vec![ingress(
                "x",
                json!({"matchLabels": {"pod": "none"}}),
                json!([]),
            )],
            |_| true,
        ),
        case(
            "a policy under audit drops nothing",
            vec![json!({
                "metadata": {"namespace": "x", "annotations": {"windlass.dev/audit": "true"}},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
            })],
            |_| true,
        ),
        case(
            "and again everything, with all policies gone",
            vec![],
            |_| true,
        ),
    ]
}
