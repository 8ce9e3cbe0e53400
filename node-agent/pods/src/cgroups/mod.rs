//! Pods' cgroups: a parent for each quality-of-service class and one for each pod, under
//! which the runtime puts the containers'.
//!
//! They are ours to make and to remove; the runtime only ever makes children. Both
//! generations are served: with v1 (and hybrid) every hierarchy gets the same folders.

mod v1;
mod v2;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use parking_lot::Mutex;

use crate::launch::resources::Amounts;
use crate::model::PodId;
use crate::status::{QosClass, qos_class};

/// How long processes of a stopped pod may take to vanish from its cgroup.
const EMPTYING: Duration = Duration::from_secs(5);
const EMPTYING_STEP: Duration = Duration::from_millis(20);

/// The node's cgroups for pods.
pub struct Cgroups {
    root: String,
    hierarchies: Hierarchies,
    /// Requested CPU of the burstable pods, which is their class' weight.
    burstable: Mutex<HashMap<String, i64>>,
}

enum Hierarchies {
    /// Every mounted controller, and the unified one of a hybrid system.
    V1(Vec<PathBuf>),
    V2(PathBuf),
}

impl Cgroups {
    /// Finds out which generation is mounted at `mount`; `root` is the parent of all pods.
    pub fn detect(mount: &Path, root: &str) -> io::Result<Self> {
        let unified =
            statfs(mount).map_err(io::Error::from)?.filesystem_type() == CGROUP2_SUPER_MAGIC;
        let hierarchies = match unified {
            true => Hierarchies::V2(mount.to_owned()),
            false => Hierarchies::V1(v1::hierarchies(mount)?),
        };
        let root = format!("/{}", root.trim_matches('/'));
        Ok(Self {
            root,
            hierarchies,
            burstable: Mutex::default(),
        })
    }

    /// Whether the node has only the unified hierarchy.
    pub(crate) fn is_unified(&self) -> bool {
        matches!(self.hierarchies, Hierarchies::V2(_))
    }

    /// The pod's cgroup, as the runtime wants to be told it.
    pub fn path(&self, pod: &Pod) -> String {
        let uid = PodId::of(pod).uid;
        match qos_class(pod) {
            QosClass::Guaranteed => format!("{}/pod{uid}", self.root),
            QosClass::Burstable => format!("{}/burstable/pod{uid}", self.root),
            QosClass::BestEffort => format!("{}/besteffort/pod{uid}", self.root),
        }
    }

    /// Makes the pod's cgroup, with its limits, and its parents.
    pub fn prepare(&self, pod: &Pod) -> io::Result<()> {
        self.prepare_with(pod, &Amounts::of_pod(pod))
    }

    /// As [`Cgroups::prepare`], with other limits than the pod's spec says.
    pub(crate) fn prepare_with(&self, pod: &Pod, amounts: &Amounts) -> io::Result<()> {
        let path = self.path(pod);
        self.make(&self.root, None)?;
        match qos_class(pod) {
            QosClass::Guaranteed => {}
            QosClass::BestEffort => {
                let least = Amounts::default();
                self.make(&format!("{}/besteffort", self.root), Some(&least))?;
            }
            QosClass::Burstable => {
                let cpu_request = {
                    let mut burstable = self.burstable.lock();
                    burstable.insert(PodId::of(pod).uid, amounts.cpu_request);
                    burstable.values().sum()
                };
                let all = Amounts {
                    cpu_request,
                    ..Amounts::default()
                };
                self.make(&format!("{}/burstable", self.root), Some(&all))?;
            }
        }
        self.make(&path, Some(amounts))
    }

    /// Removes the pod's cgroup, killing what may still be in it.
    pub async fn remove(&self, uid: &str) -> io::Result<()> {
        let end = Instant::now() + EMPTYING;
        self.burstable.lock().remove(uid);
        for class in ["", "/burstable", "/besteffort"] {
            for folder in self.folders(&format!("{}{class}/pod{uid}", self.root)) {
                remove_tree(&folder, end).await?;
            }
        }
        Ok(())
    }

