//! A pod that goes away takes no new connection with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::{pause, until};
use windlass_tests::http;
use windlass_tests::namespace::Namespace;
use windlass_tests::traffic::{Connection, Traffic, all_answered, longest_pause};
use windlass_tests::web::Web;

/// What it may take from the API server's answer to the node's maps.
const PROPAGATION: Duration = Duration::from_millis(250);
/// The promise: a dead endpoint is gone this long after its container's exit.
const DEAD_WITHIN: Duration = Duration::from_secs(1);
/// Between an event and the last of what follows from it lie so many processes, each of which waits for its turn on a
/// busy machine as the client did.
const PROCESSES: u32 = 5;

#[test]
fn a_deleted_pod_is_replaced_and_gets_no_new_connection_once_it_is_terminating() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("orderly")?;
    let web = Web::deploy(&namespace)?;
    let victim = web.pods()?.pop_first().context("a pod")?;
    let traffic = Traffic::start(web.cluster_address()?);
    traffic.reaches(&victim)?;
    namespace.run(&["delete", "pod", &victim, "--wait=false"])?;
    let terminating = Instant::now();
    until(Duration::from_secs(60), "a replacement", || {
        Ok(web.pods()?.len() == 3)
    })?;
    namespace.run(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    namespace.run(&[
        "wait",
        "--for=delete",
        "--timeout=60s",
        &format!("pod/{victim}"),
    ])?;
    web.wait_until_balanced()?;
    let connections = traffic.stop()?;
    all_answered(&connections)?;
    let heard = terminating + PROPAGATION + PROCESSES * longest_pause(&connections);
    if let Some(late) =
        answered_by(&connections, &victim).find(|connection| connection.began > heard)
    {
        bail!(
            "{victim} got a connection {:?} after its deletion",
            late.began - terminating
        );
    }
    Ok(())
}

#[test]
fn a_dead_container_gets_no_connection_after_a_second() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("dead")?;
    let web = Web::deploy(&namespace)?;
    let victim = web.pods()?.pop_first().context("a pod")?;
    let address = web.pod_address(&victim)?;
    let traffic = Traffic::start(web.cluster_address()?);
    // As long as it takes to see how late a client may be on this machine.
    pause(Duration::from_millis(500));
    traffic.reaches(&victim)?;
    http::get(address, "/exit/1").context("telling the container to end")?;
    let exited = Instant::now();
    until(
        Duration::from_secs(60),
        "the restart of the container",
        || {
            let path =
                "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
            Ok(namespace.field(&["pod", &victim], path)? == "1 true")
        },
    )?;
    web.wait_until_balanced()?;
    let connections = traffic.stop()?;
    // A connection to the dead one takes as long as it likes: that is no sign of a busy machine.
    let before = connections.iter().take_while(|it| it.began < exited);
    let gone = exited + DEAD_WITHIN + PROCESSES * longest_pause(before);
    let late = connections
        .iter()
        .filter(|connection| connection.began > gone)
        .find(|connection| connection.answer.is_err());
    if let Some(late) = late {
        bail!(
            "{:?} after the exit: {:?}",
            late.began - exited,
            late.answer.as_ref().err()
        );
    }
    Ok(())
}

fn answered_by<'a>(
    connections: &'a [Connection],
    pod: &'a str,
) -> impl Iterator<Item = &'a Connection> {
    connections
        .iter()
        .filter(move |one| one.answer.as_ref().is_ok_and(|name| name == pod))
}
