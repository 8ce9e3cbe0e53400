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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use http_body_util::Full;
    use hyper::body::Bytes;
    use hyper::{Request, Response, StatusCode};
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn an_api_server_that_is_too_old_is_named_and_waited_for() {
        let is_upgraded = Arc::new(AtomicBool::new(false));
        let for_server = is_upgraded.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let is_upgraded = for_server.load(Ordering::Relaxed);
            async move {
                let (status, said) = match (request.uri().path(), is_upgraded) {
                    ("/version", _) => (StatusCode::OK, VERSION),
                    ("/apis/discovery.k8s.io/v1", true) => (StatusCode::OK, RESOURCES),
                    // As it says of a group that it does not know.
                    _ => (StatusCode::NOT_FOUND, "404 page not found\n"),
                };
                let mut answer = Response::new(Full::<Bytes>::from(said));
                *answer.status_mut() = status;
                Ok::<_, Infallible>(answer)
            }
        });
        let client = Client::new(server, "default");
        let (state, mut told) = watch::channel(Ok(()));
        let waiting = wait_until_new_enough(&client, &state);
        let upgrade = async {
            let reason = told
                .wait_for(Result::is_err)
                .await
                .expect("the sender lives");
            let reason = reason.clone().expect_err("waited for");
            is_upgraded.store(true, Ordering::Relaxed);
            reason
        };
        let ((), reason) = tokio::join!(waiting, upgrade);
        assert!(
            reason.contains("v1.20.2") && reason.contains("since 1.21"),
            "{reason}"
        );
    }

    const VERSION: &str = r#"{"major": "1", "minor": "20", "gitVersion": "v1.20.2", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}"#;
    const RESOURCES: &str = r#"{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "discovery.k8s.io/v1", "resources": []}"#;
}
