//! Requests and limits in the kernel's terms.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use windlass_cri::v1::LinuxContainerResources;
use windlass_machinery::quantity::Quantity;

use crate::config::Config;
use crate::model::{Role, slots, spec};
use crate::status::{QosClass, qos_class};

/// The scheduler's period, in microseconds.
pub(crate) const CPU_PERIOD: i64 = 100_000;
/// The least that the kernel takes.
const MIN_SHARES: i64 = 2;
const MIN_QUOTA: i64 = 1_000;
/// From this priority on a pod keeps the node alive.
const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;
const CRITICAL_OOM_SCORE: i64 = -997;

/// The CPU and memory that something asks for or is held to; 0 is "nothing said".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// Requested CPU, in thousandths of a core.
    pub(crate) cpu_request: i64,
    /// The most CPU, in thousandths of a core.
    pub(crate) cpu_limit: i64,
    /// Requested memory, in bytes.
    pub(crate) memory_request: i64,
    /// The most memory, in bytes.
    pub(crate) memory_limit: i64,
}

impl Amounts {
    /// Of one container. What is limited and not requested is requested in full.
    pub(crate) fn of(container: &Container) -> Self {
        container
            .resources
            .as_ref()
            .map(Self::of_resources)
            .unwrap_or_default()
    }

    fn of_resources(resources: &ResourceRequirements) -> Self {
        let read = |limits: bool, name: &str| {
            let map = match limits {
                true => resources.limits.as_ref(),
                false => resources.requests.as_ref(),
            };
            map?.get(name)
                .and_then(|text| Quantity::parse(&text.0).ok())
        };
        let cpu = |limits| read(limits, "cpu").map(|amount| amount.milli_value());
        let memory = |limits| read(limits, "memory").map(|amount| amount.value());
        let (cpu_limit, memory_limit) = (cpu(true), memory(true));
        Self {
            cpu_request: cpu(false).or(cpu_limit).unwrap_or(0),
            cpu_limit: cpu_limit.unwrap_or(0),
            memory_request: memory(false).or(memory_limit).unwrap_or(0),
            memory_limit: memory_limit.unwrap_or(0),
        }
    }

    /// Of a whole pod: its containers together, or an init container where that needs more
    /// (it runs before them, beside the sidecars started until then). A limit holds only if
    /// every container has one.
    pub(crate) fn of_pod(pod: &Pod) -> Self {
        let mut main = Self::of_containers(pod);
        if let Some(resources) = &spec(pod).resources {
            main.say(Self::of_resources(resources));
        }
        let mut amounts = main.amounts;
        let overhead = |name: &str| {
            let overhead = spec(pod).overhead.as_ref()?;
            Quantity::parse(&overhead.get(name)?.0).ok()
        };
        if let Some(cpu) = overhead("cpu") {
            amounts.cpu_request += cpu.milli_value();
            amounts.cpu_limit += cpu.milli_value();
        }
        if let Some(memory) = overhead("memory") {
            amounts.memory_request += memory.value();
            amounts.memory_limit += memory.value();
        }
        if main.cpu_unlimited {
            amounts.cpu_limit = 0;
        }
        if main.memory_unlimited {
            amounts.memory_limit = 0;
        }
        amounts
    }

    fn of_containers(pod: &Pod) -> Sum {
        let mut main = Sum::default();
        let mut sidecars = Sum::default();
        let mut most_init = Sum::default();
        for slot in slots(pod) {
            let amounts = Self::of(&slot.container);
            match slot.role {
                Role::Main => main.add(amounts),
                Role::Sidecar => sidecars.add(amounts),
                // Whoever debugs a pod takes from what it has.
                Role::Ephemeral => {}
                Role::Init => {
                    let mut with_sidecars = sidecars;
                    with_sidecars.add(amounts);
                    most_init.raise_to(with_sidecars);
                }
            }
        }
        main.join(sidecars);
        main.raise_to(most_init);
        main
    }

    /// Of a container in its pod: what holds for the pod as a whole is also the most that a
    /// container may take which says nothing itself (KEP-2837).
    fn in_pod(self, pod: &Pod) -> Self {
        let whole = spec(pod).resources.as_ref();
        let whole = whole.map(Self::of_resources).unwrap_or_default();
        let said = |own: i64, other: i64| if own > 0 { own } else { other };
        let cpu_limit = said(self.cpu_limit, whole.cpu_limit);
        Self {
            cpu_request: said(self.cpu_request, cpu_limit),
            cpu_limit,
            memory_limit: said(self.memory_limit, whole.memory_limit),
            ..self
        }
    }

    /// Enough for both, where 0 as a limit is none.
    pub(crate) fn or_more(self, other: Self) -> Self {
        let limit = |one: i64, other: i64| match (one, other) {
            (0, _) | (_, 0) => 0,
            (one, other) => one.max(other),
        };
        Self {
            cpu_request: self.cpu_request.max(other.cpu_request),
            cpu_limit: limit(self.cpu_limit, other.cpu_limit),
            memory_request: self.memory_request.max(other.memory_request),
            memory_limit: limit(self.memory_limit, other.memory_limit),
        }
    }

