//! Lifecycle hooks: what a container wants to happen right after its start and before
//! its end.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use windlass_cri::Runtime;

use crate::probe::{Request, get};

/// A hook that runs longer than this hangs; pods that are deleted have a shorter limit.
const MOST: Duration = Duration::from_secs(3600);

/// Runs a hook to its end; the error is for the event.
pub(crate) async fn run(
    runtime: &Runtime,
    hook: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.clone().unwrap_or_default();
        return match runtime.exec_sync(container_id, &command, MOST).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!(
                "command {command:?} exited with {}: {}",
                output.exit_code,
                String::from_utf8_lossy(&output.stderr)
            )),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &hook.http_get {
        let request = Request::of(action, container, ip)?;
        let answer = get(&request).await?;
        return match answer.is_success() {
            true => Ok(()),
            false => Err(format!(
                "the hook was answered with {}: {}",
                answer.status, answer.body
            )),
        };
    }
    if let Some(action) = &hook.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    // tcpSocket is in the API and does nothing, by contract.
    Ok(())
}
