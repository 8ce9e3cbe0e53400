//! What policies do to traffic and how soon, as Prometheus reads it, and as Events for those who ask.
//!
//! The programs count by who decided, listened to or not. Both the kernel's table and what is told of it are bounded:
//! whoever may write policies must not be able to flood a monitoring system with names.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use parking_lot::Mutex;
use windlass_datapath::{PolicyDrops, types::Reason};

use super::{classes::Decider, spec::PolicyName};
use crate::histogram::Histogram;

/// So many deciders are told of by name: those that dropped most.
const NAMED: usize = 200;
/// Of all policies that isolate one pod.
const NAMED_OF_ONE: usize = 3;

pub(super) struct PolicyMetrics {
    programming: Mutex<Histogram>,
}

impl Default for PolicyMetrics {
    fn default() -> Self {
        let bounds = [
            0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ];
        Self {
            programming: Mutex::new(Histogram::new(bounds.into_iter())),
        }
    }
}

impl PolicyMetrics {
    /// What was heard at `heard` is in the kernel now.
    pub(super) fn programmed(&self, heard: Instant) {
        let took = heard.elapsed().as_secs_f64();
        self.programming.lock().observe(took);
    }

    /// In Prometheus' text format.
    pub(super) fn text(&self, drops: &[PolicyDrops], deciders: &BTreeMap<u32, Decider>) -> String {
        let mut text = String::new();
        let out = &mut text;
        let name = "windlass_policy_programming_duration_seconds";
        let help = "From a watch's news to its enforcement by the kernel.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        self.programming.lock().write(out, name);

        let name = "windlass_policy_drops_total";
        let help = "Packets that policies dropped, or would have (policy-audited), by who decided.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        let mut series: BTreeMap<[String; 3], u64> = BTreeMap::new();
        let mut drops = drops.to_vec();
        drops.sort_by_key(|one| (Reverse(one.packets), one.rule, one.reason as u32));
        for (index, one) in drops.iter().enumerate() {
            let (policy, decision) = match deciders.get(&one.rule) {
                _ if index >= NAMED => ("(others)".to_owned(), ""),
                Some(decider) if decider.isolation => (named(decider), "isolation"),
                Some(decider) => (named(decider), "rule"),
                // No room for its verdicts, or decided before this agent's time.
                None => ("(unknown)".to_owned(), ""),
            };
            let labels = [policy, decision.to_owned(), one.reason.name().to_owned()];
            *series.entry(labels).or_default() += one.packets;
        }
        for ([policy, decision, reason], packets) in series {
            let _ = writeln!(
                out,
                "{name}{{policy=\"{policy}\",decision=\"{decision}\",reason=\"{reason}\"}} {packets}"
            );
        }
        text
    }
}

fn named(decider: &Decider) -> String {
    let mut names: Vec<String> = decider
        .policies
        .iter()
        .take(NAMED_OF_ONE)
        .map(ToString::to_string)
        .collect();
    let more = decider.policies.len().saturating_sub(names.len());
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(",")
}

/// What policies dropped since they were last asked.
#[derive(Default)]
pub(super) struct Since {
    before: AHashMap<(u32, u32), u64>,
}

impl Since {
    /// By policy, of those that `asked` wants to hear of: how many packets for which reasons.
    pub(super) fn take(
        &mut self,
        drops: &[PolicyDrops],
        deciders: &BTreeMap<u32, Decider>,
        asked: impl Fn(&PolicyName) -> bool,
    ) -> BTreeMap<PolicyName, BTreeMap<&'static str, u64>> {
        let mut told: BTreeMap<PolicyName, BTreeMap<&'static str, u64>> = BTreeMap::new();
        let mut now = AHashMap::new();
        for one in drops {
            let key = (one.rule, one.reason as u32);
            now.insert(key, one.packets);
            let before = self.before.get(&key).copied().unwrap_or_default();
            // One that the kernel forgot and met again begins at one.
            let more = if one.packets < before {
                one.packets
            } else {
                one.packets - before
            };
            let policies = deciders.get(&one.rule).map(|it| it.policies.as_slice());
            for policy in policies.unwrap_or_default() {
                if more > 0 && asked(policy) {
                    let reasons = told.entry(policy.clone()).or_default();
                    *reasons.entry(one.reason.name()).or_default() += more;
                }
            }
        }
        self.before = now;
        told
    }
}