    /// The weight against others when CPU is short.
    pub(crate) fn cpu_shares(&self) -> i64 {
        (self.cpu_request * 1024 / 1000).clamp(MIN_SHARES, 262_144)
    }

    /// Microseconds in each period; 0 is unlimited.
    pub(crate) fn cpu_quota(&self) -> i64 {
        match self.cpu_limit {
            0 => 0,
            limit => (limit * CPU_PERIOD / 1000).max(MIN_QUOTA),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Sum {
    amounts: Amounts,
    cpu_unlimited: bool,
    memory_unlimited: bool,
}

impl Sum {
    fn add(&mut self, more: Amounts) {
        self.amounts.cpu_request += more.cpu_request;
        self.amounts.cpu_limit += more.cpu_limit;
        self.amounts.memory_request += more.memory_request;
        self.amounts.memory_limit += more.memory_limit;
        self.cpu_unlimited |= more.cpu_limit == 0;
        self.memory_unlimited |= more.memory_limit == 0;
    }

    fn join(&mut self, other: Self) {
        let (cpu, memory) = (self.cpu_unlimited, self.memory_unlimited);
        self.add(other.amounts);
        self.cpu_unlimited = cpu | other.cpu_unlimited;
        self.memory_unlimited = memory | other.memory_unlimited;
    }

    /// What a pod says for itself as a whole goes before the sum of its containers (KEP-2837).
    fn say(&mut self, own: Amounts) {
        let said = |known: &mut i64, own: i64| {
            if own > 0 {
                *known = own;
            }
        };
        let amounts = &mut self.amounts;
        said(&mut amounts.cpu_request, own.cpu_request);
        said(&mut amounts.cpu_limit, own.cpu_limit);
        said(&mut amounts.memory_request, own.memory_request);
        said(&mut amounts.memory_limit, own.memory_limit);
        self.cpu_unlimited &= own.cpu_limit == 0;
        self.memory_unlimited &= own.memory_limit == 0;
    }

    fn raise_to(&mut self, other: Self) {
        let (mine, theirs) = (&mut self.amounts, other.amounts);
        mine.cpu_request = mine.cpu_request.max(theirs.cpu_request);
        mine.cpu_limit = mine.cpu_limit.max(theirs.cpu_limit);
        mine.memory_request = mine.memory_request.max(theirs.memory_request);
        mine.memory_limit = mine.memory_limit.max(theirs.memory_limit);
        self.cpu_unlimited |= other.cpu_unlimited;
        self.memory_unlimited |= other.memory_unlimited;
    }
}

/// A container's limits for the runtime.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    config: &Config,
    unified_hierarchy: bool,
) -> LinuxContainerResources {
    let amounts = Amounts::of(container).in_pod(pod);
    let quota = amounts.cpu_quota();
    let mut unified = HashMap::new();
    if unified_hierarchy {
        // One process out of memory ends the container: half a container helps nobody.
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    LinuxContainerResources {
        cpu_period: if quota > 0 { CPU_PERIOD } else { 0 },
        cpu_quota: quota,
        cpu_shares: amounts.cpu_shares(),
        memory_limit_in_bytes: amounts.memory_limit,
        oom_score_adj: oom_score_adj(pod, container, config.memory_capacity),
        hugepage_limits: config.huge_pages.limits(container),
        unified,
        ..LinuxContainerResources::default()
    }
}

/// Who is killed first when the node is out of memory: those who asked for the least.
fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if spec(pod)
        .priority
        .is_some_and(|priority| priority >= NODE_CRITICAL_PRIORITY)
    {
        return CRITICAL_OOM_SCORE;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => CRITICAL_OOM_SCORE,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let mut request = Amounts::of(container).memory_request;
            if container.restart_policy.as_deref() == Some("Always") && !is_main(pod, container) {
                // Nobody is killed after those whom it serves (KEP-753).
                let mains = spec(pod).containers.iter();
                let least = mains.map(|main| Amounts::of(main).memory_request).min();
                request = request.max(least.unwrap_or(0));
            }
            request += spare_memory_request(pod);
            let share = request.saturating_mul(1000) / memory_capacity.max(1);
            // Never as safe as Guaranteed (3), never as doomed as BestEffort (1000).
            (1000 - share).clamp(3, 999)
        }
    }
}

/// Each container's part of what the pod asks for beyond its containers (KEP-2837).
fn spare_memory_request(pod: &Pod) -> i64 {
    let Some(resources) = &spec(pod).resources else {
        return 0;
    };
    let whole = Amounts::of_resources(resources).memory_request;
    let inits = spec(pod).init_containers.as_ref().map_or(0, Vec::len);
    let containers = i64::try_from(spec(pod).containers.len() + inits).unwrap_or(i64::MAX);
    (whole - Amounts::of_containers(pod).amounts.memory_request).max(0) / containers.max(1)
}

fn is_main(pod: &Pod, container: &Container) -> bool {
    let mut mains = spec(pod).containers.iter();
    mains.any(|main| main.name == container.name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::launch::test_config;

    fn with_memory(memory_capacity: i64) -> Config {
        Config {
            memory_capacity,
            ..test_config()
        }
    }

    fn pod(inits: serde_json::Value, mains: serde_json::Value) -> Pod {
        let spec = json!({"initContainers": inits, "containers": mains});
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn with(requests: serde_json::Value, limits: serde_json::Value) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn containers_get_weights_quotas_and_limits() {
        let pod = pod(
            json!([]),
            json!([with(
                json!({"cpu": "250m", "memory": "1Gi"}),
                json!({"cpu": "500m"})
            )]),
        );
        let linux = container(
            &pod,
            &spec(&pod).containers[0],
            &with_memory(4 << 30),
            false,
        );
        assert_eq!(linux.cpu_shares, 256);
        assert_eq!((linux.cpu_quota, linux.cpu_period), (50_000, 100_000));
        assert_eq!(linux.memory_limit_in_bytes, 0);
        assert_eq!(linux.oom_score_adj, 750);
        assert!(linux.unified.is_empty());
    }

    #[test]
    fn a_pods_own_limits_hold_for_containers_that_have_none() {
        let mut pod = pod(
            json!([]),
            json!([
                {"name": "c"},
                with(json!({}), json!({"cpu": "100m", "memory": "1Mi"})),
            ]),
        );
        let whole = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "500m", "memory": "100Mi"}});
        pod.spec.as_mut().unwrap().resources = serde_json::from_value(whole).unwrap();
        let limits = [0, 1].map(|index| {
            let linux = container(
                &pod,
                &spec(&pod).containers[index],
                &with_memory(4 << 30),
                true,
            );
            (
                linux.cpu_shares,
                linux.cpu_quota,
                linux.memory_limit_in_bytes,
            )
        });
        assert_eq!(
            limits,
            [(512, 50_000, 100 << 20), (102, 10_000, 1 << 20)],
            "the first as its pod, the second as it says"
        );
    }

