//! Stopping a container the way it was promised: hook, signal, grace, kill.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use crate::hooks;
use crate::model::slot;
use crate::node::Node;
use crate::recorder::Severity;

/// What is left for the signal when the hook used up the grace period.
const AFTER_HOOK: Duration = Duration::from_secs(2);

/// Runs the container's last hook and stops it, all within `grace`; returns when it is dead.
pub(crate) async fn stop_container(
    node: &Node,
    pod: &Pod,
    name: &str,
    id: &str,
    ip: Option<IpAddr>,
    grace: Duration,
) -> Result<(), String> {
    let end = Instant::now() + grace;
    let container = slot(pod, name).map(|slot| slot.container.into_owned());
    let hook = container.as_ref().and_then(|container| {
        let hook = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
        Some((container, hook))
    });
    let mut left = grace;
    if let Some((container, hook)) = hook.filter(|_| !grace.is_zero()) {
        let run = hooks::run(&node.runtime, hook, container, id, ip);
        let problem = match tokio::time::timeout(grace, run).await {
            Ok(Ok(())) => None,
            Ok(Err(message)) => Some(message),
            Err(_) => Some("the hook did not end within the grace period".to_owned()),
        };
        if let Some(problem) = problem {
            let warning = Severity::Warning;
            node.recorder
                .pod(pod, Some(name), warning, "FailedPreStopHook", problem);
        }
        left = end
            .saturating_duration_since(Instant::now())
            .max(AFTER_HOOK);
    }
    let stopped = node.runtime.stop_container(id, left).await;
    stopped.map_err(|error| error.to_string())
}
