//! The example of the README: `deploy/examples/web.yaml`, exposed as a NodePort Service.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::eventually::eventually;
use crate::http;
use crate::namespace::Namespace;

pub const MANIFEST: &str = "deploy/examples/web.yaml";
/// A balancer that leaves out one of ten pods is seen with near certainty.
const CONNECTIONS_PER_POD: usize = 20;

pub struct Web<'a> {
    pub namespace: &'a Namespace,
}

impl<'a> Web<'a> {
    /// Applies, exposes, and waits until each pod answers through the Service.
    pub fn deploy(namespace: &'a Namespace) -> Result<Self> {
        namespace.run(&["apply", "-f", MANIFEST])?;
        namespace.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
        namespace.run(&[
            "expose",
            "deployment",
            "web",
            "--port=80",
            "--target-port=8080",
            "--type=NodePort",
        ])?;
        let web = Self { namespace };
        web.wait_until_balanced()?;
        Ok(web)
    }

    pub fn wait_until_balanced(&self) -> Result<()> {
        let service = self.cluster_address()?;
        eventually(
            Duration::from_secs(20),
            "every pod to answer through the Service",
            || {
                let pods = self.pods()?;
                let answered = answering(service, pods.len() * CONNECTIONS_PER_POD);
                Ok(answered.is_ok_and(|names| names == pods).then_some(()))
            },
        )
    }

    /// The names of the pods that are not being deleted.
    pub fn pods(&self) -> Result<BTreeSet<String>> {
        let list = self.namespace.get(&["pods", "-l", "app=web"])?;
        let items = list["items"].as_array().context("a list of pods")?;
        Ok(items
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .map(str::to_owned)
            .collect())
    }

    pub fn pod_address(&self, pod: &str) -> Result<SocketAddr> {
        let ip = self.namespace.field(&["pod", pod], "{.status.podIP}")?;
        Ok(SocketAddr::new(
            ip.parse().with_context(|| format!("pod IP `{ip}`"))?,
            8080,
        ))
    }

    pub fn cluster_address(&self) -> Result<SocketAddr> {
        let ip = self
            .namespace
            .field(&["service", "web"], "{.spec.clusterIP}")?;
        Ok(SocketAddr::new(
            ip.parse().with_context(|| format!("cluster IP `{ip}`"))?,
            80,
        ))
    }

    pub fn node_port(&self, node: impl Into<IpAddr>) -> Result<SocketAddr> {
        let port = self
            .namespace
            .field(&["service", "web"], "{.spec.ports[0].nodePort}")?;
        Ok(SocketAddr::new(
            node.into(),
            port.parse().with_context(|| format!("port `{port}`"))?,
        ))
    }

    /// Connects often enough to meet every pod, and checks that it met these and no others.
    pub fn is_balanced_over_all_pods(&self, address: SocketAddr) -> Result<()> {
        let pods = self.pods()?;
        let answered = answering(address, pods.len() * CONNECTIONS_PER_POD)?;
        ensure!(
            answered == pods,
            "{address}: pods {pods:?}, but {answered:?} answered"
        );
        Ok(())
    }
}

fn answering(address: SocketAddr, connections: usize) -> Result<BTreeSet<String>> {
    (0..connections)
        .map(|_| http::get_text(address, "/"))
        .collect()
}