    #[test]
    fn the_oom_score_follows_the_class() {
        let score = |container_spec: serde_json::Value| {
            let pod = pod(json!([]), json!([container_spec]));
            container(&pod, &spec(&pod).containers[0], &with_memory(1 << 30), true).oom_score_adj
        };
        assert_eq!(score(json!({"name": "c"})), 1000);
        assert_eq!(
            score(with(json!({}), json!({"cpu": "1", "memory": "1Gi"}))),
            -997
        );
        assert_eq!(score(with(json!({"memory": "2Gi"}), json!({}))), 3);
        assert_eq!(score(with(json!({"cpu": "1"}), json!({}))), 999);
    }

    #[test]
    fn the_oom_score_counts_what_the_pod_asks_for_and_whom_a_sidecar_serves() {
        let scores = |of_pod: serde_json::Value| {
            let request = |size: &str| json!({"requests": {"memory": size}});
            let mut pod = pod(
                json!([
                    {"name": "init", "resources": request("100Mi")},
                    {"name": "sidecar", "restartPolicy": "Always", "resources": request("100Mi")},
                ]),
                json!([
                    {"name": "main", "resources": request("300Mi")},
                    {"name": "least", "resources": request("200Mi")},
                ]),
            );
            let spec = pod.spec.as_mut().unwrap();
            spec.resources = serde_json::from_value(of_pod).unwrap();
            let inits = spec.init_containers.clone().unwrap();
            let all = inits.iter().chain(&spec.containers).cloned();
            let all: Vec<_> = all.collect();
            let score = |c| container(&pod, c, &with_memory(1000 << 20), true).oom_score_adj;
            all.iter().map(score).collect::<Vec<_>>()
        };
        assert_eq!(scores(json!(null)), [900, 800, 700, 800]);
        // 600Mi are asked for by the containers; each of the four gets a quarter of the rest.
        let whole = json!({"requests": {"memory": "1000Mi"}});
        assert_eq!(scores(whole), [800, 700, 600, 700]);
        assert_eq!(
            scores(json!({"requests": {"cpu": "1"}})),
            [900, 800, 700, 800]
        );
    }

    #[test]
    fn a_pod_needs_its_containers_together_or_its_largest_init_container() {
        let amounts = Amounts::of_pod(&pod(
            json!([
                with(json!({}), json!({"cpu": "3", "memory": "1Gi"})),
                {"name": "s", "restartPolicy": "Always", "resources": {
                    "limits": {"cpu": "1", "memory": "1Gi"},
                }},
            ]),
            json!([
                with(json!({"cpu": "500m"}), json!({"cpu": "1", "memory": "1Gi"})),
                with(json!({}), json!({"memory": "1Gi"})),
            ]),
        ));
        assert_eq!(amounts.cpu_request, 3000);
        assert_eq!(amounts.cpu_limit, 0, "one container is unlimited");
        assert_eq!(amounts.memory_limit, 3 << 30);
    }
}
