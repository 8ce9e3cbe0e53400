//! SchedulingGates: a pod with gates is not tried until they are removed (KEP-3521).

use crate::{event::Event, framework::Plugin, pod::PodInfo};

pub(crate) struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn gate(&self, pod: &PodInfo) -> Option<String> {
        let gates = pod
            .spec()
            .scheduling_gates
            .as_ref()
            .filter(|gates| !gates.is_empty())?;
        let names: Vec<_> = gates.iter().map(|gate| gate.name.as_str()).collect();
        Some(format!(
            "waiting for scheduling gates: [{}]",
            names.join(" ")
        ))
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::PodChanged)
    }
}
