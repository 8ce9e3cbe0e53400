//! What a pod's `/etc/resolv.conf` says.

use k8s_openapi::api::core::v1::Pod;
use windlass_cri::v1::DnsConfig;

use crate::config::Config;
use crate::model::{host_network, spec};

/// The node's own resolver configuration, parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeResolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl NodeResolver {
    /// From the text of a `resolv.conf`; the last `search` line counts.
    pub(crate) fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next().unwrap_or_default();
            let words = words.map(str::to_owned);
            match keyword {
                "nameserver" => resolver.servers.extend(words.take(1)),
                "search" | "domain" => resolver.searches = words.collect(),
                "options" => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }
}

/// The configuration for a pod, by its policy and its own wishes.
pub(crate) fn config(pod: &Pod, config: &Config, node: &NodeResolver) -> DnsConfig {
    let policy = spec(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirst" => !host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        // Without a cluster DNS address the node's own resolver is the best there is.
        _ if cluster_first && !config.cluster_dns.is_empty() => cluster(pod, config, node),
        _ => DnsConfig {
            servers: node.servers.clone(),
            searches: node.searches.clone(),
            options: node.options.clone(),
        },
    };
    if let Some(own) = &spec(pod).dns_config {
        dns.servers
            .extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options
                .retain(|known| known.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    without_repetition(&mut dns.servers);
    without_repetition(&mut dns.searches);
    dns
}

fn cluster(pod: &Pod, config: &Config, node: &NodeResolver) -> DnsConfig {
    let domain = &config.cluster_domain;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.clone(),
    ];
    searches.extend(node.searches.iter().cloned());
    DnsConfig {
        servers: config.cluster_dns.clone(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn without_repetition(items: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    items.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::launch::test_config;

    #[test]
    fn policies_choose_between_the_cluster_and_the_node() {
        let node = NodeResolver::parse(
            "# comment\nnameserver 192.0.2.53\nsearch old\nsearch example.org\noptions timeout:1\n",
        );
        let of = |spec: serde_json::Value| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod = json!({"metadata": {"namespace": "shop"}, "spec": spec});
            config(&serde_json::from_value(pod).unwrap(), &test_config(), &node)
        };
        let cluster = of(json!({}));
        assert_eq!(cluster.servers, ["10.96.0.10"]);
        assert_eq!(
            cluster.searches,
            [
                "shop.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "example.org"
            ]
        );
        assert_eq!(cluster.options, ["ndots:5"]);

        let host = of(json!({"hostNetwork": true}));
        assert_eq!(host.servers, ["192.0.2.53"]);
        assert_eq!(host.searches, ["example.org"]);
        assert_eq!(of(json!({"dnsPolicy": "Default"})), host);
        let both = of(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}));
        assert_eq!(both, cluster);

        let own = of(json!({"dnsConfig": {
            "nameservers": ["10.96.0.10", "198.51.100.1"],
            "searches": ["more"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}],
        }}));
        assert_eq!(own.servers, ["10.96.0.10", "198.51.100.1"]);
        assert_eq!(own.searches.last().unwrap(), "more");
        assert_eq!(own.options, ["ndots:2", "rotate"]);

        let none = of(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}));
        assert_eq!(none.servers, ["1.1.1.1"]);
        assert!(none.searches.is_empty() && none.options.is_empty());
    }
}
