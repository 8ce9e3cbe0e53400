//! Reads one metric of an autoscaler and says what it asks for, with the status that shows it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ExternalMetricSource, HorizontalPodAutoscaler, MetricSpec, MetricStatus, MetricTarget,
            ObjectMetricSource, PodsMetricSource,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use serde_json::{Value, json};
use windlass_machinery::quantity::Quantity;

use super::{
    Autoscalers,
    behavior::tolerance,
    replicas::{Proposal, Samples, Target, Tolerance, per_pod, requests, shared, whole},
};
use crate::pods;

/// A reason in CamelCase with its sentence.
pub(super) type Why = (&'static str, String);

/// What a metric asks for, what it is called, and the status that shows it.
type Measured = (Proposal, String, Option<MetricStatus>);

fn no_source() -> Why {
    (
        "InvalidMetricSourceType",
        "metric without source".to_owned(),
    )
}

impl Autoscalers {
    pub(super) async fn measure(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        metric: &MetricSpec,
        view: &View<'_>,
    ) -> Result<Measured, Why> {
        let tolerance = tolerance(autoscaler);
        match metric.type_.as_str() {
            "Resource" => {
                let of = metric.resource.as_ref().ok_or_else(no_source)?;
                let (name, target) = (&of.name, &of.target);
                self.of_resource(name, None, target, tolerance, view).await
            }
            "ContainerResource" => {
                let of = metric.container_resource.as_ref().ok_or_else(no_source)?;
                let (name, target, container) = (&of.name, &of.target, Some(&*of.container));
                self.of_resource(name, container, target, tolerance, view)
                    .await
            }
            "Pods" => {
                let of = metric.pods.as_ref().ok_or_else(no_source)?;
                self.of_pods(of, tolerance, view).await
            }
            "Object" => {
                let of = metric.object.as_ref().ok_or_else(no_source)?;
                self.of_object(of, tolerance, view).await
            }
            "External" => {
                let of = metric.external.as_ref().ok_or_else(no_source)?;
                self.of_external(of, tolerance, view).await
            }
            other => Err((
                "InvalidMetricSourceType",
                format!("the HPA controller does not know the metric type {other:?}"),
            )),
        }
    }

    /// Of whole pods, or of one container of each.
    async fn of_resource(
        &self,
        name: &str,
        container: Option<&str>,
        target: &MetricTarget,
        tolerance: Tolerance,
        view: &View<'_>,
    ) -> Result<Measured, Why> {
        let (kind, field, reason) = match container {
            None => ("Resource", "resource", "FailedGetResourceMetric"),
            Some(_) => (
                "ContainerResource",
                "containerResource",
                "FailedGetContainerResourceMetric",
            ),
        };
        let fail = |why: String| {
            let sought = if target.average_utilization.is_some() {
                "utilization"
            } else {
                "usage"
            };
            (reason, format!("failed to get {name} {sought}: {why}"))
        };
        let samples = self
            .metrics
            .resource(view.namespace, view.selector, name, container)
            .await
            .map_err(|why| fail(format!("unable to get metrics for resource {name}: {why}")))?;
        let asked;
        let goal = match target.average_utilization {
            Some(percent) => {
                asked = requests(&view.all(), name, container).map_err(fail)?;
                Target::Utilization {
                    percent: percent.into(),
                    requests: &asked,
                }
            }
            None => Target::Average(milli(target.average_value.as_ref())),
        };
        let proposal = view
            .per_pod(samples, &goal, tolerance, name == "cpu")
            .map_err(fail)?;
        let scope = container.map_or("resource", |_| "container resource");
        let label = label(name, scope, target);
        let mut source = json!({"name": name, "current": shown(&proposal)});
        if let Some(container) = container {
            source["container"] = json!(container);
        }
        Ok((proposal, label, status(kind, field, source)))
    }

    async fn of_pods(
        &self,
        of: &PodsMetricSource,
        tolerance: Tolerance,
        view: &View<'_>,
    ) -> Result<Measured, Why> {
        let name = &of.metric.name;
        let fail = |why: String| {
            (
                "FailedGetPodsMetric",
                format!("failed to get pods metric value: {why}"),
            )
        };
        let selector = of.metric.selector.as_ref();
        let samples = self
            .metrics
            .pods(view.namespace, view.selector, name, selector)
            .await
            .map_err(|why| fail(format!("unable to get metric {name}: {why}")))?;
        let goal = Target::Average(milli(of.target.average_value.as_ref()));
        let proposal = view
            .per_pod(samples, &goal, tolerance, false)
            .map_err(fail)?;
        let source = json!({"metric": of.metric, "current": shown(&proposal)});
        let label = format!("pods metric {name}");
        Ok((proposal, label, status("Pods", "pods", source)))
    }

    async fn of_object(
        &self,
        of: &ObjectMetricSource,
        tolerance: Tolerance,
        view: &View<'_>,
    ) -> Result<Measured, Why> {
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
        let (name, selector) = (&of.metric.name, of.metric.selector.as_ref());
        let value = self
            .metrics
            .object(view.namespace, &plural, &described.name, name, selector)
            .await
            .map_err(fail)?;
        let proposal = view.of_number(value, &of.target, tolerance);
        let label = format!("{} metric {name}", described.kind);
        let source = json!({"metric": of.metric, "describedObject": described,
            "current": shown(&proposal)});
        Ok((proposal, label, status("Object", "object", source)))
    }

    async fn of_external(
        &self,
        of: &ExternalMetricSource,
        tolerance: Tolerance,
        view: &View<'_>,
    ) -> Result<Measured, Why> {
        let (namespace, name) = (view.namespace, &of.metric.name);
        let fail = |why: String| {
            (
                "FailedGetExternalMetric",
                format!("unable to get external metric {namespace}/{name}: {why}"),
            )
        };
        let value = self
            .metrics
            .external(namespace, name, of.metric.selector.as_ref())
            .await
            .map_err(fail)?;
        let proposal = view.of_number(value, &of.target, tolerance);
        let source = json!({"metric": of.metric, "current": shown(&proposal)});
        let label = format!("external metric {name}");
        Ok((proposal, label, status("External", "external", source)))
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
    fn all(&self) -> Vec<&Pod> {
        self.pods.iter().map(Arc::as_ref).collect()
    }

    fn per_pod(
        &self,
        samples: Samples,
        goal: &Target<'_>,
        tolerance: Tolerance,
        is_cpu: bool,
    ) -> Result<Proposal, String> {
        let (all, current, now) = (self.all(), self.current, self.now);
        per_pod(&all, samples, goal, current, tolerance, is_cpu, now)
    }

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
