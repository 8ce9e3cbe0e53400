//! Amounts of what nodes offer and pods ask for, as plain numbers.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use windlass_machinery::quantity::Quantity;

pub(crate) const CPU: &str = "cpu";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
const PODS: &str = "pods";

/// What a container that asks for nothing is taken to use when nodes are scored: 100m of CPU and 200 MB.
pub(crate) const DEFAULT_MILLI_CPU: i64 = 100;
pub(crate) const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// An extended resource or huge pages: scores leave it out for pods that ask for none.
pub(crate) fn is_scalar(name: &str) -> bool {
    !matches!(name, CPU | MEMORY | EPHEMERAL_STORAGE | PODS)
}

type Quantities = BTreeMap<String, ApiQuantity>;

/// CPU in thousandths, everything else in units (bytes, devices).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) milli_cpu: i64,
    pub(crate) memory: i64,
    pub(crate) ephemeral_storage: i64,
    /// Only of nodes: how many pods they take.
    pub(crate) pods: i64,
    /// Extended resources and huge pages.
    pub(crate) scalar: BTreeMap<String, i64>,
}

fn number(name: &str, quantity: &ApiQuantity) -> i64 {
    // The API server has validated quantities; what still does not parse asks for nothing.
    let parsed = Quantity::parse(&quantity.0).unwrap_or(Quantity::ZERO);
    if name == CPU {
        parsed.milli_value()
    } else {
        parsed.value()
    }
}

impl Resources {
    pub(crate) fn of(quantities: &Quantities) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in quantities {
            *resources.slot(name) = number(name, quantity);
        }
        resources
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            CPU => &mut self.milli_cpu,
            MEMORY => &mut self.memory,
            EPHEMERAL_STORAGE => &mut self.ephemeral_storage,
            PODS => &mut self.pods,
            _ => self.scalar.entry(name.to_owned()).or_default(),
        }
    }

    pub(crate) fn get(&self, name: &str) -> i64 {
        match name {
            CPU => self.milli_cpu,
            MEMORY => self.memory,
            EPHEMERAL_STORAGE => self.ephemeral_storage,
            PODS => self.pods,
            _ => self.scalar.get(name).copied().unwrap_or(0),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine.saturating_add(theirs));
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine.saturating_sub(theirs));
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, std::cmp::Ord::max);
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = with(self.pods, other.pods);
        for (name, theirs) in &other.scalar {
            let mine = self.scalar.entry(name.clone()).or_default();
            *mine = with(*mine, *theirs);
        }
    }

    /// Every resource that is asked for at all, by name.
    pub(crate) fn nonzero(&self) -> impl Iterator<Item = (&str, i64)> {
        let fixed = [
            (CPU, self.milli_cpu),
            (MEMORY, self.memory),
            (EPHEMERAL_STORAGE, self.ephemeral_storage),
        ];
        let scalar = self
            .scalar
            .iter()
            .map(|(name, amount)| (name.as_str(), *amount));
        fixed
            .into_iter()
            .chain(scalar)
            .filter(|(_, amount)| *amount > 0)
    }
}

/// What holds of a pod's containers while they run.
struct Running<'a> {
    statuses: Vec<&'a ContainerStatus>,
    /// The node will never give what is asked for now.
    infeasible: bool,
}

