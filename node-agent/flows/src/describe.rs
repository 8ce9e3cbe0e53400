//! From a kernel event to a flow that people can read.

use std::net::IpAddr;

use windlass_datapath::types::{
    Addr, Direction, FlowEvent, Reason, Tuple, connection, flow_kind, protocol,
};
use windlass_proto::agent::v1::Flow;

use crate::names::Names;

/// `since_boot_to_1970`: what to add to the kernel's time.
pub(crate) fn describe(
    event: &FlowEvent,
    names: &Names,
    policy: impl FnOnce(u32) -> Option<String>,
    node: &str,
    since_boot_to_1970: i64,
) -> Flow {
    let (mut tuple, mut to) = (event.tuple, event.to);
    if event.kind == flow_kind::CLOSE && event.flags & connection::ORIGINAL == 0 {
        // The last packet was an answer: shown as the flow was when it was opened.
        (tuple, to) = (to.reversed(), tuple.reversed());
    }
    let reason = Reason::ALL
        .into_iter()
        .find(|it| *it as u32 == u32::from(event.reason));
    let hook = Direction::ALL
        .into_iter()
        .find(|it| *it as u32 == u32::from(event.direction));
    let is_refusal = event.kind == flow_kind::DROP || event.kind == flow_kind::AUDIT;
    Flow {
        time: i64::try_from(event.time).unwrap_or_default() + since_boot_to_1970,
        node: node.to_owned(),
        verdict: verdict(event, &tuple, &to, reason).to_owned(),
        protocol: protocol_name(tuple.protocol).to_owned(),
        source: Some(names.party(ip(&tuple.src), u16::from_be(tuple.sport))),
        destination: Some(names.party(ip(&tuple.dst), u16::from_be(tuple.dport))),
        translated: (tuple.dst != to.dst || tuple.dport != to.dport)
            .then(|| names.party(ip(&to.dst), u16::from_be(to.dport))),
        reason: reason
            .filter(|_| is_refusal)
            .map(|it| it.name().to_owned())
            .unwrap_or_default(),
        policy: if event.rule == 0 {
            String::new()
        } else {
            policy(event.rule).unwrap_or_default()
        },
        hook: hook.map(|it| it.name().to_owned()).unwrap_or_default(),
        bytes: event.bytes,
        lost: u64::from(event.lost),
        how: how(event).to_owned(),
    }
}

fn how(event: &FlowEvent) -> &'static str {
    let has = |flag| event.flags & flag != 0;
    match event.kind {
        flow_kind::OPEN if has(connection::FORWARDED) => "whose node answers the client itself",
        flow_kind::OPEN if has(connection::MASQUERADED) => "in the node's name",
        flow_kind::CLOSE if has(connection::RESET_ORIGINAL) => "reset by who opened it",
        flow_kind::CLOSE if has(connection::RESET_REPLY) => "reset by the other end",
        flow_kind::CLOSE => "ended by both sides",
        _ => "",
    }
}

fn verdict(event: &FlowEvent, tuple: &Tuple, to: &Tuple, reason: Option<Reason>) -> &'static str {
    match event.kind {
        flow_kind::CLOSE => "closed",
        flow_kind::AUDIT => "audited",
        flow_kind::DROP => match reason {
            // The client is told at once, by a reset, ICMP or an error of its system call.
            Some(
                Reason::RejectedNoEndpoint | Reason::RejectedUnknownFlow | Reason::RejectedHopLimit,
            ) => "refused",
            _ => "dropped",
        },
        _ if tuple == to => "forwarded",
        _ => "translated",
    }
}

fn ip(address: &Addr) -> IpAddr {
    address.to_ip()
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::SCTP => "sctp",
        protocol::ICMP | protocol::ICMPV6 => "icmp",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Tuple {
        Tuple {
            src: Addr::v4(src),
            dst: Addr::v4(dst),
            sport: sport.to_be(),
            dport: dport.to_be(),
            protocol: protocol::TCP,
            pad: [0; 3],
        }
    }

    fn event(kind: u8) -> FlowEvent {
        FlowEvent {
            time: 5,
            tuple: tuple([10, 0, 0, 1], 40_000, [10, 96, 0, 7], 80),
            to: tuple([10, 0, 0, 1], 40_000, [10, 0, 1, 9], 8_080),
            service: 3,
            rule: 0,
            bytes: 60,
            lost: 2,
            flags: 0,
            kind,
            reason: 0,
            direction: 255,
            pad: 0,
        }
    }

    fn described(event: &FlowEvent) -> Flow {
        describe(
            event,
            &Names::default(),
            |rule| Some(format!("rule {rule}")),
            "n1",
            100,
        )
    }

    #[test]
    fn a_connection_to_a_service_shows_where_it_goes() {
        let flow = described(&event(flow_kind::OPEN));
        assert_eq!(
            (flow.verdict.as_str(), flow.time, flow.lost),
            ("translated", 105, 2)
        );
        assert_eq!(flow.translated.unwrap().address, "10.0.1.9");
        assert_eq!((flow.hook.as_str(), flow.how.as_str()), ("", ""));
        let mut forwarded = event(flow_kind::OPEN);
        forwarded.flags = connection::FORWARDED | connection::ORIGINAL;
        assert_eq!(
            described(&forwarded).how,
            "whose node answers the client itself"
        );
    }

    #[test]
    fn an_end_told_by_the_answer_shows_the_flow_as_it_was_opened() {
        let mut close = event(flow_kind::CLOSE);
        (close.tuple, close.to) = (close.to.reversed(), close.tuple.reversed());
        let flow = described(&close);
        assert_eq!(
            (flow.verdict.as_str(), flow.how.as_str()),
            ("closed", "ended by both sides")
        );
        close.flags = connection::RESET_REPLY;
        assert_eq!(described(&close).how, "reset by the other end");
        assert_eq!(flow.source.unwrap().port, 40_000);
        assert_eq!(flow.destination.unwrap().address, "10.96.0.7");
    }

    #[test]
    fn a_drop_names_its_reason_and_its_policy() {
        let mut drop = event(flow_kind::DROP);
        drop.to = drop.tuple;
        drop.reason = Reason::PolicyDeniedIngress as u8;
        drop.direction = Direction::FromPod as u8;
        drop.rule = 7;
        let flow = described(&drop);
        assert_eq!(
            [flow.verdict, flow.reason, flow.policy, flow.hook],
            ["dropped", "policy-denied-ingress", "rule 7", "from-pod"]
        );
        drop.reason = Reason::RejectedNoEndpoint as u8;
        assert_eq!(described(&drop).verdict, "refused");
    }
}
