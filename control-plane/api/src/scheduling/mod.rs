//! Priorities of pods: `scheduling.k8s.io/v1`.

pub mod priority_class;

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
        )
        .cluster()
        .short("pc")
        .columns("#Value, ?Global-Default, Age, PreemptionPolicy")
        .rules(priority_class::PriorityClass),
    ]
}
