//! The newer view of Events, `events.k8s.io/v1`; they are stored as core Events.

pub mod event;

use crate::resource::{NameRule, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new("events.k8s.io", "v1", "Event", "events")
            .short("ev")
            .ttl(crate::core::EVENT_TTL)
            .columns(crate::core::EVENT_COLUMNS)
            .names(NameRule::PathSegment)
            .converted(event::CONVERSION)
            .rules(event::Event),
    ]
}
