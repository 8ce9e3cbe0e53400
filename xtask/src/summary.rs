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
    let names: Vec<&str> = host.nodes.iter().map(|node| node.name.as_str()).collect();
    let mut variables = vec![
        ("WINDLASS_NODES".to_owned(), names.join(",")),
        (
            "WINDLASS_CONTROL_PLANE_PID_FILE".to_owned(),
            path(layout::pid_file("control-plane")),
        ),
        (
            "WINDLASS_OUTSIDE_NETNS".to_owned(),
            layout::OUTSIDE_NETNS.to_owned(),
        ),
    ];
    for node in &host.nodes {
        // Those of the first node have no number.
        let name = |name: &str| match node.layout.number() {
            1 => name.to_owned(),
            number => format!("{name}_{number}"),
        };
        let layout = node.layout;
        variables.extend([
            (
                name("WINDLASS_CONTAINERD"),
                path(layout.containerd_socket()),
            ),
            (name("WINDLASS_AGENT_SOCKET"), path(layout.agent_socket())),
            (name("WINDLASS_KUBELET_ROOT"), path(layout.agent_data())),
            (name("WINDLASS_NODE_IP"), node.address.to_string()),
            (
                name("WINDLASS_AGENT_PID_FILE"),
                path(layout::pid_file(&layout.agent_service())),
            ),
        ]);
        let v6 = node.address_v6.map(|address| address.to_string());
        variables.extend(v6.map(|address| (name("WINDLASS_NODE_IPV6"), address)));
        // What a node agent that is installed by hand has to be told of this machine.
        let uplinks = if layout.is_the_machine() {
            let own = host.uplink.as_deref().into_iter();
            own.chain([layout::OUTSIDE_LINK])
                .collect::<Vec<_>>()
                .join(",")
        } else {
            layout::NODE_LINK.to_owned()
        };
        variables.extend([
            (name("WINDLASS_UPLINKS"), uplinks),
            (name("WINDLASS_CGROUP2"), path(host.cgroup2.clone())),
            (name("WINDLASS_CNI_CONF"), path(layout.cni_conf())),
            (name("WINDLASS_CNI_BIN"), path(layout.cni_bin())),
        ]);
        if let Some(netns) = layout.netns() {
            variables.push((name("WINDLASS_NODE_NETNS"), netns));
        }
    }
    variables
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
        .collect()
}

/// Plain where a shell takes it as it is, so that simple parsers can read the file too.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,".contains(c);
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
