//! What kubeadm was told of the cluster's networks, for an agent that was told nothing.
//!
//! It is only needed for what is no Node's yet: the CIDRs that Nodes were given are followed as they come. Clusters
//! that kubeadm has not made (k3s, managed ones) have nothing but those.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;

use crate::cli::Networks;

const PATIENCE: Duration = Duration::from_secs(5);
const NAMESPACE: &str = "kube-system";
const NAME: &str = "kubeadm-config";
const KEY: &str = "ClusterConfiguration";
const FIELD: &str = "podSubnet:";

/// None where kubeadm has said nothing, or the API server cannot be asked.
pub(crate) async fn pod_networks(client: &kube::Client) -> Networks {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    // An agent starts and serves whether the API server is there or not.
    let map = match tokio::time::timeout(PATIENCE, maps.get_opt(NAME)).await {
        Ok(Ok(map)) => map.unwrap_or_default(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "kubeadm's configuration is not known");
            return Networks::default();
        }
        Err(_) => return Networks::default(),
    };
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    text.map(|text| pod_subnet(text)).unwrap_or_default()
}

/// `networking.podSubnet` of a ClusterConfiguration; no other field of it has this name.
fn pod_subnet(yaml: &str) -> Networks {
    let mut values = yaml
        .lines()
        .filter_map(|line| line.trim().strip_prefix(FIELD));
    let value = values.next().unwrap_or_default();
    let value = value.trim().trim_matches(['"', '\'']);
    value.parse().unwrap_or_else(|error| {
        tracing::warn!(%error, value, "kubeadm's podSubnet cannot be read");
        Networks::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_subnet_of_a_cluster_configuration_is_found() {
        let with = |subnet: &str| {
            format!(
                "apiServer: {{}}\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  \
                 {subnet}\n  serviceSubnet: 10.96.0.0/12\nscheduler: {{}}\n"
            )
        };
        let found = |subnet: &str| pod_subnet(&with(subnet));
        assert_eq!(
            found("podSubnet: 10.244.0.0/16"),
            "10.244.0.0/16".parse().unwrap()
        );
        let both = "10.244.0.0/16,fd00:10:244::/56";
        assert_eq!(
            found(&format!("podSubnet: \"{both}\"")),
            both.parse().unwrap()
        );
        assert_eq!(found(""), Networks::default());
        assert_eq!(found("podSubnet: nonsense"), Networks::default());
    }
}
