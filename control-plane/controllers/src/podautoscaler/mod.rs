//! HorizontalPodAutoscaler: sets the scale of a workload by what its pods use.
//!
//! `metrics` asks, `replicas` computes what each metric wants, `behavior` how fast to go there; this says
//! in conditions what was done and why not, also in a cluster that has no metrics at all.

mod behavior;
mod measure;
mod metrics;
mod replicas;

use std::{sync::Arc, time::Duration};

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::{
            v1::Scale,
            v2::{
                CrossVersionObjectReference, HorizontalPodAutoscaler,
                HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
            },
        },
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, PostParams},
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};
use windlass_machinery::selector::LabelSelector;

use self::{
    behavior::{Bounds, Memory},
    measure::{View, Why},
    metrics::Metrics,
};
use crate::runtime::{Context, Controller, Outcome, Queue, Result, patch_status, run_workers};

/// Upstream's `--horizontal-pod-autoscaler-sync-period`.
const PERIOD: Duration = Duration::from_secs(15);

struct Autoscalers {
    context: Context,
    autoscalers: Arc<Informer<HorizontalPodAutoscaler>>,
    pods: Arc<Informer<Pod>>,
    metrics: Metrics,
    recorder: Recorder,
    memory: Mutex<AHashMap<Key, Memory>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (autoscalers, pods) = context.synced::<(HorizontalPodAutoscaler, Pod)>().await;
    context.resources.known().await;
    let own = Arc::clone(&queue);
    let _own = autoscalers.on_change(move |change| {
        // Its own status is no news; time is what makes it look again.
        let new = change.object();
        let same = change.previous().is_some_and(|old| {
            old.spec == new.spec
                && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
        });
        if !same || matches!(change, windlass_informers::Change::Deleted(_)) {
            own.add(Key::of(new.as_ref()));
        }
    });
    let controller = Arc::new(Autoscalers {
        recorder: context.recorder.named("horizontal-pod-autoscaler"),
        metrics: Metrics(context.client.clone()),
        context: context.clone(),
        autoscalers,
        pods,
        memory: Mutex::default(),
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

/// What one look at an autoscaler found, gathered for its status.
struct Look {
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

impl Look {
    fn set(&mut self, kind: &str, status: bool, reason: &str, message: impl Into<String>) {
        let status = if status { "True" } else { "False" };
        let conditions = self.status.conditions.get_or_insert_default();
        let since = conditions
            .iter()
            .find(|known| known.type_ == kind && known.status == status)
            .and_then(|known| known.last_transition_time.clone());
        let condition = HorizontalPodAutoscalerCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.into()),
            last_transition_time: Some(since.unwrap_or(Time(self.now))),
        };
        match conditions.iter_mut().find(|known| known.type_ == kind) {
            Some(known) => *known = condition,
            None => conditions.push(condition),
        }
    }
}

impl Controller for Autoscalers {
    type Key = Key;
    const NAME: &'static str = "horizontal-pod-autoscaler";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(autoscaler) = self
            .autoscalers
            .by_key(key)
            .filter(|autoscaler| autoscaler.metadata.deletion_timestamp.is_none())
        else {
            self.memory.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let mut look = Look {
            status: autoscaler.status.clone().unwrap_or_default(),
            now: Timestamp::now(),
        };
        look.status.observed_generation = autoscaler.metadata.generation;
        self.look(key, &autoscaler, &mut look).await;
        let updated = HorizontalPodAutoscaler {
            status: Some(look.status),
            ..autoscaler.as_ref().clone()
        };
        let api = self.context.api(&key.namespace);
        patch_status(&api, autoscaler.as_ref(), &updated).await?;
        Ok(Outcome::Again(PERIOD))
    }
}

impl Autoscalers {
    fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: String) {
        self.recorder
            .record(autoscaler, EventType::Warning, reason, message);
    }

    /// The API of the workload's kind.
    fn target(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> std::result::Result<Api<DynamicObject>, String> {
        let resource = self.resource(target)?;
        Ok(Api::namespaced_with(
            self.context.client.clone(),
            namespace,
            &resource,
        ))
    }

    fn resource(
        &self,
        target: &CrossVersionObjectReference,
    ) -> std::result::Result<ApiResource, String> {
        let version = target.api_version.as_deref().unwrap_or_default();
        let catalog = self.context.resources.catalog();
        let served = catalog.of_kind(version, &target.kind);
        served
            .map(|served| served.resource.clone())
            .ok_or_else(|| format!("no matches for kind {:?} in group {version:?}", target.kind))
    }

    async fn look(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler, look: &mut Look) {
        let Some(spec) = &autoscaler.spec else { return };
        let name = &spec.scale_target_ref.name;
        let found = match self.target(&key.namespace, &spec.scale_target_ref) {
            Ok(api) => match api.get_scale(name).await {
                Ok(scale) => Ok((api, scale)),
                Err(error) => Err(error.to_string()),
            },
            Err(why) => Err(why),
        };
        let (api, mut scale) = match found {
            Ok(found) => found,
            Err(why) => {
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {why}"
                );
                look.set("AbleToScale", false, "FailedGetScale", message);
                return self.warn(autoscaler, "FailedGetScale", why);
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        look.set("AbleToScale", true, "SucceededGetScale", message);
        let current = scale
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(0);
        look.status.current_replicas =
            Some(scale.status.as_ref().map_or(0, |status| status.replicas));
        let bounds = Bounds {
            min: spec.min_replicas.unwrap_or(1),
            max: spec.max_replicas,
        };
        let Some((wanted, why)) = self
            .wanted(key, autoscaler, bounds, current, &scale, look)
            .await
        else {
            look.status.desired_replicas = current;
            return;
        };
        look.status.desired_replicas = wanted;
        if wanted == current {
            return;
        }
        scale.spec.get_or_insert_default().replicas = Some(wanted);
        // The scale carries the resourceVersion that was read: a change in between is a conflict.
        match api
            .replace_scale(name, &PostParams::default(), &scale)
            .await
        {
            Ok(_) => {
                info!(autoscaler = %key, from = current, to = wanted, why, "scaled");
                self.memory.lock().entry(key.clone()).or_default().scaled(
                    current,
                    wanted,
                    Instant::now(),
                );
                look.status.last_scale_time = Some(Time(look.now));
                let message =
                    format!("the HPA controller was able to update the target scale to {wanted}");
                look.set("AbleToScale", true, "SucceededRescale", message);
                let message = format!("New size: {wanted}; reason: {why}");
                self.recorder
                    .record(autoscaler, EventType::Normal, "SuccessfulRescale", message);
            }
            Err(error) => {
                look.status.desired_replicas = current;
                let message =
                    format!("the HPA controller was unable to update the target scale: {error}");
                look.set("AbleToScale", false, "FailedUpdateScale", message);
                let message = format!("New size: {wanted}; reason: {why}; error: {error}");
                self.warn(autoscaler, "FailedRescale", message);
            }
        }
    }

    /// The count to go to, with the reason; `None` when it cannot be told or is not to be touched.
    async fn wanted(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        bounds: Bounds,
        current: i32,
        scale: &Scale,
        look: &mut Look,
    ) -> Option<(i32, String)> {
        if current == 0 && bounds.min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            look.set("ScalingActive", false, "ScalingDisabled", message);
            return None;
        }
        if current > bounds.max {
            let why = "Current number of replicas above Spec.MaxReplicas";
            return Some((bounds.max, why.to_owned()));
        }
        if current < bounds.min {
            let why = "Current number of replicas below Spec.MinReplicas";
            return Some((bounds.min, why.to_owned()));
        }
        let (proposed, metric) = self.propose(key, autoscaler, current, scale, look).await?;
        let step = self.memory.lock().entry(key.clone()).or_default().step(
            autoscaler,
            bounds,
            current,
            proposed,
            Instant::now(),
        );
        match &step.stabilized {
            Some(held) => look.set("AbleToScale", true, held.reason, held.message),
            None => {
                let message = "recommended size matches current size";
                look.set("AbleToScale", true, "ReadyForNewScale", message);
            }
        }
        match &step.limited {
            Some(held) => look.set("ScalingLimited", true, held.reason, held.message),
            None => {
                let message = "the desired count is within the acceptable range";
                look.set("ScalingLimited", false, "DesiredWithinRange", message);
            }
        }
        let why = if proposed > current {
            format!("{metric} above target")
        } else {
            "All metrics below target".to_owned()
        };
        Some((step.replicas, why))
    }

    /// What its pods are told by: the selector's text and the pods that it selects.
    fn selected(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        look: &mut Look,
    ) -> Option<(String, Vec<Arc<Pod>>)> {
        let status = scale.status.as_ref();
        let text = status.and_then(|status| status.selector.clone());
        let selector = text.filter(|text| !text.is_empty()).and_then(|text| {
            let parsed = LabelSelector::parse(&text).ok()?;
            Some((text, parsed))
        });
        let Some((text, selector)) = selector else {
            let message = "the HPA target's scale is missing a selector";
            look.set("ScalingActive", false, "InvalidSelector", message);
            let message = "selector is required".to_owned();
            self.warn(autoscaler, "SelectorRequired", message);
            return None;
        };
        let pods = self.pods.in_namespace(&key.namespace).into_iter();
        let selects = |pod: &Arc<Pod>| {
            let labels = pod.labels();
            selector.matches_with(|key| labels.get(key).map(String::as_str))
        };
        Some((text, pods.filter(selects).collect()))
    }

    /// The largest count that any metric asks for. If some cannot be read, the others may only scale up.
    async fn propose(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        current: i32,
        scale: &Scale,
        look: &mut Look,
    ) -> Option<(i32, String)> {
        let spec = autoscaler.spec.as_ref()?;
        let metrics = spec.metrics.as_deref().unwrap_or_default();
        let (selector, pods) = self.selected(key, autoscaler, scale, look)?;
        let view = View {
            namespace: &key.namespace,
            pods,
            selector: &selector,
            current,
            now: look.now,
        };
        let mut best: Option<(i32, String)> = None;
        let mut statuses = Vec::new();
        let mut failures: Vec<Why> = Vec::new();
        for metric in metrics {
            match self.measure(autoscaler, metric, &view).await {
                Ok((replicas::Proposal { replicas, .. }, label, status)) => {
                    statuses.extend(status);
                    if best.as_ref().is_none_or(|(most, _)| replicas > *most) {
                        best = Some((replicas, label));
                    }
                }
                Err(why) => {
                    self.warn(autoscaler, why.0, why.1.clone());
                    failures.push(why);
                }
            }
        }
        look.status.current_metrics = (!statuses.is_empty()).then_some(statuses);
        if let Some(first) = failures.first()
            && best.as_ref().is_none_or(|(most, _)| *most < current)
        {
            let message = format!(
                "the HPA was unable to compute the replica count: {}",
                first.1
            );
            look.set("ScalingActive", false, first.0, message);
            let message = format!(
                "invalid metrics ({} invalid out of {}), first error is: {}",
                failures.len(),
                metrics.len(),
                first.1
            );
            self.warn(autoscaler, "FailedComputeMetricsReplicas", message);
            return None;
        }
        let (_, label) = best.as_ref()?;
        let message =
            format!("the HPA was able to successfully calculate a replica count from {label}");
        look.set("ScalingActive", true, "ValidMetricFound", message);
        best
    }
}
