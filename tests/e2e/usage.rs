//! What pods and nodes use: for `kubectl top`, and for autoscalers.

use std::time::Duration;

use anyhow::{Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::kubectl::kubectl;
use windlass_tests::namespace::Namespace;
use windlass_tests::web::Web;

#[test]
fn top_shows_what_pods_and_nodes_use() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("top")?;
    let web = Web::deploy(&namespace)?;
    let nodes = kubectl(&["top", "nodes", "--no-headers"])?;
    let node = kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    ensure!(nodes.starts_with(&node), "{nodes}");
    let mut pods = String::new();
    until(Duration::from_secs(30), "each pod's usage", || {
        // Until then there may be none: "Metrics not available for pod".
        let answer = namespace.run(&["top", "pods", "-l", "app=web", "--no-headers"]);
        pods = answer.unwrap_or_default();
        Ok(pods.lines().count() == 3)
    })?;
    for pod in web.pods()? {
        let row = pods.lines().find(|row| row.starts_with(&pod));
        let words: Vec<_> = row.unwrap_or_default().split_whitespace().collect();
        ensure!(
            words.len() == 3 && words[1].ends_with('m') && words[2].ends_with("Mi"),
            "{pods}"
        );
    }
    let metrics = namespace.run(&["get", "podmetrics", "-l", "app=nobody"]);
    ensure!(metrics?.trim().is_empty());
    let metrics = namespace.run(&["get", "podmetrics"])?;
    ensure!(metrics.starts_with("NAME"), "{metrics}");
    let gone = namespace.try_run(&["get", "podmetrics", "nobody"])?;
    let told = "pods.metrics.k8s.io \"nobody\" not found";
    ensure!(!gone.success && gone.stderr.contains(told), "{gone:?}");
    Ok(())
}

/// Its limit holds the container to a twentieth of a processor.
#[test]
fn an_autoscaler_follows_the_processor_time_of_its_pods() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("hpa")?;
    namespace.apply(
        r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "busy"},
            "spec": {"selector": {"matchLabels": {"app": "busy"}},
                "template": {"metadata": {"labels": {"app": "busy"}}, "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "main", "image": "windlass.dev/busybox:dev",
                        "command": ["sh", "-c", "while :; do :; done"],
                        "resources": {"requests": {"cpu": "20m"}, "limits": {"cpu": "50m"}}}]}}}}"#,
    )?;
    namespace.run(&[
        "autoscale",
        "deployment",
        "busy",
        "--cpu-percent=50",
        "--max=2",
    ])?;
    until(Duration::from_secs(120), "a second pod", || {
        Ok(namespace.field(&["deployment", "busy"], "{.spec.replicas}")? == "2")
    })?;
    let of = "{.status.currentMetrics[0].resource.current.averageUtilization}";
    let utilization = namespace.field(&["hpa", "busy"], of)?;
    ensure!(utilization.parse::<u32>()? > 50, "{utilization}");
    Ok(())
}
