//! What the node and its containers consume: `/stats/summary`, `/metrics/resource` and
//! `/metrics/cadvisor`.
//!
//! Containers' numbers are the runtime's, the node's are the kernel's.

mod cadvisor;
mod network;
mod node;
mod resource;
mod summary;
mod volumes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use windlass_cri::Runtime;
use windlass_cri::v1::ContainerStats;

use self::network::PodNetwork;
use self::node::NodeUsage;
use crate::lookup::PodLookup;

/// The labels by which the node's own containers are known to the runtime.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

pub(crate) struct Stats {
    node_name: String,
    runtime: Runtime,
    lookup: Arc<dyn PodLookup>,
    /// The last CPU reading of each container and of the node (under the empty id), for rates where the
    /// runtime gives none.
    last: Mutex<HashMap<String, Reading>>,
}

/// CPU time used, at a time; both in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    at: i64,
    used: u64,
}

/// A container's usage, with the names by which it is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
struct ContainerUsage {
    namespace: String,
    pod: String,
    uid: String,
    name: String,
    /// Unix nanoseconds.
    at: i64,
    cpu_nanoseconds: u64,
    cpu_nano_cores: Option<u64>,
    working_set_bytes: u64,
    usage_bytes: u64,
    rss_bytes: u64,
    page_faults: u64,
    major_page_faults: u64,
    writable_bytes: Option<u64>,
    writable_inodes: Option<u64>,
}

impl Stats {
    pub(crate) fn new(node_name: String, runtime: Runtime, lookup: Arc<dyn PodLookup>) -> Self {
        Self {
            node_name,
            runtime,
            lookup,
            last: Mutex::default(),
        }
    }

    pub(crate) async fn summary(&self) -> Result<Value, windlass_cri::Error> {
        let mut node = node::read();
        node.cpu_nano_cores = self.rate("", node.at, node.cpu_nanoseconds);
        let (containers, networks, volumes) =
            tokio::join!(self.containers(), self.networks(), self.lookup.volumes());
        Ok(summary::compose(
            &self.node_name,
            &node,
            &containers?,
            &networks,
            &volumes,
            &self.lookup.pods(),
        ))
    }

    /// Prometheus text of the volumes, under the kubelet's names.
    pub(crate) async fn volume_metrics(&self) -> String {
        volumes::render(&self.lookup.volumes().await)
    }

    /// Prometheus text. What cannot be read is left out, and `resource_scrape_error` says so: a scrape of
    /// the node must not fail with its runtime.
    pub(crate) async fn resource_metrics(&self) -> String {
        let node: NodeUsage = node::read();
        let containers = self.containers().await;
        if let Err(error) = &containers {
            tracing::warn!(%error, "reading the containers' usage failed");
        }
        resource::render(&node, containers.as_deref().ok(), &self.lookup.pods())
    }

    /// As [`Stats::resource_metrics`], under cAdvisor's names.
    pub(crate) async fn cadvisor_metrics(&self) -> Result<String, windlass_cri::Error> {
        let (containers, networks) = tokio::join!(self.containers(), self.networks());
        Ok(cadvisor::render(&containers?, &networks))
    }

    /// None where the runtime does not count it.
    async fn networks(&self) -> Vec<PodNetwork> {
        let stats = self.runtime.list_pod_sandbox_stats().await;
        let stats = stats.unwrap_or_default().into_iter();
        stats.filter_map(PodNetwork::of).collect()
    }

    async fn containers(&self) -> Result<Vec<ContainerUsage>, windlass_cri::Error> {
        let stats = self.runtime.list_container_stats(&[]).await?;
        let mut by_id: HashMap<String, ContainerUsage> =
            stats.into_iter().filter_map(usage).collect();
        for (id, usage) in &mut by_id {
            let rate = self.rate(id, usage.at, usage.cpu_nanoseconds);
            usage.cpu_nano_cores = usage.cpu_nano_cores.or(rate);
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|id, _| id.is_empty() || by_id.contains_key(id));
        Ok(one_for_each(by_id.into_values().collect()))
    }

    /// Nanoseconds of CPU per second since the last reading.
    fn rate(&self, id: &str, at: i64, used: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.insert(id.to_owned(), Reading { at, used })?;
        nano_cores(before, Reading { at, used })
    }
}

