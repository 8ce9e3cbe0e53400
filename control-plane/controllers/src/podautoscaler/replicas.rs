//! How many replicas a metric asks for: pure. Pods without a measurement, or not ready yet, are taken as
//! what makes the step smaller, so that the autoscaler errs towards doing less.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use windlass_machinery::quantity::Quantity;

use crate::pods;

/// Upstream's `--horizontal-pod-autoscaler-cpu-initialization-period` and `-initial-readiness-delay`.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_mins(5);
const READINESS_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// What one pod uses, in thousandths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) value: i64,
    pub(super) at: Timestamp,
    /// Over how long it was measured.
    pub(super) window: SignedDuration,
}

pub(super) type Samples = BTreeMap<String, Sample>;

/// What a metric asks for and what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent of the requests, for utilization targets.
    pub(super) utilization: Option<i64>,
    /// The average over the pods, in thousandths.
    pub(super) average: i64,
    /// The whole, in thousandths, for metrics that are one number.
    pub(super) value: Option<i64>,
}

/// How far from the target is near enough, for either direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        1.0 - self.down <= ratio && ratio <= 1.0 + self.up
    }
}

/// Pods by what their measurement is worth.
#[derive(Debug, Default)]
struct Grouped {
    ready: usize,
    unready: Vec<String>,
    missing: Vec<String>,
    ignored: Vec<String>,
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn number(value: i64) -> f64 {
    value as f64
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a float is cut to the integer's range"
)]
fn round_up(value: f64) -> i32 {
    value.ceil() as i32
}

fn group(all: &[&Pod], samples: &Samples, is_cpu: bool, now: Timestamp) -> Grouped {
    let mut grouped = Grouped::default();
    for pod in all {
        let name = pod.name_any();
        if pods::is_terminating(pod) || pods::phase(pod) == "Failed" {
            grouped.ignored.push(name);
            continue;
        }
        if pods::phase(pod) == "Pending" {
            grouped.unready.push(name);
            continue;
        }
        let Some(sample) = samples.get(&name) else {
            grouped.missing.push(name);
            continue;
        };
        if is_cpu && is_starting(pod, sample, now) {
            grouped.unready.push(name);
        } else {
            grouped.ready += 1;
        }
    }
    grouped
}

/// A pod that starts uses CPU for that, which says nothing about its load.
fn is_starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let ready = pods::condition(pod, "Ready");
    let start = pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(start)) = (ready, start) else {
        return true;
    };
    let since = ready
        .last_transition_time
        .as_ref()
        .map_or(start.0, |time| time.0);
    if start.0 + CPU_INITIALIZATION > now {
        return ready.status == "False" || sample.at < since + sample.window;
    }
    ready.status == "False" && start.0 + READINESS_DELAY > since
}

/// Sum of requests of one resource, in thousandths, by pod; an error names a container that asks for
/// nothing, for then a percentage means nothing.
pub(super) fn requests(
    all: &[&Pod],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let mut by_pod = BTreeMap::new();
    for pod in all {
        let spec = pod.spec.as_ref();
        let sidecars = spec
            .and_then(|spec| spec.init_containers.as_ref())
            .into_iter()
            .flatten()
            .filter(|init| init.restart_policy.as_deref() == Some("Always"));
        let containers = spec
            .into_iter()
            .flat_map(|spec| &spec.containers)
            .chain(sidecars);
        let mut sum = 0;
        for candidate in containers.filter(|c| container.is_none_or(|name| c.name == name)) {
            let asked = candidate
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.as_ref())
                .and_then(|requests| requests.get(resource))
                .and_then(|text| Quantity::parse(&text.0).ok());
            let Some(asked) = asked else {
                return Err(format!(
                    "missing request for {resource} in container {} of Pod {}",
                    candidate.name,
                    pod.name_any()
                ));
            };
            sum += asked.milli_value();
        }
        by_pod.insert(pod.name_any(), sum);
    }
    Ok(by_pod)
}

