//! What nodes and containers use at the moment, from two readings of what each node counts.
//!
//! Nothing runs while nobody asks. Whoever asks first waits for the two readings; who asks again within a minute, as
//! autoscalers do, gets what was used since the last one.

mod reading;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use windlass_machinery::status::ApiError;

use self::reading::{Point, Reading};
use crate::server::ApiServer;

/// For how long an answer is good for others too.
const FRESH: Duration = Duration::from_secs(10);
/// After which a reading is no beginning of what is used now.
const STALE: Duration = Duration::from_secs(60);
/// Between the two readings of a node that nobody has asked about lately.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
const PATH: &str = "/metrics/resource";

/// Usage until a time, over a window before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    /// Unix time and length, both in milliseconds.
    pub at: i64,
    pub window: i64,
    /// In billionths of a core.
    pub cpu: i64,
    /// The working set, in bytes.
    pub memory: i64,
}

/// A node and its pods, by namespace and name, and their containers by name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct NodeUsage {
    pub node: Option<Usage>,
    pub pods: HashMap<(String, String), BTreeMap<String, Usage>>,
}

/// The nodes that somebody has asked about.
#[derive(Default)]
pub(crate) struct Usages {
    nodes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Known>>>>,
}

#[derive(Default)]
struct Known {
    last: Option<(Instant, Reading)>,
    usage: Arc<NodeUsage>,
}

impl Usages {
    /// What the node called `name` uses, and each pod there.
    ///
    /// # Errors
    /// When there is no such node, or it does not answer.
    pub(crate) async fn of(
        &self,
        server: &ApiServer,
        name: &str,
    ) -> Result<Arc<NodeUsage>, ApiError> {
        let known = self.known(server, name);
        // Who comes meanwhile waits here for the answer of whom it waits for.
        let mut known = known.lock().await;
        let age = known.last.as_ref().map(|(at, _)| at.elapsed());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(known.usage.clone());
        }
        let before = match known.last.take() {
            Some((_, before)) if age.is_some_and(|age| age < STALE) => before,
            _ => {
                let first = read(server, name).await?;
                tokio::time::sleep(FIRST_WINDOW).await;
                first
            }
        };
        let now = read(server, name).await?;
        known.usage = Arc::new(between(&before, &now));
        known.last = Some((Instant::now(), now));
        Ok(known.usage.clone())
    }

    /// The place of a node; those of nodes that are no more go.
    fn known(&self, server: &ApiServer, name: &str) -> Arc<tokio::sync::Mutex<Known>> {
        let mut known = self.nodes.lock();
        if let Some(found) = known.get(name) {
            return found.clone();
        }
        if let Some(nodes) = server.cacher("", "nodes") {
            known.retain(|name, _| nodes.get("", name).is_some());
        }
        known.entry(name.to_owned()).or_default().clone()
    }
}

async fn read(server: &ApiServer, node: &str) -> Result<Reading, ApiError> {
    let answer = tokio::time::timeout(TIMEOUT, server.nodes.get(server, node, PATH)).await;
    let late = |_| ApiError::service_unavailable(format!("node {node} has not answered in time"));
    Ok(Reading::parse(&answer.map_err(late)??))
}

fn between(before: &Reading, now: &Reading) -> NodeUsage {
    let mut usage = NodeUsage {
        node: now.node.and_then(|point| point.since(before.node)),
        pods: HashMap::new(),
    };
    for (container, point) in &now.containers {
        // One that has begun since is measured from its beginning on.
        let earlier = before.containers.get(container).copied();
        let used = point
            .since(earlier)
            .or_else(|| point.since(point.beginning()));
        if let Some(used) = used {
            let pod = (container.namespace.clone(), container.pod.clone());
            let containers = usage.pods.entry(pod).or_default();
            containers.insert(container.name.clone(), used);
        }
    }
    usage
}

impl Point {
    /// What was used since `earlier`, if that was of the same run.
    fn since(self, earlier: Option<Self>) -> Option<Usage> {
        let earlier = earlier.filter(|earlier| earlier.started == self.started)?;
        let window = self.at - earlier.at;
        let used = self.cpu_seconds - earlier.cpu_seconds;
        (window > 0 && used >= 0.0).then(|| Usage {
            at: self.at,
            window,
            cpu: (used * 1e12 / window as f64) as i64,
            memory: self.memory_bytes as i64,
        })
    }

    /// Where it had used nothing yet.
    fn beginning(self) -> Option<Self> {
        self.started.map(|at| Self {
            at,
            cpu_seconds: 0.0,
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: i64, lines: &[(&str, f64, i64)]) -> Reading {
        let mut text = format!("node_cpu_usage_seconds_total {} {at}\n", at as f64 / 1e4);
        for (name, cpu, started) in lines {
            let labels = format!("{{container=\"{name}\",namespace=\"n\",pod=\"p\"}}");
            text.push_str(&format!(
                "container_cpu_usage_seconds_total{labels} {cpu} {at}\n\
                 container_memory_working_set_bytes{labels} 4096 {at}\n\
                 container_start_time_seconds{labels} {started} {at}\n"
            ));
        }
        Reading::parse(text.as_bytes())
    }

    #[test]
    fn usage_is_what_was_added_between_two_readings_of_the_same_run() {
        let before = reading(100_000, &[("kept", 1.0, 10), ("restarted", 9.0, 10)]);
        let now = reading(
            110_000,
            &[
                ("kept", 1.5, 10),
                ("restarted", 9.5, 100),
                ("new", 0.25, 105),
            ],
        );
        let usage = between(&before, &now);
        let containers = &usage.pods[&("n".to_owned(), "p".to_owned())];
        let shown = |name: &str| {
            let of = containers[name];
            (of.at, of.window, of.cpu, of.memory)
        };
        assert_eq!(shown("kept"), (110_000, 10_000, 50_000_000, 4096));
        assert_eq!(shown("restarted"), (110_000, 10_000, 950_000_000, 4096));
        assert_eq!(shown("new"), (110_000, 5_000, 50_000_000, 4096));
        let node = usage.node.expect("the node's own");
        assert_eq!((node.window, node.cpu), (10_000, 100_000_000));
        // Nothing is known of a node from one reading.
        assert_eq!(between(&Reading::default(), &now).node, None);
    }
}
