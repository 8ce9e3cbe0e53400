//! What the node holds of pods that do not exist: an agent may have been away when they were deleted.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Manager;
use crate::labels;
use crate::node::Node;

/// What an unknown pod's containers get to stop if nothing says otherwise.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);
/// Stands for the volumes that are prepared for the node, among the pods that are being removed.
const VOLUMES: &str = "volumes";

impl Manager {
    /// Stops and removes what the runtime and the node hold of pods that do not exist.
    pub(super) async fn remove_unwanted(&mut self) {
        let Ok(sandboxes) = self.node.runtime.list_pod_sandboxes(&[]).await else {
            return;
        };
        let mut unwanted: HashMap<String, Vec<String>> = HashMap::new();
        for sandbox in sandboxes {
            // Sandboxes without our labels belong to others on the same runtime.
            if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
                unwanted.entry(uid.clone()).or_default().push(sandbox.id);
            }
        }
        let config = &self.node.config;
        // Logs go last of all: of a pod whose agent was killed just before, nothing else is left.
        let logs = names(&config.logs_folder()).filter_map(|name| {
            let (_, uid) = name.rsplit_once('_')?;
            Some(uid.to_owned())
        });
        let named = names(&config.pods_folder()).chain(logs);
        for uid in named.chain(self.node.cgroups.pods()) {
            unwanted.entry(uid).or_default();
        }
        unwanted.retain(|uid, _| !self.handles.contains_key(uid) && !self.removing.contains(uid));
        for (uid, sandboxes) in unwanted {
            if !self.unremoved.contains_key(&uid) {
                tracing::info!(uid, "removing what is left of an unknown pod");
            }
            self.removing.insert(uid.clone());
            let node = self.node.clone();
            self.removals.spawn(async move {
                let problem = remove_orphan(&node, &uid, &sandboxes).await.err();
                Removal { what: uid, problem }
            });
        }
    }

    /// Takes down what drivers prepared for the node and no pod uses.
    pub(super) fn sweep_volumes(&mut self) {
        if !self.removing.insert(VOLUMES.to_owned()) {
            return;
        }
        let csi = self.node.csi.clone();
        self.removals.spawn(async move {
            let problem = csi.sweep().await.err();
            Removal {
                what: VOLUMES.to_owned(),
                problem: problem.map(|error| error.to_string()),
            }
        });
    }

    /// What cannot be removed (a driver may be away for good) is tried again and again, but told once.
    pub(super) fn removal_ended(&mut self, removal: Removal) {
        let Removal { what, problem } = removal;
        self.removing.remove(&what);
        let Some(problem) = problem else {
            self.unremoved.remove(&what);
            return;
        };
        if self.unremoved.get(&what) != Some(&problem) {
            tracing::warn!(what, problem, "not removed, trying again");
            self.unremoved.insert(what, problem);
        }
    }
}

/// An attempt to remove something that no pod needs.
pub(super) struct Removal {
    /// The pod's uid, or what else it is.
    what: String,
    problem: Option<String>,
}

/// Brings a pod to its end of which nothing is known but what the runtime holds.
async fn remove_orphan(node: &Node, uid: &str, sandboxes: &[String]) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let containers = node
        .runtime
        .list_containers(&[(labels::POD_UID, uid)])
        .await
        .map_err(|error| text(&error))?;
    let stops = containers.iter().map(|container| {
        let grace = container.annotations.get(labels::GRACE_PERIOD);
        let grace = grace
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs);
        node.runtime
            .stop_container(&container.id, grace.unwrap_or(ORPHAN_GRACE))
    });
    for stopped in futures::future::join_all(stops).await {
        stopped.map_err(|error| text(&error))?;
    }
    for sandbox in sandboxes {
        node.runtime
            .stop_pod_sandbox(sandbox)
            .await
            .map_err(|error| text(&error))?;
        node.runtime
            .remove_pod_sandbox(sandbox)
            .await
            .map_err(|error| text(&error))?;
    }
    node.take_down(uid).await?;
    node.cgroups
        .remove(uid)
        .await
        .map_err(|error| text(&error))?;
    let folder = node.config.logs_folder();
    for name in names(&folder).filter(|name| name.ends_with(&format!("_{uid}"))) {
        fs::remove_dir_all(folder.join(name)).map_err(|error| text(&error))?;
    }
    Ok(())
}

fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
