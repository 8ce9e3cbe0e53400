//! How probes were answered and how long that took, for `/metrics/probes`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use super::Kind;
use crate::model::PodId;

/// In seconds: Prometheus' usual ones, so that dashboards made for the kubelet fit.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The results of all probes on this node since the agent's start.
#[derive(Debug, Default)]
pub(crate) struct Results(Mutex<BTreeMap<Probed, Counts>>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Probed {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    kind: Kind,
}

#[derive(Debug, Default, Clone)]
struct Counts {
    successful: u64,
    failed: u64,
    /// How many probes took at most as long as the bucket says.
    within: [u64; BUCKETS.len()],
    seconds: f64,
}

impl Results {
    pub(super) fn count(
        &self,
        pod: &PodId,
        container: &str,
        kind: Kind,
        success: bool,
        took: Duration,
    ) {
        let probed = Probed {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            container: container.to_owned(),
            kind,
        };
        let mut all = self.0.lock();
        let counts = all.entry(probed).or_default();
        match success {
            true => counts.successful += 1,
            false => counts.failed += 1,
        }
        let seconds = took.as_secs_f64();
        counts.seconds += seconds;
        for (bucket, count) in BUCKETS.iter().zip(&mut counts.within) {
            *count += u64::from(seconds <= *bucket);
        }
    }

    /// In Prometheus' text format; forgets all pods but those with these uids.
    pub(crate) fn text(&self, live: &BTreeSet<String>) -> String {
        let mut all = self.0.lock();
        all.retain(|probed, _| live.contains(&probed.uid));
        let mut text = String::new();
        // Writing into a String cannot fail.
        let (total, duration) = ("prober_probe_total", "prober_probe_duration_seconds");
        let help = "Probes of containers by their result.";
        let _ = writeln!(text, "# HELP {total} {help}\n# TYPE {total} counter");
        for (probed, counts) in &*all {
            let (labels, pod_uid) = (probed.labels(), &probed.uid);
            for (result, count) in [("successful", counts.successful), ("failed", counts.failed)] {
                let labels = format!("{labels},pod_uid=\"{pod_uid}\",result=\"{result}\"");
                let _ = writeln!(text, "{total}{{{labels}}} {count}");
            }
        }
        let help = "How long probes of containers took.";
        let _ = writeln!(
            text,
            "# HELP {duration} {help}\n# TYPE {duration} histogram"
        );
        for (probed, counts) in &*all {
            let (labels, count) = (probed.labels(), counts.successful + counts.failed);
            for (bucket, within) in BUCKETS.iter().zip(counts.within) {
                let _ = writeln!(
                    text,
                    "{duration}_bucket{{{labels},le=\"{bucket}\"}} {within}"
                );
            }
            let _ = writeln!(text, "{duration}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "{duration}_sum{{{labels}}} {}", counts.seconds);
            let _ = writeln!(text, "{duration}_count{{{labels}}} {count}");
        }
        text
    }
}

impl Probed {
    /// None of them needs escapes: the API admits only names without quotes.
    fn labels(&self) -> String {
        let (container, namespace, pod) = (&self.container, &self.namespace, &self.pod);
        let kind = self.kind.name();
        format!(
            "container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",probe_type=\"{kind}\""
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_until_their_pod_is_gone() {
        let pod = |uid: &str| PodId {
            namespace: "ns".into(),
            name: "p".into(),
            uid: uid.into(),
        };
        let results = Results::default();
        let millis = Duration::from_millis;
        results.count(&pod("a"), "c", Kind::Liveness, true, millis(20));
        results.count(&pod("a"), "c", Kind::Liveness, false, millis(2000));
        results.count(&pod("b"), "c", Kind::Readiness, true, millis(1));
        let text = results.text(&BTreeSet::from(["a".to_owned()]));
        let labels = "container=\"c\",namespace=\"ns\",pod=\"p\",probe_type=\"Liveness\"";
        for line in [
            format!("prober_probe_total{{{labels},pod_uid=\"a\",result=\"failed\"}} 1"),
            format!("prober_probe_duration_seconds_bucket{{{labels},le=\"0.025\"}} 1"),
            format!("prober_probe_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("prober_probe_duration_seconds_sum{{{labels}}} 2.02"),
        ] {
            assert!(text.contains(&line), "{line} is missing:\n{text}");
        }
        assert!(!text.contains("Readiness"), "{text}");
    }
}
