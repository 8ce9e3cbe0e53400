//! Priority and fairness of requests: `flowcontrol.apiserver.k8s.io/v1`.

pub mod flow_schema;
pub mod priority_level;

use crate::resource::Resource;

fn flowcontrol(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("flowcontrol.apiserver.k8s.io", "v1", kind, plural)
        .cluster()
        .status()
}

pub fn resources() -> Vec<Resource> {
    vec![
        flowcontrol("FlowSchema", "flowschemas")
            .columns("PriorityLevel, MatchingPrecedence, DistinguisherMethod, Age, MissingPL")
            .rules(flow_schema::FlowSchema),
        flowcontrol("PriorityLevelConfiguration", "prioritylevelconfigurations")
            .columns("Type, NominalConcurrencyShares, Queues, HandSize, QueueLengthLimit, Age")
            .rules(priority_level::PriorityLevelConfiguration),
    ]
}
