//! How the agent reaches the API server: by a kubeconfig, or as a pod by its ServiceAccount.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A node's own network is never slower; an address that nobody serves yet is to be tried
/// again soon.
const CONNECT: Duration = Duration::from_secs(5);

/// `url` replaces the one that is found, unless it is empty.
pub(crate) async fn config(kubeconfig: Option<&Path>, url: &str) -> anyhow::Result<Config> {
    let mut config = match kubeconfig {
        Some(path) => {
            let read = || format!("read {}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).with_context(read)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(read)?
        }
        // The token is read again from its file when it is about to expire.
        None => in_cluster(url).context("use the pod's ServiceAccount (no --kubeconfig)")?,
    };
    if !url.is_empty() {
        config.cluster_url = url.parse().with_context(|| format!("{url:?} is no URL"))?;
    }
    config.connect_timeout = Some(CONNECT);
    // Watches are silent for long; the API server ends them, not we.
    config.read_timeout = None;
    Ok(config)
}

fn in_cluster(url: &str) -> Result<Config, kube::config::InClusterError> {
    if url.is_empty() {
        Config::incluster_env()
    } else {
        // The same files; the address is replaced in any case.
        Config::incluster_dns()
    }
}
