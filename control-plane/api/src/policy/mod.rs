//! Limits on voluntary disruptions: `policy/v1`.

pub mod disruption_budget;

use crate::resource::{NameRule, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
        )
        .short("pdb")
        .names(NameRule::PathSegment)
        .status()
        .columns("Min Available, Max Unavailable, #Allowed Disruptions, Age")
        .rules(disruption_budget::PodDisruptionBudget),
    ]
}
