//! `/stats/summary` (stats.k8s.io/v1alpha1): what `kubectl top` of old and eviction managers read.

use serde_json::{Value, json};

use super::network::PodNetwork;
use super::node::NodeUsage;
use super::{ContainerUsage, time_text, volumes, without_nulls};
use crate::lookup::VolumeUsage;

pub(super) fn compose(
    node_name: &str,
    node: &NodeUsage,
    containers: &[ContainerUsage],
    networks: &[PodNetwork],
    volumes: &[VolumeUsage],
    pods: &[Value],
) -> Value {
    let mut by_pod: Vec<Value> = Vec::new();
    // They are sorted by pod.
    for of_pod in containers.chunk_by(|a, b| a.uid == b.uid && a.pod == b.pod) {
        by_pod.push(pod(of_pod, networks, volumes, pods));
    }
    let time = time_text(node.at);
    let disk = node.filesystem;
    let interfaces = node.interfaces.iter().map(
        |(name, received, sent)| json!({ "name": name, "rxBytes": received, "txBytes": sent }),
    );
    json!({
        "node": {
            "nodeName": node_name,
            "cpu": without_nulls(json!({
                "time": time,
                "usageNanoCores": node.cpu_nano_cores,
                "usageCoreNanoSeconds": node.cpu_nanoseconds,
            })),
            "memory": {
                "time": time,
                "availableBytes": node.memory_available_bytes,
                "usageBytes": node.memory_usage_bytes,
                "workingSetBytes": node.working_set_bytes,
            },
            "network": { "time": time, "interfaces": interfaces.collect::<Vec<_>>() },
            "fs": {
                "time": time,
                "availableBytes": disk.available_bytes,
                "capacityBytes": disk.capacity_bytes,
                "usedBytes": disk.capacity_bytes.saturating_sub(disk.available_bytes),
                "inodes": disk.inodes,
                "inodesFree": disk.inodes_free,
                "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free),
            },
        },
        "pods": by_pod,
    })
}

fn pod(
    containers: &[ContainerUsage],
    networks: &[PodNetwork],
    volumes: &[VolumeUsage],
    pods: &[Value],
) -> Value {
    let first = &containers[0];
    let at = containers
        .iter()
        .map(|container| container.at)
        .max()
        .unwrap_or_default();
    let sum = |of: fn(&ContainerUsage) -> u64| containers.iter().map(of).sum::<u64>();
    let rates: Vec<u64> = containers
        .iter()
        .filter_map(|one| one.cpu_nano_cores)
        .collect();
    let rate = (!rates.is_empty()).then(|| rates.iter().sum::<u64>());
    let object = pods
        .iter()
        .find(|pod| pod["metadata"]["uid"] == first.uid.as_str());
    without_nulls(json!({
        "podRef": { "name": first.pod, "namespace": first.namespace, "uid": first.uid },
        "startTime": object.map(|pod| pod["status"]["startTime"].clone()),
        "network": PodNetwork::summarize(networks, &first.uid, at),
        "volume": volumes::summarize(&first.uid, volumes, &time_text(at)),
        "containers": containers.iter().map(container).collect::<Vec<_>>(),
        "cpu": without_nulls(json!({
            "time": time_text(at),
            "usageNanoCores": rate,
            "usageCoreNanoSeconds": sum(|one| one.cpu_nanoseconds),
        })),
        "memory": {
            "time": time_text(at),
            "usageBytes": sum(|one| one.usage_bytes),
            "workingSetBytes": sum(|one| one.working_set_bytes),
            "rssBytes": sum(|one| one.rss_bytes),
            "pageFaults": sum(|one| one.page_faults),
            "majorPageFaults": sum(|one| one.major_page_faults),
        },
    }))
}

fn container(usage: &ContainerUsage) -> Value {
    let time = time_text(usage.at);
    let disk = usage.writable_bytes.map(|used| {
        without_nulls(json!({
            "time": time, "usedBytes": used, "inodesUsed": usage.writable_inodes,
        }))
    });
    without_nulls(json!({
        "name": usage.name,
        "cpu": without_nulls(json!({
            "time": time,
            "usageNanoCores": usage.cpu_nano_cores,
            "usageCoreNanoSeconds": usage.cpu_nanoseconds,
        })),
        "memory": {
            "time": time,
            "usageBytes": usage.usage_bytes,
            "workingSetBytes": usage.working_set_bytes,
            "rssBytes": usage.rss_bytes,
            "pageFaults": usage.page_faults,
            "majorPageFaults": usage.major_page_faults,
        },
        "rootfs": disk,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_gathered_by_pod() {
        let usage = |pod: &str, name: &str, cpu| ContainerUsage {
            namespace: "default".into(),
            pod: pod.into(),
            uid: format!("uid-{pod}"),
            name: name.into(),
            at: 1_767_323_045_000_000_000,
            cpu_nanoseconds: cpu,
            working_set_bytes: 10,
            ..Default::default()
        };
        let containers = [usage("a", "x", 1), usage("a", "y", 2), usage("b", "x", 4)];
        let pods = [
            json!({"metadata": {"uid": "uid-a"}, "status": {"startTime": "2026-01-02T00:00:00Z"}}),
        ];
        let summary = compose(
            "node-1",
            &NodeUsage::default(),
            &containers,
            &[],
            &[],
            &pods,
        );
        assert_eq!(summary["node"]["nodeName"], "node-1");
        let [a, b] = &summary["pods"].as_array().expect("a list")[..] else {
            panic!("two pods")
        };
        assert_eq!(
            a["podRef"],
            json!({"name": "a", "namespace": "default", "uid": "uid-a"})
        );
        assert_eq!(a["cpu"]["usageCoreNanoSeconds"], 3);
        assert_eq!(a["cpu"]["time"], "2026-01-02T03:04:05Z");
        assert_eq!(a["memory"]["workingSetBytes"], 20);
        assert_eq!(a["startTime"], "2026-01-02T00:00:00Z");
        assert_eq!(a["containers"][1]["name"], "y");
        assert_eq!(b["containers"].as_array().map(Vec::len), Some(1));
        assert_eq!(b.get("startTime"), None);
    }
}
