//! Pods on the host's network are their node to policies: as clients, as servers, and as those whom a policy names.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::cluster::{Cluster, Node};
use windlass_tests::namespace::Namespace;

use crate::policy::{apply, becomes, reaches};

/// Where nobody else listens on a node.
const PORT: u16 = 18_181;

/// A pod that serves its name at the port, and asks.
fn pod(name: &str, node: &Node, on_host: bool) -> String {
    let serve =
        format!("mkdir /www; echo {name} > /www/index.html; exec httpd -f -p {PORT} -h /www");
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"run": name}},
        "spec": {
            "hostNetwork": on_host, "nodeSelector": {"kubernetes.io/hostname": node.name},
            "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "busybox", "image": "windlass.dev/busybox:dev", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", serve],
            }],
        },
    })
    .to_string()
}

fn hosts(addresses: &[IpAddr]) -> Vec<String> {
    let targets = addresses.iter().map(|ip| SocketAddr::new(*ip, PORT));
    targets.map(|it| it.to_string()).collect()
}

fn addresses_of(namespace: &Namespace, pod: &str) -> Result<Vec<IpAddr>> {
    let pod = namespace.get(&["pod", pod])?;
    let ips = pod["status"]["podIPs"].as_array().context("addresses")?;
    ips.iter()
        .map(|it| Ok(it["ip"].as_str().context("an address")?.parse()?))
        .collect()
}

fn blocks(addresses: &[IpAddr]) -> String {
    let blocks = addresses.iter().map(|ip| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        json!({"ipBlock": {"cidr": format!("{ip}/{bits}")}})
    });
    blocks.collect::<Value>().to_string()
}

#[test]
fn pods_on_the_hosts_network_are_their_nodes_to_policies() -> Result<()> {
    let cluster = Cluster::shared()?;
    let nodes = cluster.nodes(1)?;
    let (near, far) = (&nodes[0], nodes.last().context("a node")?);
    let namespace = Namespace::create("hostnet")?;
    for (name, node, on_host) in [
        ("server", near, false),
        ("client", near, false),
        ("host", far, true),
    ] {
        namespace.apply(&pod(name, node, on_host))?;
    }
    for name in ["server", "client", "host"] {
        namespace.wait_ready(name)?;
    }
    let server = hosts(&addresses_of(&namespace, "server")?);
    let on_node = hosts(&far.addresses);
    let expect = |from: &str, targets: &[String], expected: bool| {
        targets
            .iter()
            .try_for_each(|target| becomes(&namespace, from, target, expected))
    };
    expect("client", &server, true)?;
    expect("client", &on_node, true)?;
    expect("host", &server, true)?;

    // As a client: it has no labels, but an address. Its own node is let in always: it probes.
    let is_the_node = near.name == far.name;
    let selects = "{podSelector: {matchLabels: {run: server}}";
    apply(
        &namespace,
        "in",
        &format!("{selects}, ingress: [{{from: [{{podSelector: {{}}}}]}}]}}"),
    )?;
    expect("host", &server, is_the_node)?;
    ensure!(
        reaches(&namespace, "client", &server[0])?,
        "a pod is kept out"
    );
    apply(
        &namespace,
        "in",
        &format!(
            "{selects}, ingress: [{{from: {}}}]}}",
            blocks(&far.addresses)
        ),
    )?;
    expect("client", &server, false)?;
    expect("host", &server, true)?;
    namespace.run(&["delete", "networkpolicy", "in"])?;

    // As a server: no selector means it, and the node's addresses do.
    let selects = "{podSelector: {matchLabels: {run: client}}, policyTypes: [Egress]";
    apply(
        &namespace,
        "out",
        &format!("{selects}, egress: [{{to: [{{namespaceSelector: {{}}}}]}}]}}"),
    )?;
    expect("client", &on_node, false)?;
    expect("client", &server, true)?;
    apply(
        &namespace,
        "out",
        &format!("{selects}, egress: [{{to: {}}}]}}", blocks(&far.addresses)),
    )?;
    expect("client", &on_node, true)?;
    expect("client", &server, false)?;
    namespace.run(&["delete", "networkpolicy", "out"])?;

    // As one whom a policy selects: that of everybody holds for others alone.
    apply(
        &namespace,
        "closed",
        "{podSelector: {}, policyTypes: [Ingress]}",
    )?;
    expect("client", &server, false)?;
    expect("client", &on_node, true)?;
    apply(
        &namespace,
        "closed",
        "{podSelector: {matchLabels: {run: host}}, policyTypes: [Ingress, Egress]}",
    )?;
    expect("client", &server, true)?;
    expect("client", &on_node, true)?;
    expect("host", &server, true)
}
