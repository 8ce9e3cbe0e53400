//! Scaling by metrics: `autoscaling/v2` (stored) and `autoscaling/v1`.

pub mod conversion;
pub mod horizontal;

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
        )
        .version("v1", conversion::V1)
        .short("hpa")
        .all()
        .status()
        .columns("Reference, Targets, MinPods, MaxPods, Replicas, Age")
        .rules(horizontal::HorizontalPodAutoscaler),
    ]
}
