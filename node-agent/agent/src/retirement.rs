//! Whether an agent that is told to stop will be followed by another one.
//!
//! An update, a drain, a restart of the node: programs, pods and connections go on, and the next
//! agent adopts them. `kubectl delete -f` of everything: nobody comes after it, so it leaves the
//! node as it found it. The signal is the same; the API server knows the difference.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::Api;

use crate::api_server;
use crate::cleanup::cleanup;
use crate::cli::{CleanupOptions, Role, RunOptions};

/// Within the time that a pod is given to end.
const PATIENCE: Duration = Duration::from_secs(8);

/// Only what is certain counts: in doubt somebody comes after us.
pub(crate) async fn is_final(options: &RunOptions) -> bool {
    let Some((namespace, name)) = &options.daemon_set else {
        return false;
    };
    let asking = async {
        let client = kube::Client::try_from(
            api_server::config(options.kubeconfig.as_deref(), &options.kube_apiserver).await?,
        )?;
        let sets: Api<DaemonSet> = Api::namespaced(client, namespace);
        anyhow::Ok(sets.get_metadata(name).await)
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(Ok(set))) => set.metadata.deletion_timestamp.is_some(),
        Ok(Ok(Err(kube::Error::Api(status)))) => says_removed(status.code),
        Ok(Ok(Err(error))) => in_doubt(&error.to_string()),
        Ok(Err(error)) => in_doubt(&format!("{error:#}")),
        Err(_) => in_doubt("no answer in time"),
    }
}

/// `kubectl delete -f` removes the ServiceAccount and its rights in the same breath: an agent
/// that was let in until now and is refused at its end is being removed as well.
fn says_removed(code: u16) -> bool {
    matches!(code, 401 | 403 | 404)
}

fn in_doubt(why: &str) -> bool {
    tracing::warn!(
        why,
        "unknown whether the DaemonSet is still there: the node stays as it is"
    );
    false
}

/// Takes everything off the node: programs, pins, pods' interfaces, the CNI plugin.
pub(crate) async fn leave(options: &RunOptions) -> anyhow::Result<()> {
    tracing::info!("the DaemonSet is gone: taking Windlass off this node");
    let network = options.has(Role::Network);
    cleanup(CleanupOptions {
        state_dir: options.state_dir.clone(),
        bpffs: options.bpffs.clone(),
        socket: options.socket.clone(),
        cni_conf_dir: network.then(|| options.cni_conf_dir.clone()),
        cni_bin_dir: network.then(|| options.cni_bin_dir.clone()),
        cgroup_mount: options.cgroup_mount.clone(),
        cgroup_root: None,
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_in_trouble_takes_nothing_off_the_node() {
        for code in [401, 403, 404] {
            assert!(says_removed(code));
        }
        for code in [200, 409, 429, 500, 503] {
            assert!(!says_removed(code), "{code}");
        }
    }
}
