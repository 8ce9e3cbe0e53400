//! Priority and fairness of requests: `flowcontrol.apiserver.k8s.io/v1`.

use crate::resource::Resource;

fn flowcontrol(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("flowcontrol.apiserver.k8s.io", "v1", kind, plural)
        .cluster()
        .status()
}

pub fn resources() -> Vec<Resource> {
    vec![
        flowcontrol("FlowSchema", "flowschemas")
            .columns("PriorityLevel, MatchingPrecedence, DistinguisherMethod, Age, MissingPL"),
        flowcontrol("PriorityLevelConfiguration", "prioritylevelconfigurations")
            .columns("Type, NominalConcurrencyShares, Queues, HandSize, QueueLengthLimit, Age"),
    ]
}
