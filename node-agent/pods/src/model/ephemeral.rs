//! Ephemeral containers: what `kubectl debug` adds to a pod that runs.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer};

/// The same container without its target. The API has two types for what is started in the
/// same way; from here on there is one.
pub(super) fn as_container(ephemeral: &EphemeralContainer) -> Container {
    macro_rules! without_target {
        ($($field:ident)+) => {{
            let EphemeralContainer { target_container_name: _, $($field),+ } = ephemeral.clone();
            Container { $($field),+ }
        }};
    }
    without_target! {
        args command env env_from image image_pull_policy lifecycle liveness_probe name ports
        readiness_probe resize_policy resources restart_policy restart_policy_rules security_context
        startup_probe stdin stdin_once termination_message_path termination_message_policy tty
        volume_devices volume_mounts working_dir
    }
}
