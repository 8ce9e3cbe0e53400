//! Reads one metric of an autoscaler and says what it asks for, with the status that shows it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{HorizontalPodAutoscaler, MetricSpec, MetricStatus, MetricTarget},
        core::v1::Pod,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use serde_json::{Value, json};
use windlass_machinery::quantity::Quantity;

use super::{
    Autoscalers,
    behavior::tolerance,
    replicas::{Proposal, Target, Tolerance, per_pod, requests, shared, whole},
};
use crate::pods;

/// A reason in CamelCase with its sentence.
pub(super) type Why = (&'static str, String);

impl Autoscalers {
    pub(super) async fn measure(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        metric: &MetricSpec,
        view: &View<'_>,
    ) -> std::result::Result<(Proposal, String, Option<MetricStatus>), Why> {
        let all: Vec<&Pod> = view.pods.iter().map(Arc::as_ref).collect();
        let tolerance = tolerance(autoscaler);
        match metric.type_.as_str() {
            "Resource" | "ContainerResource" => {
                let of = metric
                    .resource
                    .as_ref()
                    .map(|of| (&of.name, &of.target, None));
                let of_container = metric
                    .container_resource
                    .as_ref()
                    .map(|of| (&of.name, &of.target, Some(of.container.as_str())));
                let reason = if of.is_some() {
                    "FailedGetResourceMetric"
                } else {
                    "FailedGetContainerResourceMetric"
                };
                let (name, target, container) = of.or(of_container).ok_or((
                    "InvalidMetricSourceType",
                    "metric without source".to_owned(),
                ))?;
                let fail = |why: String| {
                    let kind = if target.average_utilization.is_some() {
                        "utilization"
                    } else {
                        "usage"
                    };
                    (reason, format!("failed to get {name} {kind}: {why}"))
                };
                let samples = self
                    .metrics
                    .resource(view.namespace, view.selector, name, container)
                    .await
                    .map_err(fail)?;
                let asked;
                let goal = match target.average_utilization {
                    Some(percent) => {
                        asked = requests(&all, name, container).map_err(fail)?;
                        Target::Utilization {
                            percent: percent.into(),
                            requests: &asked,
                        }
                    }
                    None => Target::Average(milli(target.average_value.as_ref())),
                };
                let is_cpu = name == "cpu";
                let proposal = per_pod(
                    &all,
                    samples,
                    &goal,
                    view.current,
                    tolerance,
                    is_cpu,
                    view.now,
                )
                .map_err(fail)?;
                let scope =
                    container.map_or("resource".to_owned(), |_| "container resource".to_owned());
                let label = label(name, &scope, target);
                let mut source = json!({"name": name, "current": shown(&proposal)});
                let field = match container {
                    Some(container) => {
                        source["container"] = json!(container);
                        "containerResource"
                    }
                    None => "resource",
                };
                Ok((proposal, label, status(&metric.type_, field, source)))
            }
            "Pods" => {
                let invalid = || {
                    (
                        "InvalidMetricSourceType",
                        "metric without source".to_owned(),
                    )
                };
                let of = metric.pods.as_ref().ok_or_else(invalid)?;
                let name = &of.metric.name;
                let fail = |why: String| {
                    (
                        "FailedGetPodsMetric",
                        format!("failed to get pods metric value: {why}"),
                    )
                };
                let samples = self
                    .metrics
                    .pods(
                        view.namespace,
                        view.selector,
                        name,
                        of.metric.selector.as_ref(),
                    )
                    .await
                    .map_err(fail)?;
                let goal = Target::Average(milli(of.target.average_value.as_ref()));
                let proposal = per_pod(
                    &all,
                    samples,
                    &goal,
                    view.current,
                    tolerance,
                    false,
                    view.now,
                )
                .map_err(fail)?;
                let source = json!({"metric": of.metric, "current": shown(&proposal)});
                Ok((
                    proposal,
                    format!("pods metric {name}"),
                    status("Pods", "pods", source),
                ))
            }
            "Object" => {
                let invalid = || {
                    (
                        "InvalidMetricSourceType",
                        "metric without source".to_owned(),
                    )
                };
                let of = metric.object.as_ref().ok_or_else(invalid)?;
                let fail = |why: String| {
                    (
                        "FailedGetObjectMetric",
                        format!("failed to get object metric value: {why}"),
                    )
                };
                let described = &of.described_object;
                let resource = self.resource(described).map_err(fail)?;
                let plural = if resource.group.is_empty() {
                    resource.plural.clone()
                } else {
                    format!("{}.{}", resource.plural, resource.group)
                };
                let value = self
                    .metrics
                    .object(
                        view.namespace,
                        &plural,
                        &described.name,
                        &of.metric.name,
                        of.metric.selector.as_ref(),
                    )
                    .await
                    .map_err(fail)?;
                let proposal = view.of_number(value, &of.target, tolerance);
                let label = format!("{} metric {}", described.kind, of.metric.name);
                let source = json!({"metric": of.metric, "describedObject": described,
                    "current": shown(&proposal)});
                Ok((proposal, label, status("Object", "object", source)))
            }
            "External" => {
                let invalid = || {
                    (
                        "InvalidMetricSourceType",
                        "metric without source".to_owned(),
                    )
                };
                let of = metric.external.as_ref().ok_or_else(invalid)?;
                let name = &of.metric.name;
                let fail = |why: String| {
                    (
                        "FailedGetExternalMetric",
                        format!(
                            "unable to get external metric {}/{name}: {why}",
                            view.namespace
                        ),
                    )
                };
                let value = self
                    .metrics
                    .external(view.namespace, name, of.metric.selector.as_ref())
                    .await
                    .map_err(fail)?;
                let proposal = view.of_number(value, &of.target, tolerance);
                let source = json!({"metric": of.metric, "current": shown(&proposal)});
                Ok((
                    proposal,
                    format!("external metric {name}"),
                    status("External", "external", source),
                ))
            }
            other => Err((
                "InvalidMetricSourceType",
                format!("the HPA controller does not know the metric type {other:?}"),
            )),
        }
    }
}

/// What metrics are read against.
pub(super) struct View<'a> {
    pub(super) namespace: &'a str,
    pub(super) selector: &'a str,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) current: i32,
    pub(super) now: Timestamp,
}

