//! An image that cannot be pulled is that pod's problem only.

use std::time::Duration;

use anyhow::{Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::namespace::Namespace;

const WAITING: &str = "{.status.containerStatuses[0].state.waiting.reason}";

#[test]
fn an_image_that_cannot_be_pulled_is_reported_while_the_node_goes_on() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("pull")?;
    // Port 1 of the loopback address refuses at once, with or without a network.
    namespace.apply(&pod("broken", "127.0.0.1:1/no/such:image", "Always"))?;
    let mut seen = std::collections::BTreeSet::new();
    until(
        Duration::from_secs(60),
        "ErrImagePull and ImagePullBackOff",
        || {
            seen.insert(namespace.field(&["pod", "broken"], WAITING)?);
            Ok(seen.contains("ErrImagePull") && seen.contains("ImagePullBackOff"))
        },
    )?;
    ensure!(namespace.field(&["pod", "broken"], "{.status.phase}")? == "Pending");
    until(Duration::from_secs(20), "the event", || {
        let events = namespace.run(&["get", "events"])?;
        Ok(events.contains("Failed to pull image") && events.contains("127.0.0.1:1/no/such:image"))
    })?;
    namespace.start_client("healthy")?;
    namespace.run(&["delete", "pod", "broken", "--timeout=30s"])?;
    Ok(())
}

#[test]
fn an_image_that_may_not_be_pulled_is_reported_as_such() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("never")?;
    namespace.apply(&pod("broken", "windlass.dev/no-such:dev", "Never"))?;
    until(Duration::from_secs(60), "ErrImageNeverPull", || {
        Ok(namespace.field(&["pod", "broken"], WAITING)? == "ErrImageNeverPull")
    })?;
    for (asked, told) in [
        (
            &["logs", "broken"][..],
            "is waiting to start: ErrImageNeverPull",
        ),
        (
            &["exec", "broken", "--", "ls"],
            "container not found (\"main\")",
        ),
    ] {
        let refused = namespace.run(asked).err().map(|error| format!("{error:#}"));
        ensure!(
            refused.as_ref().is_some_and(|why| why.contains(told)),
            "{asked:?}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_container_that_keeps_failing_is_backed_off() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("crash")?;
    namespace.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "crash"},
            "spec": {"containers": [{"name": "main", "image": "windlass.dev/busybox:dev",
                "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "exit 3"]}]}}"#,
    )?;
    until(Duration::from_secs(90), "CrashLoopBackOff", || {
        Ok(namespace.field(&["pod", "crash"], WAITING)? == "CrashLoopBackOff")
    })?;
    let last = "{.status.containerStatuses[0].lastState.terminated.exitCode}";
    ensure!(namespace.field(&["pod", "crash"], last)? == "3");
    Ok(())
}

fn pod(name: &str, image: &str, policy: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}},
            "spec": {{"terminationGracePeriodSeconds": 0, "containers": [
                {{"name": "main", "image": "{image}", "imagePullPolicy": "{policy}"}}]}}}}"#
    )
}
