//! What pods and nodes use, as `kubectl top` shows it: `metrics.k8s.io/v1beta1`.
//!
//! On other clusters metrics-server serves this group; where its APIService is, it does so here as well.

use serde_json::Value;
use windlass_machinery::quantity::Quantity;

use crate::resource::{Resource, Verbs};
use crate::table::{Rows, cells};
use crate::tree::Tree;

pub const GROUP: &str = "metrics.k8s.io";

pub fn resources() -> Vec<Resource> {
    let metrics = |kind, plural| {
        Resource::new(GROUP, "v1beta1", kind, plural)
            .verbs(Verbs::Read)
            .columns("CPU, Memory, Window")
            .rules(Rows(row))
    };
    vec![
        metrics("NodeMetrics", "nodes").cluster(),
        metrics("PodMetrics", "pods"),
    ]
}

/// A pod's containers together, as metrics-server prints it.
fn row(object: &Value, _now: i64) -> Vec<Value> {
    let total = |resource: &str| {
        let usages = object.list("containers").iter().map(|one| &one["usage"]);
        let usages = usages.chain([&object["usage"]]);
        let amounts = usages.filter_map(|usage| Quantity::parse(usage.text(resource)).ok());
        let total = amounts.reduce(|sum, one| sum.add(&one));
        total.map(|total| total.to_string()).unwrap_or_default()
    };
    cells![total("cpu"), total("memory"), object.text("window")]
}