/// Usage as a share of the target, with the utilization in percent.
fn utilization(
    samples: &Samples,
    requests: &BTreeMap<String, i64>,
    target: i64,
) -> Option<(f64, i64)> {
    let (mut used, mut asked) = (0, 0);
    for (name, sample) in samples {
        let Some(request) = requests.get(name) else {
            continue;
        };
        used += sample.value;
        asked += request;
    }
    if asked == 0 || target == 0 {
        return None;
    }
    let percent = used * 100 / asked;
    Some((number(percent) / number(target), percent))
}

fn average(samples: &Samples) -> i64 {
    let sum: i64 = samples.values().map(|sample| sample.value).sum();
    sum / i64::try_from(samples.len()).unwrap_or(1).max(1)
}

/// What each pod is measured against.
#[derive(Clone, Debug)]
pub(super) enum Target<'a> {
    /// Percent of its requests.
    Utilization {
        percent: i64,
        requests: &'a BTreeMap<String, i64>,
    },
    /// Thousandths on average.
    Average(i64),
}

impl Target<'_> {
    fn ratio(&self, samples: &Samples) -> Option<(f64, Option<i64>)> {
        match self {
            Self::Utilization { percent, requests } => {
                let (ratio, seen) = utilization(samples, requests, *percent)?;
                Some((ratio, Some(seen)))
            }
            Self::Average(0) => None,
            Self::Average(target) => Some((number(average(samples)) / number(*target), None)),
        }
    }

    /// What a pod without a measurement is taken to use when there may be too many pods.
    fn assumed(&self, pod: &str) -> i64 {
        match self {
            Self::Utilization { percent, requests } => {
                requests.get(pod).copied().unwrap_or(0) * (*percent).max(100) / 100
            }
            Self::Average(target) => *target,
        }
    }
}

/// A metric that each pod has.
pub(super) fn per_pod(
    all: &[&Pod],
    mut samples: Samples,
    target: &Target<'_>,
    current: i32,
    tolerance: Tolerance,
    is_cpu: bool,
    now: Timestamp,
) -> Result<Proposal, String> {
    let grouped = group(all, &samples, is_cpu, now);
    for name in grouped.ignored.iter().chain(&grouped.unready) {
        samples.remove(name);
    }
    let nothing = "did not receive metrics for targeted pods (pods might be unready)";
    if samples.is_empty() {
        return Err(nothing.to_owned());
    }
    let (ratio, seen) = target.ratio(&samples).ok_or(nothing)?;
    let proposal = |replicas| Proposal {
        replicas,
        utilization: seen,
        average: average(&samples),
        value: None,
    };
    let up_with_unready = ratio > 1.0 && !grouped.unready.is_empty();
    if !up_with_unready && grouped.missing.is_empty() {
        if tolerance.covers(ratio) {
            return Ok(proposal(current));
        }
        let ready = i32::try_from(grouped.ready).unwrap_or(i32::MAX);
        return Ok(proposal(round_up(ratio * f64::from(ready))));
    }
    let mut imagined = samples.clone();
    let imagine = |value| Sample {
        value,
        at: now,
        window: SignedDuration::ZERO,
    };
    for name in &grouped.missing {
        let value = if ratio < 1.0 { target.assumed(name) } else { 0 };
        imagined.insert(name.clone(), imagine(value));
    }
    if up_with_unready {
        for name in &grouped.unready {
            imagined.insert(name.clone(), imagine(0));
        }
    }
    let (careful, _) = target.ratio(&imagined).ok_or(nothing)?;
    let turned = (ratio < 1.0 && careful > 1.0) || (ratio > 1.0 && careful < 1.0);
    if tolerance.covers(careful) || turned {
        return Ok(proposal(current));
    }
    let count = i32::try_from(imagined.len()).unwrap_or(i32::MAX);
    let wanted = round_up(careful * f64::from(count));
    let backwards = (careful < 1.0 && wanted > current) || (careful > 1.0 && wanted < current);
    Ok(proposal(if backwards { current } else { wanted }))
}