/// The text of an Event about a policy.
pub(super) fn note(node: &str, reasons: &BTreeMap<&'static str, u64>, within: Duration) -> String {
    let audited = Reason::PolicyAudited.name();
    let parts: Vec<String> = reasons
        .iter()
        .map(|(reason, packets)| match *reason == audited {
            true => format!("{packets} packets would have been dropped"),
            false => format!("{packets} packets dropped ({reason})"),
        })
        .collect();
    format!(
        "on node {node}, within {} s: {}",
        within.as_secs(),
        parts.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decider(names: &[&str], isolation: bool) -> Decider {
        let policies = names.iter().map(|name| PolicyName {
            namespace: Some("default".into()),
            name: (*name).to_owned(),
        });
        Decider {
            policies: policies.collect(),
            isolation,
        }
    }

    fn drops(rule: u32, reason: Reason, packets: u64) -> PolicyDrops {
        PolicyDrops {
            rule,
            reason,
            packets,
        }
    }

    #[test]
    fn every_drop_names_its_policy_and_the_rest_is_told_together() {
        let mut deciders = BTreeMap::from([
            (1, decider(&["deny"], false)),
            (2, decider(&["a", "b", "c", "d", "e"], true)),
        ]);
        let mut counted = vec![
            drops(1, Reason::PolicyDeniedEgress, 700),
            drops(2, Reason::IdentityUnknown, 600),
            drops(9, Reason::PolicyDeniedIngress, 500),
        ];
        for rule in 100..400 {
            deciders.insert(rule, decider(&[&format!("p{rule}")], true));
            counted.push(drops(rule, Reason::PolicyDeniedIngress, 2));
        }
        let metrics = PolicyMetrics::default();
        metrics.programmed(Instant::now());
        let text = metrics.text(&counted, &deciders);
        let series = |line: &str| text.contains(&format!("windlass_policy_drops_total{{{line}\n"));
        assert!(series(
            r#"policy="default/deny",decision="rule",reason="policy-denied-egress"} 700"#
        ));
        let isolating = "default/a,default/b,default/c,and 2 more";
        assert!(series(&format!(
            r#"policy="{isolating}",decision="isolation",reason="identity-unknown"}} 600"#
        )));
        assert!(series(
            r#"policy="(unknown)",decision="",reason="policy-denied-ingress"} 500"#
        ));
        let others = 2 * (303 - NAMED);
        assert!(series(&format!(
            r#"policy="(others)",decision="",reason="policy-denied-ingress"}} {others}"#
        )));
        assert!(
            text.lines().count() < NAMED + 40,
            "{}",
            text.lines().count()
        );
        assert!(text.contains("windlass_policy_programming_duration_seconds_count 1\n"));
    }

    #[test]
    fn only_what_is_new_is_told_of_policies_that_ask() {
        let deciders = BTreeMap::from([(1, decider(&["loud", "quiet"], true))]);
        let mut since = Since::default();
        let loud = |name: &PolicyName| name.name == "loud";
        let mut take = |packets| {
            let counted = [drops(1, Reason::PolicyDeniedIngress, packets)];
            let told = since.take(&counted, &deciders, loud);
            let all: Vec<(String, u64)> = told
                .into_iter()
                .map(|(name, reasons)| (name.name, reasons.values().sum()))
                .collect();
            all
        };
        assert_eq!(take(5), [("loud".to_owned(), 5)]);
        assert_eq!(take(5), []);
        assert_eq!(take(7), [("loud".to_owned(), 2)]);
        assert_eq!(take(1), [("loud".to_owned(), 1)]);
        let reasons = BTreeMap::from([("policy-denied-ingress", 2)]);
        assert_eq!(
            note("n1", &reasons, Duration::from_secs(10)),
            "on node n1, within 10 s: 2 packets dropped (policy-denied-ingress)"
        );
    }
}