impl<'a> Running<'a> {
    fn of(pod: &'a Pod) -> Self {
        let status = pod.status.as_ref();
        let of_containers = status.and_then(|status| status.container_statuses.as_ref());
        let of_sidecars = status.and_then(|status| status.init_container_statuses.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let mut pending = conditions.into_iter().flatten();
        let pending = pending.find(|condition| condition.type_ == "PodResizePending");
        Self {
            statuses: [of_containers, of_sidecars]
                .into_iter()
                .flatten()
                .flatten()
                .collect(),
            infeasible: pending.is_some_and(|it| it.reason.as_deref() == Some("Infeasible")),
        }
    }

    /// What the container asks for, or holds still, or has been given, whichever is most: it may be on the way from
    /// one to the other (KEP-1287). With `fill`, a missing CPU or memory request counts as the default.
    fn requests(&self, container: &Container, fill: bool) -> Resources {
        let mut statuses = self.statuses.iter();
        let status = statuses.find(|status| status.name == container.name);
        let held = status.and_then(|status| status.resources.as_ref());
        let given = held.and_then(|_| status?.allocated_resources.as_ref());
        let asked = container.resources.as_ref();
        let asked = asked.filter(|_| held.is_none() || !self.infeasible);
        let lists = [
            asked.and_then(|it| it.requests.as_ref()),
            held.and_then(|it| it.requests.as_ref()),
            given,
        ];
        let mut resources = Resources::default();
        for list in lists.into_iter().flatten() {
            resources.raise_to(&Resources::of(list));
        }
        let names = |name| lists.into_iter().flatten().any(|it| it.contains_key(name));
        if fill && !names(CPU) {
            resources.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if fill && !names(MEMORY) {
            resources.memory = DEFAULT_MEMORY;
        }
        resources
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod asks for: the larger of all its containers together and the most demanding moment of
/// its initialisation, sidecars running through both (KEP-753), plus overhead; pod-level requests take the
/// place of the sum where they are given (KEP-2837).
pub(crate) fn pod_requests(pod: &Pod, fill: bool) -> Resources {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let now = Running::of(pod);
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&now.requests(container, fill));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let asked = now.requests(container, fill);
        if is_sidecar(container) {
            running.add(&asked);
            sidecars.add(&asked);
            starting.raise_to(&sidecars);
        } else {
            let mut moment = sidecars.clone();
            moment.add(&asked);
            starting.raise_to(&moment);
        }
    }
    running.raise_to(&starting);
    if let Some(asked) = spec
        .resources
        .as_ref()
        .and_then(|pod| pod.requests.as_ref())
    {
        for (name, quantity) in asked {
            *running.slot(name) = number(name, quantity);
        }
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::of(overhead));
    }
    running.pods = 0;
    running
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(spec: serde_json::Value, fill: bool) -> (i64, i64) {
        let pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let resources = pod_requests(&pod, fill);
        (resources.milli_cpu, resources.memory)
    }

    fn container(cpu: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_pod_asks_for_its_worst_moment() {
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = json!("Always");
        let cases = [
            (
                json!({"containers": [container("100m"), container("1")]}),
                1100,
            ),
            (
                json!({"containers": [container("1")], "initContainers": [container("3")]}),
                3000,
            ),
            (
                json!({"containers": [container("1")],
                    "initContainers": [sidecar, container("1500m")]}),
                1600,
            ),
            (
                json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}),
                1250,
            ),
            (
                json!({"containers": [container("1")], "resources": {"requests": {"cpu": "2"}}}),
                2000,
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(asked(spec.clone(), false).0, expected, "{spec}");
        }
    }

    #[test]
    fn a_pod_that_is_resized_holds_the_most_of_what_it_asks_for_and_has() {
        let amounts = |cpu: &str| json!({"requests": {"cpu": cpu}});
        // What the spec asks for, what the container has, what it was given, why it waits, and what counts.
        let cases = [
            ("2", Some("1"), "1", None, 2000),
            ("1", Some("3"), "2", None, 3000),
            ("1", Some("1"), "2", None, 2000),
            ("8", Some("1"), "2", Some("Deferred"), 8000),
            ("8", Some("1"), "2", Some("Infeasible"), 2000),
            ("8", None, "2", Some("Infeasible"), 8000),
        ];
        for (asked, held, given, pending, counted) in cases {
            let status = json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "resources": held.map(amounts), "allocatedResources": {"cpu": given}});
            let condition = pending.map(
                |reason| json!({"type": "PodResizePending", "status": "True", "reason": reason}),
            );
            let conditions: Vec<_> = condition.into_iter().collect();
            let pod = json!({"spec": {"containers": [container(asked)]},
                "status": {"containerStatuses": [status], "conditions": conditions}});
            let pod = serde_json::from_value(pod).unwrap();
            let what = format!("{asked} {held:?} {given} {pending:?}");
            assert_eq!(pod_requests(&pod, false).milli_cpu, counted, "{what}");
        }
    }

    #[test]
    fn who_asks_for_nothing_is_scored_as_if_for_a_little() {
        let spec = json!({"containers": [{"name": "c"}]});
        assert_eq!(asked(spec.clone(), false), (0, 0));
        assert_eq!(asked(spec, true), (DEFAULT_MILLI_CPU, DEFAULT_MEMORY));
    }
}
