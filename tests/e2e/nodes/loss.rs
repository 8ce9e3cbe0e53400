//! A node that is cut off from all others, as by a cable.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use windlass_tests::cluster::{Cluster, Node};
use windlass_tests::eventually::until;

use super::{CONNECTIONS, NODES, Spread, client_pod};

const SOON: Duration = Duration::from_secs(30);
/// Until a silent node counts as lost it may be silent for 40 s.
const AT_LAST: Duration = Duration::from_secs(180);
/// The switch's end of the last node's cable.
const PORT: &str = "port3";
const GATE: &str = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "gate"},
    "spec": {"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}]}}"#;

/// Cut while it lives.
struct Cut<'a>(&'a str);

impl<'a> Cut<'a> {
    fn new(outside: &'a str) -> Result<Self> {
        set(outside, "down")?;
        Ok(Self(outside))
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Err(error) = set(self.0, "up") {
            eprintln!("{error:#}");
        }
    }
}

fn set(outside: &str, state: &str) -> Result<()> {
    let set = ["-n", outside, "link", "set", PORT, state];
    let output = Command::new("ip").args(set).output()?;
    ensure!(output.status.success(), "{PORT}: {output:?}");
    Ok(())
}

/// Clients on the first two nodes, of which the first is a friend of the policy's.
struct Clients<'a> {
    spread: &'a Spread,
}

impl<'a> Clients<'a> {
    fn start(spread: &'a Spread, nodes: &[Node]) -> Result<Self> {
        let namespace = &spread.namespace;
        for (number, node) in nodes[..2].iter().enumerate() {
            let client = format!("client-{number}");
            namespace.apply(&client_pod(&client, &node.name))?;
            namespace.wait_ready(&client)?;
        }
        namespace.run(&["label", "pod", "client-0", "friend=yes"])?;
        Ok(Self { spread })
    }

    fn reaches(&self, client: &str, target: SocketAddr) -> Result<bool> {
        let script = format!("timeout 3 wget -q -O - http://{target}/");
        let exec = ["exec", client, "--", "sh", "-c", &script];
        Ok(self.spread.namespace.try_run(&exec)?.success)
    }

    /// Whether the nodes that are left reach each other's pods.
    fn reach_each_other(&self, when: &str) -> Result<()> {
        for (client, pod) in [("client-0", 1), ("client-1", 0)] {
            for target in &self.spread.pods[pod].addresses {
                let reached = self.reaches(client, *target)?;
                ensure!(reached, "{when}: {client} does not reach {target}");
            }
        }
        Ok(())
    }

    /// Whether policies come and go on the nodes that are left.
    fn obey_a_new_policy(&self) -> Result<()> {
        let (namespace, pods) = (&self.spread.namespace, &self.spread.pods);
        namespace.apply(GATE)?;
        for target in &pods[0].addresses {
            until(SOON, "a policy to be in force", || {
                Ok(!self.reaches("client-1", *target)?)
            })?;
        }
        for target in &pods[1].addresses {
            let reached = self.reaches("client-0", *target)?;
            ensure!(reached, "a friend is refused at {target}");
        }
        namespace.run(&["delete", "networkpolicy", "gate"])?;
        for target in &pods[0].addresses {
            until(SOON, "the policy to be gone", || {
                self.reaches("client-1", *target)
            })?;
        }
        Ok(())
    }

    /// Waits until these and no others answer for the Service.
    fn are_answered_by(&self, expected: &BTreeSet<String>) -> Result<()> {
        let service = SocketAddr::new(self.spread.cluster_ips()?[0], 80);
        let script = format!(
            "for i in $(seq {CONNECTIONS}); do timeout 3 wget -q -O - http://{service}/ || echo lost; done"
        );
        let exec = ["exec", "client-0", "--", "sh", "-c", &script];
        let mut seen = BTreeSet::new();
        until(AT_LAST, "the pods of the Service to answer", || {
            let said = self.spread.namespace.run(&exec)?;
            seen = said.lines().map(str::to_owned).collect();
            Ok(seen == *expected)
        })
        .with_context(|| format!("{seen:?}, expected {expected:?}"))
    }

    /// Whether the node that was cut off is one of the cluster again.
    fn have_all_back(&self) -> Result<()> {
        self.are_answered_by(&self.spread.names())?;
        for target in &self.spread.pods[2].addresses {
            let reached = self.reaches("client-0", *target)?;
            ensure!(reached, "{target} is not reached");
        }
        self.reach_each_other("after")
    }
}

#[test]
fn a_node_that_is_cut_off_is_missed_by_nobody_else() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let nodes = cluster.nodes(NODES)?;
    let spread = Spread::deploy("cut", &nodes)?;
    let clients = Clients::start(&spread, &nodes)?;
    clients.reach_each_other("before")?;
    let cut = Cut::new(cluster.outside()?)?;
    ensure!(
        !clients.reaches("client-0", spread.pods[2].addresses[0])?,
        "the node is not cut off"
    );
    clients.reach_each_other("just cut")?;
    clients.obey_a_new_policy()?;
    drop(cut);
    clients.have_all_back()
}

#[test]
#[ignore = "two minutes: cargo xtask up --nodes 3; cargo xtask test e2e -- nodes::loss --ignored"]
fn the_others_go_on_without_a_node_that_is_lost() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let nodes = cluster.nodes(NODES)?;
    let spread = Spread::deploy("loss", &nodes)?;
    let clients = Clients::start(&spread, &nodes)?;
    clients.reach_each_other("before")?;
    let cut = Cut::new(cluster.outside()?)?;
    let left = spread.pods[..2].iter().map(|pod| pod.name.clone());
    clients.are_answered_by(&left.collect())?;
    clients.reach_each_other("the node is lost")?;
    drop(cut);
    clients.have_all_back()
}
