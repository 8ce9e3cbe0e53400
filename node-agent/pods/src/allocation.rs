//! What resources a pod's containers were given, which may be less than they are now asked to
//! have (KEP-1287).
//!
//! Three things differ while a pod is resized: what its spec asks for, what the node has agreed
//! to (`allocated`), and what the running containers are held to (`actuated`). The first is the
//! API's; the other two are kept here and, so that a restarted agent goes on where it was, in a
//! file in the pod's folder, which is the true copy.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};

use crate::launch::resources::Amounts;
use crate::model::slots;

/// The resources of each container, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// What the node agreed to.
    allocated: BTreeMap<String, ResourceRequirements>,
    /// What the running containers were started with, or brought to since.
    #[serde(default)]
    actuated: BTreeMap<String, ResourceRequirements>,
}

impl Allocation {
    /// Everything that the spec asks for.
    pub fn of(pod: &Pod) -> Self {
        let allocated = slots(pod).map(|slot| {
            let resources = slot.container.resources.clone().unwrap_or_default();
            (slot.name().to_owned(), resources)
        });
        Self {
            allocated: allocated.collect(),
            actuated: BTreeMap::new(),
        }
    }

    /// What was written down for a pod before, if anything was.
    pub(crate) fn load(pod_folder: &Path) -> Option<Self> {
        let text = fs::read(file(pod_folder)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes it down, all or nothing.
    pub(crate) fn save(&self, pod_folder: &Path) -> io::Result<()> {
        fs::create_dir_all(pod_folder)?;
        let path = file(pod_folder);
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::rename(&fresh, &path)
    }

    /// Whether the spec asks for something else than was agreed to.
    pub(crate) fn differs_from(&self, pod: &Pod) -> bool {
        slots(pod).any(|slot| {
            let asked = slot.container.resources.clone().unwrap_or_default();
            let given = self.allocated.get(slot.name());
            given.is_none_or(|given| !same(given, &asked))
        })
    }

    /// The node agrees to what the spec asks for.
    pub(crate) fn agree(&mut self, pod: &Pod) {
        self.allocated = Self::of(pod).allocated;
    }

    /// The pod as the node agreed to run it.
    pub(crate) fn apply(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        let Some(spec) = &mut pod.spec else {
            return pod;
        };
        let inits = spec.init_containers.iter_mut().flatten();
        for container in spec.containers.iter_mut().chain(inits) {
            if let Some(given) = self.allocated.get(&container.name) {
                container.resources = Some(given.clone());
            }
        }
        pod
    }

    /// What the node agreed to give a container.
    pub(crate) fn allocated(&self, name: &str) -> Option<&ResourceRequirements> {
        self.allocated.get(name)
    }

    /// What a running container is held to. Without a record it was started with what it has.
    pub(crate) fn actuated(&self, name: &str) -> Option<&ResourceRequirements> {
        self.actuated.get(name).or(self.allocated.get(name))
    }

    /// A container was started with, or brought to, these resources.
    pub(crate) fn set_actuated(&mut self, name: &str, resources: ResourceRequirements) {
        self.actuated.insert(name.to_owned(), resources);
    }

    /// Whether a running container is not yet held to what was agreed.
    pub(crate) fn is_due(&self, name: &str) -> bool {
        match (self.allocated.get(name), self.actuated(name)) {
            (Some(wanted), Some(actual)) => !same(wanted, actual),
            _ => false,
        }
    }
}

/// Whether bringing a container from one set of resources to another takes a new start of it.
pub(crate) fn needs_restart(
    container: &Container,
    from: &ResourceRequirements,
    to: &ResourceRequirements,
) -> bool {
    let (before, after) = (amounts(from), amounts(to));
    let policies = container.resize_policy.iter().flatten();
    let mut restarting = policies.filter(|policy| policy.restart_policy == "RestartContainer");
    restarting.any(|policy| match policy.resource_name.as_str() {
        "cpu" => (before.cpu_request, before.cpu_limit) != (after.cpu_request, after.cpu_limit),
        "memory" => {
            (before.memory_request, before.memory_limit)
                != (after.memory_request, after.memory_limit)
        }
        _ => false,
    })
}

/// The amounts are the same, however they are written.
fn same(one: &ResourceRequirements, other: &ResourceRequirements) -> bool {
    one == other || amounts(one) == amounts(other)
}

fn amounts(resources: &ResourceRequirements) -> Amounts {
    Amounts::of(&Container {
        resources: Some(resources.clone()),
        ..Container::default()
    })
}

fn file(pod_folder: &Path) -> PathBuf {
    pod_folder.join("allocation.json")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(cpu: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [{
            "name": "c", "resources": {"requests": {"cpu": cpu}},
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
        }]}}))
        .unwrap()
    }

    #[test]
    fn what_is_asked_agreed_and_in_force_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut allocation = Allocation::of(&pod("1"));
        assert!(!allocation.differs_from(&pod("1000m")));
        assert!(allocation.differs_from(&pod("2")));
        allocation.set_actuated("c", allocation.allocated("c").unwrap().clone());
        allocation.agree(&pod("2"));
        assert!(allocation.is_due("c"));
        allocation.save(folder.path()).unwrap();
        let known = Allocation::load(folder.path()).unwrap();
        assert_eq!(known, allocation);
        let applied = known.apply(&pod("1"));
        assert!(!known.differs_from(&applied));
    }

    #[test]
    fn only_a_change_of_what_the_policy_names_takes_a_new_start() {
        let pod = pod("1");
        let container = &crate::model::spec(&pod).containers[0];
        let of = |value| serde_json::from_value::<ResourceRequirements>(value).unwrap();
        let from = of(json!({"requests": {"cpu": "1", "memory": "1Gi"}}));
        let more_cpu = of(json!({"requests": {"cpu": "2", "memory": "1024Mi"}}));
        let more_memory = of(json!({"requests": {"cpu": "1", "memory": "2Gi"}}));
        assert!(!needs_restart(container, &from, &more_cpu));
        assert!(needs_restart(container, &from, &more_memory));
    }
}
