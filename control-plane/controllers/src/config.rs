//! What the controllers can be told.

use std::time::Duration;

use ipnet::IpNet;

/// Defaults are Kubernetes' own.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// Networks that nodes get their pod CIDRs from (`--cluster-cidr`); empty: nodes get none.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses for Services of type LoadBalancer; empty: somebody else gives them out.
    pub load_balancer_pools: Vec<IpNet>,
    /// Prefix length of a node's IPv4 pod CIDR.
    pub node_cidr_mask_v4: u8,
    /// Prefix length of a node's IPv6 pod CIDR.
    pub node_cidr_mask_v6: u8,
    /// PEM of the CA that clients in pods trust; published as ConfigMap `kube-root-ca.crt`.
    pub root_ca_pem: Option<String>,
    /// What signs approved CertificateSigningRequests; without it they stay as they are.
    pub signing_ca: Option<SigningCa>,
    /// A node whose Lease and status are older than this is unknown.
    pub node_monitor_grace_period: Duration,
    /// How often nodes are judged.
    pub node_monitor_period: Duration,
    /// A node that has never reported is given this long.
    pub node_startup_grace_period: Duration,
    /// Finished pods beyond this number are deleted, oldest first; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
}

/// The certificate and key of a CA.
#[derive(Clone)]
pub struct SigningCa {
    /// PEM of the certificate.
    pub certificate_pem: String,
    /// PKCS#8 PEM of its key.
    pub key_pem: String,
}

/// The key must not show in a log.
impl std::fmt::Debug for SigningCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningCa").finish_non_exhaustive()
    }
}

impl Default for ControllersConfig {
    fn default() -> Self {
        Self {
            cluster_cidrs: Vec::new(),
            load_balancer_pools: Vec::new(),
            node_cidr_mask_v4: 24,
            node_cidr_mask_v6: 64,
            root_ca_pem: None,
            signing_ca: None,
            node_monitor_grace_period: Duration::from_secs(50),
            node_monitor_period: Duration::from_secs(5),
            node_startup_grace_period: Duration::from_secs(60),
            terminated_pod_gc_threshold: 12_500,
        }
    }
}
