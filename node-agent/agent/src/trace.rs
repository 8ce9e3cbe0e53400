//! `windlass-node-agent trace`: what happens to a flow, in sentences.

use windlass_proto::agent::v1::Flow;

use crate::ask::party_words;

/// What was decided, and why.
pub(crate) fn words(flow: &Flow) -> String {
    let party = |party: &Option<_>| party.as_ref().map(party_words).unwrap_or_default();
    let (protocol, from, to) = (
        flow.protocol.to_uppercase(),
        party(&flow.source),
        party(&flow.destination),
    );
    let backend = party(&flow.translated);
    let how = match flow.how.as_str() {
        "" => String::new(),
        how => format!(", {how}"),
    };
    let decision = match (flow.verdict.as_str(), flow.hook.as_str()) {
        ("translated", "socket") => format!(
            "a socket dials it, and is connected to {backend}; its packets go there and need no translation"
        ),
        ("translated", _) if flow.translated.is_some() => {
            format!("a connection begins, and goes to {backend}{how}")
        }
        ("translated" | "forwarded", _) => format!("a connection begins, and passes{how}"),
        ("closed", _) => format!("the connection is over{how}"),
        ("refused", _) => format!("refused at once{}: {}", place(flow), reason(flow)),
        ("audited", _) => format!("passes{}, though {}", place(flow), reason(flow)),
        _ => format!("dropped{}: {}", place(flow), reason(flow)),
    };
    let lost = match flow.lost {
        0 => String::new(),
        lost => format!(" ({lost} events before this one are not shown)"),
    };
    format!("{protocol} from {from} to {to}: {decision}{lost}")
}

fn place(flow: &Flow) -> &'static str {
    match flow.hook.as_str() {
        "from-pod" => " as it left the pod",
        "to-pod" => " before the pod",
        "from-uplink" => " as it came in",
        "to-uplink" => " as it left the node",
        "socket" => " when the socket dialled",
        "xdp" => " before anything else",
        _ => "",
    }
}

fn reason(flow: &Flow) -> String {
    let by = |otherwise: &str| match flow.policy.as_str() {
        "" => otherwise.to_owned(),
        policy => format!("the policy {policy}"),
    };
    match flow.reason.as_str() {
        "rejected-no-endpoint" => "the Service has no endpoint that serves".to_owned(),
        "rejected-unknown-flow" => {
            "it belongs to a connection that this node does not know (any more)".to_owned()
        }
        "dropped-no-service" => "the address is for Services, and none has it".to_owned(),
        "rejected-hop-limit" => "it has come as far as its sender let it".to_owned(),
        "dropped-spoofed-source" => "its source is not the sender's address".to_owned(),
        "dropped-conntrack-full" => "the table of connections is full".to_owned(),
        "dropped-ports-exhausted" => "no source port is free towards its destination".to_owned(),
        "dropped-malformed" => "it is shorter than its headers say".to_owned(),
        "dropped-error" => "the kernel could not rewrite or send it".to_owned(),
        "dropped-no-local-endpoint" => {
            "the Service's policy is Local, and its endpoints are on other nodes".to_owned()
        }
        "dropped-source-range" => {
            "its source is in none of the Service's loadBalancerSourceRanges".to_owned()
        }
        "dropped-denied" => "its source is on the node's deny list".to_owned(),
        "dropped-half-open-quota" => "its sender waits for too many answers already".to_owned(),
        "policy-denied-ingress" => {
            format!("{} does not let it in", by("no policy of the target"))
        }
        "policy-denied-egress" => format!("{} does not let it out", by("no policy of the source")),
        "identity-unknown" => {
            "nothing is known of the other end yet, and only what admits everybody may pass"
                .to_owned()
        }
        "policy-audited" => format!("{}, under audit, would drop it", by("a policy")),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_datapath::types::Reason;
    use windlass_proto::agent::v1::Party;

    fn party(address: &str, port: u32, namespace: &str, pod: &str, service: &str) -> Option<Party> {
        Some(Party {
            address: address.into(),
            port,
            namespace: namespace.into(),
            pod: pod.into(),
            service: service.into(),
            ..Party::default()
        })
    }

    fn flow(verdict: &str, hook: &str) -> Flow {
        Flow {
            verdict: verdict.into(),
            protocol: "tcp".into(),
            hook: hook.into(),
            source: party("10.0.0.1", 40_000, "d", "client", ""),
            destination: party("10.96.0.7", 80, "d", "", "web"),
            ..Flow::default()
        }
    }

    #[test]
    fn each_decision_is_a_sentence() {
        let both = "TCP from 10.0.0.1:40000 (d/client) to 10.96.0.7:80 (service d/web): ";
        let mut begun = flow("translated", "");
        begun.translated = party("10.0.1.9", 8_080, "d", "web-1", "");
        begun.how = "in the node's name".into();
        assert_eq!(
            words(&begun).strip_prefix(both),
            Some("a connection begins, and goes to 10.0.1.9:8080 (d/web-1), in the node's name")
        );
        let mut over = flow("closed", "");
        over.how = "reset by the client".into();
        over.lost = 2;
        assert_eq!(
            words(&over).strip_prefix(both),
            Some(
                "the connection is over, reset by the client (2 events before this one are not shown)"
            )
        );
        let mut refused = flow("refused", "socket");
        refused.reason = "rejected-no-endpoint".into();
        assert_eq!(
            words(&refused).strip_prefix(both),
            Some(
                "refused at once when the socket dialled: the Service has no endpoint that serves"
            )
        );
        let mut dropped = flow("dropped", "to-pod");
        dropped.reason = "policy-denied-ingress".into();
        dropped.policy = "d/deny-all".into();
        assert_eq!(
            words(&dropped).strip_prefix(both),
            Some("dropped before the pod: the policy d/deny-all does not let it in")
        );
    }

    #[test]
    fn every_reason_for_a_drop_has_words() {
        for name in Reason::ALL.map(Reason::name) {
            let mut dropped = flow("dropped", "from-pod");
            dropped.reason = name.into();
            let counted_only = [
                "forwarded",
                "translated",
                "masqueraded",
                "new-connection",
                "fragment-passed",
                "passed-untracked",
            ];
            let told = !reason(&dropped).contains(name);
            assert!(told || counted_only.contains(&name), "{name}");
        }
    }
}
