//! A node that is cut off from all others, as by a cable.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use windlass_tests::cluster::Cluster;
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

#[test]
#[ignore = "two minutes: cargo xtask up --nodes 3; cargo xtask test e2e -- nodes::loss --ignored"]
fn the_others_go_on_without_a_node_that_is_cut_off() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let nodes = cluster.nodes(NODES)?;
    let spread = Spread::deploy("loss", &nodes)?;
    let namespace = &spread.namespace;
    for (number, node) in nodes[..2].iter().enumerate() {
        let client = format!("client-{number}");
        namespace.apply(&client_pod(&client, &node.name))?;
        namespace.wait_ready(&client)?;
    }
    namespace.run(&["label", "pod", "client-0", "friend=yes"])?;
    let reaches = |client: &str, target: SocketAddr| -> Result<bool> {
        let script = format!("timeout 3 wget -q -O - http://{target}/");
        Ok(namespace
            .try_run(&["exec", client, "--", "sh", "-c", &script])?
            .success)
    };
    let services = spread.cluster_ips()?;
    let service = SocketAddr::new(services[0], 80);
    // Who answers for the Service, and whether nobody did.
    let answered = || -> Result<BTreeSet<String>> {
        let script = format!(
            "for i in $(seq {CONNECTIONS}); do timeout 3 wget -q -O - http://{service}/ || echo lost; done"
        );
        let said = namespace.run(&["exec", "client-0", "--", "sh", "-c", &script])?;
        Ok(said.lines().map(str::to_owned).collect())
    };
    let left: BTreeSet<String> = spread.pods[..2]
        .iter()
        .map(|pod| pod.name.clone())
        .collect();
    let both = |what: &str| -> Result<()> {
        for (client, pod) in [("client-0", &spread.pods[1]), ("client-1", &spread.pods[0])] {
            for target in &pod.addresses {
                ensure!(
                    reaches(client, *target)?,
                    "{what}: {client} does not reach {target}"
                );
            }
        }
        Ok(())
    };
    both("before")?;

    let cut = Cut::new(cluster.outside()?)?;
    both("just cut")?;
    namespace.apply(GATE)?;
    for target in &spread.pods[0].addresses {
        until(SOON, "a policy to be in force", || {
            Ok(!reaches("client-1", *target)?)
        })?;
    }
    for target in &spread.pods[1].addresses {
        ensure!(
            reaches("client-0", *target)?,
            "a friend is refused at {target}"
        );
    }
    namespace.run(&["delete", "networkpolicy", "gate"])?;
    for target in &spread.pods[0].addresses {
        until(SOON, "the policy to be gone", || {
            reaches("client-1", *target)
        })?;
    }
    let mut seen = BTreeSet::new();
    until(AT_LAST, "the lost node's pod to be left out", || {
        seen = answered()?;
        Ok(seen == left)
    })
    .with_context(|| format!("{seen:?}, expected {left:?}"))?;
    both("the node is lost")?;

    drop(cut);
    until(AT_LAST, "the node's pod to answer again", || {
        seen = answered()?;
        Ok(seen == spread.names())
    })
    .with_context(|| format!("{seen:?}"))?;
    for target in &spread.pods[2].addresses {
        ensure!(reaches("client-0", *target)?, "{target} is not reached");
    }
    both("after")
}