    /// The uids of all pods that have a cgroup.
    pub fn pods(&self) -> Vec<String> {
        let mut uids = std::collections::BTreeSet::new();
        for class in ["", "/burstable", "/besteffort"] {
            for folder in self.folders(&format!("{}{class}", self.root)) {
                let Ok(entries) = fs::read_dir(folder) else {
                    continue;
                };
                let names = entries
                    .flatten()
                    .filter_map(|entry| entry.file_name().into_string().ok());
                uids.extend(names.filter_map(|name| name.strip_prefix("pod").map(str::to_owned)));
            }
        }
        uids.into_iter().collect()
    }

    /// Removes the parents too; for when no pod is left and none will come.
    pub async fn remove_root(&self) -> io::Result<()> {
        let end = Instant::now() + EMPTYING;
        for folder in self.folders(&self.root) {
            remove_tree(&folder, end).await?;
        }
        Ok(())
    }

    fn make(&self, path: &str, amounts: Option<&Amounts>) -> io::Result<()> {
        match &self.hierarchies {
            Hierarchies::V1(_) => {
                for folder in self.folders(path) {
                    v1::make(&folder, amounts)?;
                }
                Ok(())
            }
            Hierarchies::V2(mount) => v2::make(mount, path, amounts),
        }
    }

    fn folders(&self, path: &str) -> Vec<PathBuf> {
        let below = path.trim_start_matches('/');
        match &self.hierarchies {
            Hierarchies::V1(hierarchies) => hierarchies
                .iter()
                .map(|hierarchy| hierarchy.join(below))
                .collect(),
            Hierarchies::V2(mount) => vec![mount.join(below)],
        }
    }
}

/// Removes a cgroup with its children. One that still has processes is busy; those are
/// killed and waited for.
async fn remove_tree(folder: &Path, end: Instant) -> io::Result<()> {
    loop {
        match remove_once(folder) {
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < end =>
            {
                kill_all(folder);
                tokio::time::sleep(EMPTYING_STEP).await;
            }
            other => return other,
        }
    }
}

fn remove_once(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_once(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn kill_all(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_all(&entry.path());
        }
    }
    let Ok(procs) = fs::read_to_string(folder.join("cgroup.procs")) else {
        return;
    };
    for pid in procs
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid: &i32| *pid > 0)
    {
        // It may have ended by itself in between.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

/// Writes a control file.
fn write(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = folder.join(file);
    fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn pods_get_their_cgroup_and_leave_none_behind() {
        let limit = pods_come_and_go(Path::new("/sys/fs/cgroup"), "machine").await;
        assert_eq!(limit.as_deref().map(str::trim), Some("67108864"));
    }

    #[tokio::test]
    async fn the_second_generation_is_served_alone_too() {
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.exists() {
            assert!(Cgroups::detect(unified, "x").unwrap().is_unified());
            pods_come_and_go(unified, "unified").await;
        }
    }

    /// Gives the memory limit that the kernel holds a limited pod to.
    async fn pods_come_and_go(mount: &Path, name: &str) -> Option<String> {
        let root = format!("windlass-test-{name}-{}", std::process::id());
        let cgroups = Cgroups::detect(mount, &root).unwrap();
        let pod = |uid: &str, resources: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"uid": uid},
                "spec": {"containers": [{"name": "c", "resources": resources}]},
            }))
            .unwrap()
        };
        let full = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
        let guaranteed = pod("g", full);
        let burstable = pod("b", json!({"requests": {"cpu": "250m"}}));
        let best_effort = pod("e", json!({}));
        for pod in [&guaranteed, &burstable, &best_effort] {
            match cgroups.prepare(pod) {
                Ok(()) => {}
                Err(error) => {
                    cgroups.remove_root().await.unwrap();
                    panic!("{error}");
                }
            }
        }
        let found = cgroups.pods();
        let limit = cgroups
            .folders(&cgroups.path(&guaranteed))
            .iter()
            .find_map(|folder| {
                let v1 = fs::read_to_string(folder.join("memory.limit_in_bytes"));
                v1.or_else(|_| fs::read_to_string(folder.join("memory.max")))
                    .ok()
            });
        for uid in ["g", "b", "e"] {
            cgroups.remove(uid).await.unwrap();
        }
        let left = cgroups.pods();
        cgroups.remove_root().await.unwrap();
        assert_eq!(found, ["b", "e", "g"]);
        assert!(left.is_empty());
        assert!(
            cgroups
                .folders(&cgroups.root)
                .iter()
                .all(|folder| !folder.exists())
        );
        limit
    }
}
