//! Parts of the cluster die at any moment; what users have running goes on, and what they wrote is still there.

use std::time::Duration;

use anyhow::{Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::{pause, until};
use windlass_tests::kubectl::try_kubectl;
use windlass_tests::namespace::Namespace;
use windlass_tests::traffic::{Traffic, all_answered};
use windlass_tests::web::Web;

const BACK_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn a_killed_agent_adopts_its_pods_and_no_connection_is_lost() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("agent")?;
    let web = Web::deploy(&namespace)?;
    let containers = container_ids(&namespace)?;
    let traffic = Traffic::start(web.cluster_address()?);
    let killed = cluster.agent()?.kill()?;
    until(BACK_WITHIN, "the agent to come back", || {
        Ok(cluster.agent()?.runs_again(killed))
    })?;
    // It works again when it can start a pod.
    namespace.start_client("after")?;
    let connections = traffic.stop()?;
    all_answered(&connections)?;
    namespace.run(&["delete", "pod", "after", "--timeout=60s"])?;
    ensure!(
        container_ids(&namespace)? == containers,
        "a container was replaced"
    );
    web.is_balanced_over_all_pods(web.cluster_address()?)
}

#[test]
fn services_work_while_the_agent_is_dead() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("noagent")?;
    let web = Web::deploy(&namespace)?;
    let (service, pods) = (web.cluster_address()?, web.pods()?);
    let agent = cluster.agent()?;
    let mut killed = agent.kill()?;
    // The supervisor waits longer from death to death, so that some connections meet no agent at all.
    for _ in 0..3 {
        for _ in 0..20 {
            let answer = windlass_tests::http::get_text(service, "/")?;
            ensure!(pods.contains(&answer), "{answer}");
        }
        until(BACK_WITHIN, "the agent to come back", || {
            Ok(agent.runs_again(killed))
        })?;
        killed = agent.kill()?;
    }
    until(BACK_WITHIN, "the agent to come back", || {
        Ok(agent.runs_again(killed))
    })?;
    namespace.start_client("after")
}

#[test]
fn a_killed_control_plane_comes_back_with_everything_it_acknowledged() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("control")?;
    let web = Web::deploy(&namespace)?;
    let containers = container_ids(&namespace)?;
    let traffic = Traffic::start(web.cluster_address()?);
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let name = format!("round-{round}");
        namespace.run(&["create", "configmap", &name, "--from-literal=key=value"])?;
        acknowledged.push(name);
        let killed = cluster.control_plane()?.kill()?;
        until(BACK_WITHIN, "the control plane to come back", || {
            Ok(cluster.control_plane()?.runs_again(killed)
                && try_kubectl(&["get", "--raw", "/readyz"], "")?.success)
        })?;
        for name in &acknowledged {
            ensure!(namespace.field(&["configmap", name], "{.data.key}")? == "value");
        }
    }
    namespace.run(&["scale", "deployment", "web", "--replicas=4"])?;
    namespace.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    all_answered(&traffic.stop()?)?;
    let now = container_ids(&namespace)?;
    ensure!(
        containers.iter().all(|id| now.contains(id)),
        "a container was replaced"
    );
    web.wait_until_balanced()
}

#[test]
fn a_killed_control_plane_takes_no_connection_along() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("data")?;
    let web = Web::deploy(&namespace)?;
    let traffic = Traffic::start(web.cluster_address()?);
    pause(Duration::from_millis(200));
    let killed = cluster.control_plane()?.kill()?;
    until(BACK_WITHIN, "the control plane to come back", || {
        Ok(cluster.control_plane()?.runs_again(killed)
            && try_kubectl(&["get", "--raw", "/readyz"], "")?.success)
    })?;
    // Long enough for the agent's watches to come back and for it to act on anything it misunderstood.
    pause(Duration::from_secs(3));
    all_answered(&traffic.stop()?)
}

fn container_ids(namespace: &Namespace) -> Result<Vec<String>> {
    let path = "{.items[*].status.containerStatuses[*].containerID}";
    let mut ids: Vec<_> = namespace
        .field(&["pods"], path)?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    ids.sort();
    ensure!(!ids.is_empty(), "no container");
    Ok(ids)
}
