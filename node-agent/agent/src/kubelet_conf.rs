//! Where the node's own kubelet finds the API server, for an agent that was not told.
//!
//! A pod's environment names the `kubernetes` Service. Where no kube-proxy runs, that is served by nobody but the agent
//! itself, which has to reach the API server first; the kubelet has an address that needs nobody.

use std::fs;
use std::path::Path;

use kube::config::Kubeconfig;

/// Below the node's root: kubeadm's (and kind's), k3s', RKE2's, Talos'.
const FILES: [&str; 4] = [
    "etc/kubernetes/kubelet.conf",
    "var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "etc/kubernetes/kubeconfig-kubelet",
];

/// The URL in the first of these files that there is.
pub(crate) fn server(host_root: &Path) -> Option<String> {
    let texts = FILES
        .iter()
        .filter_map(|file| fs::read_to_string(host_root.join(file)).ok());
    texts.into_iter().find_map(|text| url(&text))
}

/// Of the first cluster; a kubelet knows one. Nothing else of it is looked at: who the kubelet is, is none of the agent's
/// business.
fn url(kubeconfig: &str) -> Option<String> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).ok()?;
    let cluster = kubeconfig.clusters.into_iter().next()?.cluster?;
    cluster
        .server
        .filter(|server| server.starts_with("https://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_server_is_found_where_kubelets_are_told_of_it() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(server(root.path()), None);
        for (file, value, found) in [
            (3, "https://localhost:7445", "https://localhost:7445"),
            (1, "https://127.0.0.1:6444", "https://127.0.0.1:6444"),
            (0, "http://plain.example.org", "https://127.0.0.1:6444"),
            (
                0,
                "\"https://[2001:db8::1]:6443\"",
                "https://[2001:db8::1]:6443",
            ),
        ] {
            let path = root.path().join(FILES[file]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = format!(
                "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: eA==\n    server: {value}\n  \
                 name: default\nusers:\n- name: default-auth\n"
            );
            fs::write(path, text).unwrap();
            assert_eq!(server(root.path()).as_deref(), Some(found), "{value}");
        }
        // As YAML may be written too.
        let json =
            r#"{"clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}}]}"#;
        fs::write(root.path().join(FILES[0]), json).unwrap();
        assert_eq!(
            server(root.path()).as_deref(),
            Some("https://192.0.2.1:6443")
        );
    }
}
