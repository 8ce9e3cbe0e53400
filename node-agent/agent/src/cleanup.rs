//! Taking Windlass off a node.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use windlass_network::Settings;
use windlass_network::cni_conf;
use windlass_network::interface::{Namespace, PREFIX};
use windlass_pods::Cgroups;

use crate::cli::{CleanupOptions, NETWORK_STATE};
use crate::{dns, proc_sys, this_node};

/// Removes everything that the kernel holds for agents which do not run any more. Each
/// step is tried even if another one fails.
pub(crate) async fn cleanup(options: CleanupOptions) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    if let Some(folder) = &options.cni_conf_dir
        && let Err(error) = cni_conf::remove(folder)
    {
        problems.push(format!(
            "the CNI configuration in {}: {error}",
            folder.display()
        ));
    }
    if let Some(folder) = &options.cni_bin_dir
        && let Err(error) = cni_conf::remove_plugin(folder)
    {
        problems.push(format!("the CNI plugin in {}: {error}", folder.display()));
    }
    if let Err(error) = dns::remove(&options.socket) {
        problems.push(format!("cluster DNS: {error:#}"));
    }
    if let Err(error) = remove_datapath(&options.bpffs).await {
        problems.push(format!("the datapath: {error:#}"));
    }
    if let Err(error) = remove_interfaces().await {
        problems.push(format!("pod interfaces: {error:#}"));
    }
    if let Err(error) = restore_settings(&options.state_dir).await {
        problems.push(format!("settings of the uplinks: {error:#}"));
    }
    if let Err(error) = forget(&options.state_dir, &options.socket) {
        problems.push(format!(
            "the state in {}: {error}",
            options.state_dir.display()
        ));
    }
    if let Some(root) = &options.cgroup_root {
        let cgroups = Cgroups::detect(&options.cgroup_mount, root);
        let removed = match cgroups {
            Ok(cgroups) => cgroups.remove_root().await,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            problems.push(format!("pods' cgroups: {error}"));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("not removed: {}", problems.join("; "))
    }
}

/// Interfaces of other plugins' pods lose the qdisc with its last filter, if that was ours.
async fn remove_datapath(bpffs: &Path) -> anyhow::Result<()> {
    let host = Namespace::current().await?;
    let before = host.filtered().await?;
    windlass_datapath::cleanup(bpffs)?;
    let after = host.filtered().await?;
    for index in before.difference(&after) {
        host.remove_clsact(*index).await?;
    }
    Ok(())
}

async fn restore_settings(state_dir: &Path) -> anyhow::Result<()> {
    proc_sys::make_writable()?;
    let settings = Settings::noted_in(&state_dir.join(NETWORK_STATE));
    settings.restore(&Namespace::current().await?).await?;
    Ok(())
}

/// Forgets what only an agent on this node has a use for: addresses that pods were given, its own, its socket.
fn forget(state_dir: &Path, socket: &Path) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(fs::remove_dir_all(state_dir.join(NETWORK_STATE)))?;
    gone(fs::remove_file(state_dir.join(this_node::MEMORY)))?;
    gone(fs::remove_file(socket))
}

/// Pods' host ends are `wl` and eleven hexadecimal digits; nothing else is ours to remove. By
/// netlink: the agent's image has no other program in it.
async fn remove_interfaces() -> anyhow::Result<()> {
    let host = Namespace::current().await?;
    let links = host.links().await.context("list interfaces")?;
    for link in links.iter().filter(|link| is_host_end(&link.name)) {
        host.remove(link.index)
            .await
            .with_context(|| format!("delete {}", link.name))?;
    }
    windlass_network::routes::remove_all(&host)
        .await
        .context("remove the ways to other nodes")?;
    Ok(())
}

fn is_host_end(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).unwrap_or_default();
    digits.len() == 11 && digits.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_host_ends_are_ours() {
        assert!(is_host_end("wl0123456789a"));
        for name in ["wlout0", "wlan0", "eth0", "wl0123456789", "wl0123456789g"] {
            assert!(!is_host_end(name), "{name}");
        }
    }
}
