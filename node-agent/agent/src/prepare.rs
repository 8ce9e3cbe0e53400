//! What must be true on the node before the agent's container starts: bpffs is mounted.
//!
//! systemd mounts it on most hosts, but not where the node is itself a container (kind). Mounted
//! by the agent in its own view of mounts it would end with the container, and every pin with it:
//! so a short-lived init container does it in the node's.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};

pub(crate) fn prepare(mount_namespace: &Path) -> anyhow::Result<()> {
    // The node's folder is mounted into the container: on most hosts that is all there is to see.
    if windlass_datapath::standard_bpffs_is_mounted()? {
        return Ok(());
    }
    let shown = mount_namespace.display();
    let namespace = File::open(mount_namespace)
        .with_context(|| format!("open the node's mount namespace {shown}"))?;
    // Possible only while the process has one thread.
    setns(namespace, CloneFlags::CLONE_NEWNS).with_context(|| format!("enter {shown}"))?;
    windlass_datapath::mount_standard_bpffs().context("mount bpffs on the node")
}
