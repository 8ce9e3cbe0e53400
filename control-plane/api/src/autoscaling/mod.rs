//! Scaling by metrics: `autoscaling/v2` (stored) and `autoscaling/v1`.

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
        )
        .short("hpa")
        .all()
        .status()
        .columns("Reference, Targets, MinPods, MaxPods, Replicas, Age"),
    ]
}