impl View<'_> {
    fn of_number(&self, value: i64, target: &MetricTarget, tolerance: Tolerance) -> Proposal {
        if let Some(average) = &target.average_value {
            return shared(value, milli(Some(average)), self.current, tolerance);
        }
        let ready = self.pods.iter().filter(|pod| pods::is_ready(pod)).count();
        whole(
            value,
            milli(target.value.as_ref()),
            ready,
            self.current,
            tolerance,
        )
    }
}

fn milli(quantity: Option<&ApiQuantity>) -> i64 {
    quantity
        .and_then(|text| Quantity::parse(&text.0).ok())
        .map_or(0, |quantity| quantity.milli_value())
}

fn label(name: &str, scope: &str, target: &MetricTarget) -> String {
    if target.average_utilization.is_some() {
        format!("{name} {scope} utilization (percentage of request)")
    } else {
        format!("{name} {scope}")
    }
}

/// What was measured, as a MetricValueStatus.
fn shown(proposal: &Proposal) -> Value {
    let text = |milli| Quantity::from_milli(milli).to_string();
    match (proposal.value, proposal.utilization) {
        (Some(value), _) => json!({"value": text(value)}),
        (None, Some(percent)) => {
            json!({"averageUtilization": percent, "averageValue": text(proposal.average)})
        }
        (None, None) => json!({"averageValue": text(proposal.average)}),
    }
}

fn status(kind: &str, field: &str, source: Value) -> Option<MetricStatus> {
    serde_json::from_value(json!({"type": kind, field: source})).ok()
}