/// A metric that is one number for all pods, measured against a number.
pub(super) fn whole(
    value: i64,
    target: i64,
    ready: usize,
    current: i32,
    tolerance: Tolerance,
) -> Proposal {
    let ratio = number(value) / number(target.max(1));
    let replicas = if current == 0 {
        round_up(ratio)
    } else if tolerance.covers(ratio) {
        current
    } else {
        round_up(ratio * f64::from(i32::try_from(ready).unwrap_or(i32::MAX)))
    };
    Proposal {
        replicas,
        utilization: None,
        average: 0,
        value: Some(value),
    }
}

/// A metric that is one number for all pods, of which each should have a share.
pub(super) fn shared(value: i64, target: i64, current: i32, tolerance: Tolerance) -> Proposal {
    let target = target.max(1);
    let ratio = number(value) / (number(target) * f64::from(current.max(1)));
    let near = current > 0 && tolerance.covers(ratio);
    let replicas = if near {
        current
    } else {
        round_up(number(value) / number(target))
    };
    Proposal {
        replicas,
        utilization: None,
        average: value / i64::from(current.max(1)),
        value: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TENTH: Tolerance = Tolerance { up: 0.1, down: 0.1 };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn pod(name: &str, phase: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "startTime": at(0).to_string(), "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": at(10).to_string()}]}}))
        .unwrap()
    }

    fn samples(values: &[(&str, i64)]) -> Samples {
        let sample = |value| Sample {
            value,
            at: at(1000),
            window: SignedDuration::from_secs(30),
        };
        values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), sample(*value)))
            .collect()
    }

    fn proposed(all: &[Pod], values: &[(&str, i64)], percent: i64) -> Result<i32, String> {
        let all: Vec<_> = all.iter().collect();
        let requests = requests(&all, "cpu", None)?;
        let target = Target::Utilization {
            percent,
            requests: &requests,
        };
        let current = i32::try_from(all.len()).unwrap();
        per_pod(
            &all,
            samples(values),
            &target,
            current,
            TENTH,
            true,
            at(1000),
        )
        .map(|proposal| proposal.replicas)
    }

    #[test]
    fn replicas_follow_the_ratio_of_use_to_target() {
        let all = [pod("a", "Running", "True"), pod("b", "Running", "True")];
        let cases = [
            (900, 900, 50, 4),
            (500, 500, 50, 2),
            (520, 520, 50, 2),
            (100, 100, 50, 1),
        ];
        for (a, b, percent, expected) in cases {
            assert_eq!(
                proposed(&all, &[("a", a), ("b", b)], percent),
                Ok(expected),
                "{a} {b}"
            );
        }
    }

    #[test]
    fn what_is_not_known_makes_the_step_smaller() {
        let with_missing = [
            pod("a", "Running", "True"),
            pod("b", "Running", "True"),
            pod("c", "Running", "True"),
        ];
        // Two measured pods at twice the target: with a third at zero 4/3 of three are wanted.
        assert_eq!(
            proposed(&with_missing, &[("a", 1000), ("b", 1000)], 50),
            Ok(4)
        );
        // Two idle pods: the third is taken to be at its full request.
        assert_eq!(
            proposed(&with_missing, &[("a", 100), ("b", 100)], 50),
            Ok(3)
        );
        let with_pending = [pod("a", "Running", "True"), pod("b", "Pending", "False")];
        assert_eq!(proposed(&with_pending, &[("a", 1000)], 50), Ok(2));
        assert!(proposed(&with_pending, &[], 50).is_err());
    }

    #[test]
    fn a_pod_that_asks_for_nothing_has_no_percentage() {
        let mut all = [pod("a", "Running", "True")];
        all[0].spec.as_mut().unwrap().containers[0].resources = None;
        assert_eq!(
            proposed(&all, &[("a", 1)], 50),
            Err("missing request for cpu in container c of Pod a".to_owned())
        );
    }

    #[test]
    fn one_number_is_measured_as_a_whole_or_shared() {
        assert_eq!(whole(4000, 1000, 2, 2, TENTH).replicas, 8);
        assert_eq!(whole(1050, 1000, 2, 2, TENTH).replicas, 2);
        assert_eq!(shared(9000, 1000, 2, TENTH).replicas, 9);
        assert_eq!(shared(2100, 1000, 2, TENTH).replicas, 2);
    }
}