fn nano_cores(before: Reading, now: Reading) -> Option<u64> {
    let elapsed = u64::try_from(now.at - before.at)
        .ok()
        .filter(|elapsed| *elapsed > 0)?;
    // A container that restarted under its id begins at zero again.
    let used = now.used.checked_sub(before.used)?;
    u64::try_from(u128::from(used) * 1_000_000_000 / u128::from(elapsed)).ok()
}

/// In the order of their names, one for each: of two instances of a container, as there are while one is
/// removed, the one that was read last.
fn one_for_each(mut usages: Vec<ContainerUsage>) -> Vec<ContainerUsage> {
    fn name(one: &ContainerUsage) -> (&str, &str, &str, &str) {
        (&one.namespace, &one.pod, &one.uid, &one.name)
    }
    usages.sort_by(|a, b| name(a).cmp(&name(b)).then(b.at.cmp(&a.at)));
    usages.dedup_by(|b, a| name(a) == name(b));
    usages
}

/// `None` for what is no container of a pod, and for one that does not run: runtimes list it without usage.
fn usage(stats: ContainerStats) -> Option<(String, ContainerUsage)> {
    let attributes = stats.attributes?;
    if stats.cpu.is_none() && stats.memory.is_none() {
        return None;
    }
    let label = |name: &str| attributes.labels.get(name).cloned();
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let disk = stats.writable_layer.unwrap_or_default();
    let value = |value: Option<windlass_cri::v1::UInt64Value>| value.map(|value| value.value);
    let usage = ContainerUsage {
        namespace: label(POD_NAMESPACE)?,
        pod: label(POD_NAME)?,
        uid: label(POD_UID)?,
        name: label(CONTAINER_NAME)?,
        at: cpu.timestamp.max(memory.timestamp),
        cpu_nanoseconds: value(cpu.usage_core_nano_seconds).unwrap_or_default(),
        cpu_nano_cores: value(cpu.usage_nano_cores).filter(|cores| *cores > 0),
        working_set_bytes: value(memory.working_set_bytes).unwrap_or_default(),
        usage_bytes: value(memory.usage_bytes).unwrap_or_default(),
        rss_bytes: value(memory.rss_bytes).unwrap_or_default(),
        page_faults: value(memory.page_faults).unwrap_or_default(),
        major_page_faults: value(memory.major_page_faults).unwrap_or_default(),
        writable_bytes: value(disk.used_bytes),
        writable_inodes: value(disk.inodes_used),
    };
    Some((attributes.id, usage))
}

/// Unix nanoseconds as the API writes times.
fn time_text(at: i64) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(at)).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_instances_the_last_one_counts() {
        let one = |name: &str, at, used| ContainerUsage {
            name: name.into(),
            at,
            cpu_nanoseconds: used,
            ..Default::default()
        };
        let usages = one_for_each(vec![
            one("b", 1, 1),
            one("a", 1, 2),
            one("a", 5, 3),
            one("a", 0, 4),
        ]);
        let used: Vec<_> = usages.iter().map(|one| one.cpu_nanoseconds).collect();
        assert_eq!(used, [3, 1]);
    }

    #[test]
    fn what_has_no_usage_is_left_out() {
        let labels = [POD_NAME, POD_NAMESPACE, POD_UID, CONTAINER_NAME];
        let labels = labels
            .map(|label| (label.to_owned(), "x".to_owned()))
            .into();
        let attributes = windlass_cri::v1::ContainerAttributes {
            id: "c".into(),
            labels,
            ..Default::default()
        };
        let exited = ContainerStats {
            attributes: Some(attributes),
            ..Default::default()
        };
        assert_eq!(usage(exited.clone()), None);
        let memory = Some(windlass_cri::v1::MemoryUsage {
            timestamp: 7,
            ..Default::default()
        });
        let (id, running) = usage(ContainerStats { memory, ..exited }).expect("runs");
        assert_eq!((id.as_str(), running.at), ("c", 7));
    }

    #[test]
    fn a_rate_needs_two_readings_in_order() {
        let reading = |at, used| Reading { at, used };
        let second = 1_000_000_000;
        assert_eq!(
            nano_cores(reading(0, 0), reading(2 * second, 1_000_000_000)),
            Some(500_000_000)
        );
        assert_eq!(nano_cores(reading(second, 0), reading(second, 5)), None);
        assert_eq!(nano_cores(reading(0, 9), reading(second, 5)), None);
    }
}
