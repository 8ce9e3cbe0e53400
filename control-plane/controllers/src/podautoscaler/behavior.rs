//! How fast a count may change: stabilization windows and policies (KEP-853). Pure.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
};
use tokio::time::Instant;
use windlass_machinery::quantity::Quantity;

use super::replicas::Tolerance;

/// What happened to one autoscaler's target lately.
#[derive(Debug, Default)]
pub(super) struct Memory {
    recommendations: Vec<(Instant, i32)>,
    /// By how much it grew, and shrank.
    ups: Vec<(Instant, i32)>,
    downs: Vec<(Instant, i32)>,
}

/// Longest window and period that the API admits.
const FORGET: Duration = Duration::from_secs(3600);
const DEFAULT_DOWN_WINDOW: i32 = 300;
const DEFAULT_TOLERANCE: f64 = 0.1;

/// Why a recommendation was not followed as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    pub(super) reason: &'static str,
    pub(super) message: &'static str,
}

/// The count to go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) replicas: i32,
    /// An earlier recommendation holds it back.
    pub(super) stabilized: Option<Limited>,
    /// A bound or a policy holds it back.
    pub(super) limited: Option<Limited>,
}

/// The bounds of an autoscaler.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min: i32,
    pub(super) max: i32,
}

fn rules(autoscaler: &HorizontalPodAutoscaler, up: bool) -> HPAScalingRules {
    let behavior = autoscaler
        .spec
        .as_ref()
        .and_then(|spec| spec.behavior.clone());
    let given = behavior.and_then(|behavior| {
        if up {
            behavior.scale_up
        } else {
            behavior.scale_down
        }
    });
    let policy = |kind: &str, value| HPAScalingPolicy {
        type_: kind.to_owned(),
        value,
        period_seconds: 15,
    };
    let mut rules = given.unwrap_or_default();
    if rules.policies.as_ref().is_none_or(Vec::is_empty) {
        rules.policies = Some(if up {
            vec![policy("Pods", 4), policy("Percent", 100)]
        } else {
            vec![policy("Percent", 100)]
        });
    }
    rules
        .stabilization_window_seconds
        .get_or_insert(if up { 0 } else { DEFAULT_DOWN_WINDOW });
    rules
}

pub(super) fn tolerance(autoscaler: &HorizontalPodAutoscaler) -> Tolerance {
    let of = |up| {
        rules(autoscaler, up)
            .tolerance
            .and_then(|text| Quantity::parse(&text.0).ok())
            .map_or(DEFAULT_TOLERANCE, |quantity| quantity.as_f64())
    };
    Tolerance {
        up: of(true),
        down: of(false),
    }
}

impl Memory {
    /// Notes what was done.
    pub(super) fn scaled(&mut self, from: i32, to: i32, now: Instant) {
        if to > from {
            self.ups.push((now, to - from));
        } else {
            self.downs.push((now, from - to));
        }
    }

    fn forget(&mut self, now: Instant) {
        let recent = |(at, _): &(Instant, i32)| now.duration_since(*at) < FORGET;
        self.recommendations.retain(recent);
        self.ups.retain(recent);
        self.downs.retain(recent);
    }

    /// The step from `current` towards `wanted` that may be taken now.
    pub(super) fn step(
        &mut self,
        autoscaler: &HorizontalPodAutoscaler,
        bounds: Bounds,
        current: i32,
        wanted: i32,
        now: Instant,
    ) -> Step {
        self.forget(now);
        let (up, down) = (rules(autoscaler, true), rules(autoscaler, false));
        let stable = self.stabilize(&up, &down, current, wanted, now);
        self.recommendations.push((now, wanted));
        let stabilized = (stable != wanted).then_some({
            if stable < wanted {
                Limited {
                    reason: "ScaleUpStabilized",
                    message: "recent recommendations were lower than current one, applying the lowest \
                              recent recommendation",
                }
            } else {
                Limited {
                    reason: "ScaleDownStabilized",
                    message: "recent recommendations were higher than current one, applying the \
                              highest recent recommendation",
                }
            }
        });
        let (replicas, limited) = self.bound(&up, &down, bounds, current, stable, now);
        Step {
            replicas,
            stabilized,
            limited,
        }
    }

    /// Up to no more than the lowest, down to no less than the highest recommendation of the window.
    fn stabilize(
        &self,
        up: &HPAScalingRules,
        down: &HPAScalingRules,
        current: i32,
        wanted: i32,
        now: Instant,
    ) -> i32 {
        let within = |rules: &HPAScalingRules| {
            let seconds = rules.stabilization_window_seconds.unwrap_or(0);
            let window = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            self.recommendations
                .iter()
                .filter(move |(at, _)| now.duration_since(*at) < window)
                .map(|(_, replicas)| *replicas)
        };
        let lowest = within(up).chain([wanted]).min().unwrap_or(wanted);
        let highest = within(down).chain([wanted]).max().unwrap_or(wanted);
        current.max(lowest).min(highest)
    }

