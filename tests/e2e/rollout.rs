//! Deployments change under traffic, and nobody who uses them notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::namespace::Namespace;
use windlass_tests::traffic::{Traffic, all_answered};
use windlass_tests::web::Web;

#[test]
fn scaling_to_ten_balances_over_ten() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("scale")?;
    let web = Web::deploy(&namespace)?;
    namespace.run(&["scale", "deployment", "web", "--replicas=10"])?;
    let said = namespace.run(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    ensure!(said.contains("successfully rolled out"), "{said}");
    ensure!(web.pods()?.len() == 10);
    web.wait_until_balanced()?;
    namespace.run(&["scale", "deployment", "web", "--replicas=1"])?;
    until(Duration::from_secs(60), "nine pods to go", || {
        Ok(web.pods()?.len() == 1)
    })?;
    web.wait_until_balanced()
}

#[test]
fn a_rolling_update_loses_no_connection() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("rolling")?;
    let web = Web::deploy(&namespace)?;
    let old = web.pods()?;
    let traffic = Traffic::start(web.cluster_address()?);
    namespace.run(&["set", "env", "deployment/web", "VERSION=2"])?;
    namespace.run(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    let connections = traffic.stop()?;
    all_answered(&connections)?;
    let new = web.pods()?;
    ensure!(
        new.len() == 3 && new.is_disjoint(&old),
        "old {old:?}, new {new:?}"
    );
    let history = namespace.run(&["rollout", "history", "deployment/web"])?;
    ensure!(
        history
            .lines()
            .filter(|line| line.starts_with(['1', '2']))
            .count()
            == 2,
        "{history}"
    );
    Ok(())
}

#[test]
fn a_rollout_can_be_undone() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("undo")?;
    let _web = Web::deploy(&namespace)?;
    let environment = "{.spec.template.spec.containers[0].env[0].name}";
    namespace.run(&["set", "env", "deployment/web", "VERSION=2"])?;
    ensure!(namespace.field(&["deployment", "web"], environment)? == "VERSION");
    namespace.run(&["rollout", "undo", "deployment/web"])?;
    namespace.run(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    ensure!(
        namespace
            .field(&["deployment", "web"], environment)?
            .is_empty()
    );
    Ok(())
}
