//! What a person and a script need to know about the cluster that runs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::layout;
use crate::preflight::Host;

/// Writes `.windlass/env`, for `source` in a shell.
pub fn write_environment(host: &Host) -> Result<()> {
    let file = layout::environment_file();
    fs::write(&file, environment(host)).with_context(|| format!("writing {}", file.display()))
}

fn environment(host: &Host) -> String {
    let path = |path: PathBuf| path.display().to_string();
    [
        ("WINDLASS_CONTAINERD", path(layout::containerd_socket())),
        ("WINDLASS_AGENT_SOCKET", path(layout::agent_socket())),
        ("WINDLASS_NODE_IP", host.address.to_string()),
        (
            "WINDLASS_AGENT_PID_FILE",
            path(layout::pid_file("node-agent")),
        ),
        (
            "WINDLASS_CONTROL_PLANE_PID_FILE",
            path(layout::pid_file("control-plane")),
        ),
        ("WINDLASS_OUTSIDE_NETNS", layout::OUTSIDE_NETNS.to_owned()),
    ]
    .map(|(name, value)| format!("export {name}={}\n", quoted(&value)))
    .concat()
}

/// Plain where a shell takes it as it is, so that simple parsers can read the file too.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

pub fn print() {
    let kubeconfig = layout::kubeconfig();
    println!(
        "\nkubeconfig: {}\nlogs:       {}\n\ntry:\n  export KUBECONFIG={}\n  \
         kubectl get nodes -o wide\n  kubectl apply -f deploy/examples/web.yaml\n  \
         kubectl expose deployment web --port=80 --target-port=8080 --type=NodePort",
        kubeconfig.display(),
        layout::logs().display(),
        quoted(&kubeconfig.display().to_string()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_shell() {
        assert_eq!(
            quoted("/run/windlass/agent.sock"),
            "/run/windlass/agent.sock"
        );
        assert_eq!(quoted("/home/a b/it's"), r"'/home/a b/it'\''s'");
    }
}
