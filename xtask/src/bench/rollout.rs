//! The example Deployment and its Service, in a namespace that goes away with the measurement.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{layout, process, wait};

const NAMESPACE: &str = "windlass-bench";

pub(super) struct Web {
    applied: Instant,
}

impl Web {
    pub(super) fn create() -> Result<Self> {
        process::output(&mut kubectl(&["create", "namespace", NAMESPACE]))?;
        // Pods are refused until it is there; that is not what is measured.
        wait::until(Duration::from_secs(20), || {
            process::succeeds(&mut kubectl(&[
                "get",
                "serviceaccount/default",
                "-n",
                NAMESPACE,
            ]))
        });
        let web = Self {
            applied: Instant::now(),
        };
        let manifest = layout::repository().join("deploy/examples/web.yaml");
        process::output(kubectl(&["apply", "-n", NAMESPACE, "-f"]).arg(manifest))?;
        Ok(web)
    }

    /// The time from the moment before `kubectl apply` to the last replica's readiness.
    pub(super) fn wait_until_ready(&self) -> Result<Duration> {
        process::output(&mut kubectl(&[
            "rollout",
            "status",
            "deployment/web",
            "-n",
            NAMESPACE,
            "--timeout=120s",
        ]))?;
        let elapsed = self.applied.elapsed();
        process::output(&mut kubectl(&[
            "expose",
            "deployment",
            "web",
            "-n",
            NAMESPACE,
            "--port=80",
            "--target-port=8080",
        ]))?;
        Ok(elapsed)
    }

    pub(super) fn pod_addresses(&self) -> Result<Vec<SocketAddr>> {
        let addresses = get("pods", "{.items[*].status.podIP}")?;
        addresses
            .split_whitespace()
            .map(|ip| {
                Ok(SocketAddr::new(
                    ip.parse().with_context(|| format!("pod IP `{ip}`"))?,
                    8080,
                ))
            })
            .collect()
    }

    pub(super) fn service_address(&self) -> Result<SocketAddr> {
        let address = get("service/web", "{.spec.clusterIP}")?;
        Ok(SocketAddr::new(
            address.parse().with_context(|| format!("IP `{address}`"))?,
            80,
        ))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        process::succeeds(&mut kubectl(&[
            "delete",
            "namespace",
            NAMESPACE,
            "--timeout=60s",
        ]));
    }
}

fn get(what: &str, path: &str) -> Result<String> {
    process::output(&mut kubectl(&[
        "get",
        what,
        "-n",
        NAMESPACE,
        "-o",
        &format!("jsonpath={path}"),
    ]))
}

fn kubectl(arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command
        .arg("--kubeconfig")
        .arg(layout::kubeconfig())
        .args(arguments);
    command
}
