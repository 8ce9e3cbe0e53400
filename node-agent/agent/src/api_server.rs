//! How the agent reaches the API server: by a kubeconfig, or as a pod by its ServiceAccount.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::watch;
use windlass_pods::Patience;

/// A node's own network is never slower; an address that nobody serves yet is to be tried
/// again soon.
const CONNECT: Duration = Duration::from_secs(5);

/// Endpoints of Services, and the first Kubernetes that serves them so. All else that the agent asks for is older.
const ENDPOINT_SLICES: (&str, &str) = ("discovery.k8s.io/v1", "1.21");

/// Says in `state`, and in the log, what an API server is too old for; waits while it is.
pub(crate) async fn wait_until_new_enough(
    client: &Client,
    state: &watch::Sender<Result<(), String>>,
) {
    let (group, since) = ENDPOINT_SLICES;
    let mut pauses = Patience::default();
    loop {
        match client.list_api_group_resources(group).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let version = client.apiserver_version().await;
                let version =
                    version.map_or_else(|_| "of unknown version".to_owned(), |it| it.git_version);
                let reason = format!(
                    "the API server ({version}) is too old: it does not serve {group}, as Kubernetes does since {since}"
                );
                if state.borrow().as_ref() != Err(&reason) {
                    tracing::error!("waiting: {reason}");
                    drop(state.send_replace(Err(reason)));
                }
            }
            Err(error) => tracing::debug!(%error, "the API server's level is not known yet"),
        }
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

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
