//! The node's own pods, where another CNI plugin makes their interfaces: a connection from
//! outside that is sent to one of them keeps its client's address, since the answer passes here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use windlass_datapath::Datapath;
use windlass_pods::Patience;

use crate::cli::RunOptions;

/// Carries their addresses into the datapath for as long as it is polled.
pub(crate) fn follow(
    client: kube::Client,
    options: &RunOptions,
    datapath: Arc<Datapath>,
) -> impl Future<Output = ()> + Send + 'static {
    let (store, writer) = reflector::store();
    let of_node = format!("spec.nodeName={}", options.node_name);
    let pods: Api<Pod> = Api::all(client);
    let stream = watcher::watcher(pods, watcher::Config::default().fields(&of_node))
        .backoff(Patience::default())
        .modify(|pod| pod.metadata.managed_fields = None)
        .reflect(writer);
    async move {
        let mut stream = std::pin::pin!(stream);
        let mut listed = false;
        let mut written: Option<BTreeSet<IpAddr>> = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::InitDone) => listed = true,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "watch of this node's pods interrupted"),
            }
            // What an earlier run wrote stands until everything is known.
            if !listed {
                continue;
            }
            let addresses: BTreeSet<IpAddr> = store
                .state()
                .iter()
                .flat_map(|pod| addresses(pod))
                .collect();
            if written.as_ref() == Some(&addresses) {
                continue;
            }
            let list: Vec<IpAddr> = addresses.iter().copied().collect();
            match datapath.set_foreign_pods(&list) {
                Ok(()) => written = Some(addresses),
                Err(error) => tracing::error!(%error, "addresses of this node's pods not written"),
            }
        }
    }
}

/// Those of a pod with a network of its own that still runs.
pub(crate) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let on_host = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.host_network == Some(true));
    let Some(status) = pod.status.as_ref().filter(|_| !on_host) else {
        return Vec::new();
    };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let all = status.pod_ips.iter().flatten();
    all.filter_map(|ip| ip.ip.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_pods_and_those_on_the_hosts_network_have_no_address_of_their_own() {
        let pod = |host_network, phase| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p"},
                "spec": {"hostNetwork": host_network, "containers": []},
                "status": {"phase": phase, "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]},
            }))
            .unwrap()
        };
        let expected: [IpAddr; 2] = ["10.1.0.5", "fd00::5"].map(|it| it.parse().unwrap());
        assert_eq!(addresses(&pod(false, "Running")), expected);
        assert!(addresses(&pod(true, "Running")).is_empty());
        assert!(addresses(&pod(false, "Succeeded")).is_empty());
    }
}