    fn bound(
        &self,
        up: &HPAScalingRules,
        down: &HPAScalingRules,
        bounds: Bounds,
        current: i32,
        wanted: i32,
        now: Instant,
    ) -> (i32, Option<Limited>) {
        let limit = |reason, message| Some(Limited { reason, message });
        if wanted > current {
            let rate = self.most(up, current, now).max(current);
            let most = rate.min(bounds.max);
            if wanted <= most {
                return (wanted, None);
            }
            return if rate < bounds.max {
                let message =
                    "the desired replica count is increasing faster than the maximum scale rate";
                (most, limit("ScaleUpLimit", message))
            } else {
                let message = "the desired replica count is more than the maximum replica count";
                (most, limit("TooManyReplicas", message))
            };
        }
        if wanted < current {
            let rate = self.least(down, current, now).min(current);
            let least = rate.max(bounds.min);
            if wanted >= least {
                return (wanted, None);
            }
            return if rate > bounds.min {
                let message =
                    "the desired replica count is decreasing faster than the maximum scale rate";
                (least, limit("ScaleDownLimit", message))
            } else {
                let message = "the desired replica count is less than the minimum replica count";
                (least, limit("TooFewReplicas", message))
            };
        }
        (wanted, None)
    }

    /// How far up the policies allow.
    fn most(&self, rules: &HPAScalingRules, current: i32, now: Instant) -> i32 {
        let each = rules.policies.iter().flatten().map(|policy| {
            let start = current - recent(&self.ups, policy, now) + recent(&self.downs, policy, now);
            if policy.type_ == "Pods" {
                start + policy.value
            } else {
                share(start, 100 + policy.value)
            }
        });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => each.min().unwrap_or(current),
            _ => each.max().unwrap_or(current),
        }
    }

    /// How far down the policies allow.
    fn least(&self, rules: &HPAScalingRules, current: i32, now: Instant) -> i32 {
        let each = rules.policies.iter().flatten().map(|policy| {
            let start = current + recent(&self.downs, policy, now) - recent(&self.ups, policy, now);
            if policy.type_ == "Pods" {
                start - policy.value
            } else {
                start * (100 - policy.value) / 100
            }
        });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            // The least change is the highest count.
            Some("Min") => each.max().unwrap_or(current),
            _ => each.min().unwrap_or(current),
        }
    }
}

fn share(of: i32, percent: i32) -> i32 {
    let up = (i64::from(of) * i64::from(percent) + 99) / 100;
    i32::try_from(up).unwrap_or(i32::MAX)
}

fn recent(changes: &[(Instant, i32)], policy: &HPAScalingPolicy, now: Instant) -> i32 {
    let period = Duration::from_secs(u64::try_from(policy.period_seconds).unwrap_or(0));
    changes
        .iter()
        .filter(|(at, _)| now.duration_since(*at) < period)
        .map(|(_, by)| by)
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn autoscaler(behavior: Value) -> HorizontalPodAutoscaler {
        serde_json::from_value(json!({"spec": {"maxReplicas": 20, "behavior": behavior,
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}}}))
        .unwrap()
    }

    fn step(
        memory: &mut Memory,
        behavior: Value,
        current: i32,
        wanted: i32,
    ) -> (i32, Option<&'static str>) {
        let bounds = Bounds { min: 2, max: 20 };
        let step = memory.step(
            &autoscaler(behavior),
            bounds,
            current,
            wanted,
            Instant::now(),
        );
        let why = step
            .stabilized
            .or(step.limited)
            .map(|limited| limited.reason);
        (step.replicas, why)
    }

    #[test]
    fn by_default_a_count_doubles_or_grows_by_four_and_shrinks_slowly() {
        let fresh = Memory::default;
        assert_eq!(step(&mut fresh(), json!(null), 2, 5), (5, None));
        assert_eq!(
            step(&mut fresh(), json!(null), 2, 9),
            (6, Some("ScaleUpLimit"))
        );
        assert_eq!(
            step(&mut fresh(), json!(null), 8, 30),
            (16, Some("ScaleUpLimit"))
        );
        assert_eq!(
            step(&mut fresh(), json!(null), 15, 30),
            (20, Some("TooManyReplicas"))
        );
        assert_eq!(
            step(&mut fresh(), json!(null), 8, 1),
            (2, Some("TooFewReplicas"))
        );
        let mut memory = fresh();
        step(&mut memory, json!(null), 8, 8);
        assert_eq!(
            step(&mut memory, json!(null), 8, 3),
            (8, Some("ScaleDownStabilized"))
        );
    }

    #[test]
    fn policies_count_what_was_done_in_their_period() {
        let rules = json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min",
            "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60},
                         {"type": "Percent", "value": 50, "periodSeconds": 60}]}});
        let mut memory = Memory::default();
        assert_eq!(
            step(&mut memory, rules.clone(), 10, 3),
            (8, Some("ScaleDownLimit"))
        );
        memory.scaled(10, 8, Instant::now());
        assert_eq!(step(&mut memory, rules, 8, 3), (8, Some("ScaleDownLimit")));
        let never = json!({"scaleUp": {"selectPolicy": "Disabled"}});
        assert_eq!(
            step(&mut Memory::default(), never, 4, 9),
            (4, Some("ScaleUpLimit"))
        );
    }

    #[test]
    fn tolerance_may_be_told_for_each_direction() {
        let told = tolerance(&autoscaler(json!({"scaleUp": {"tolerance": "50m"}})));
        assert!((told.up - 0.05).abs() < 1e-9 && (told.down - 0.1).abs() < 1e-9);
    }
}
