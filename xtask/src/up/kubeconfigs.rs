//! Who may ask the API server: the user, and each node's agent. The CA is made by the control plane's first start;
//! what it signs here is new with each `up`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::cluster::START_LIMIT;
use crate::preflight::Host;
use crate::{cargo, layout, process, wait};

/// Waits for the CA, unless `is_hopeless`.
pub fn write_for_users(host: &Host, is_hopeless: impl Fn() -> bool) -> Result<()> {
    let made_last = host.families.store().join("admin.kubeconfig");
    wait::until(START_LIMIT, || made_last.exists() || is_hopeless());
    if !made_last.exists() {
        bail!("the control plane has made no CA");
    }
    let file = layout::kubeconfig();
    sign(host, "kubernetes-admin", "system:masters", &file)
}

pub fn write_for_agents(host: &Host) -> Result<()> {
    for node in &host.nodes {
        // The agent starts as soon as its file has its name, so it gets that name when it is complete.
        let file = node.layout.kubeconfig();
        let partial = file.with_extension("partial");
        let user = format!("system:node:{}", node.name);
        sign(host, &user, "system:nodes", &partial)?;
        fs::rename(partial, file)?;
    }
    Ok(())
}

fn sign(host: &Host, user: &str, group: &str, file: &Path) -> Result<()> {
    let server = SocketAddr::new(host.address, layout::API_PORT);
    let server = format!("https://{server}");
    let mut command = Command::new(cargo::binary("windlass-control-plane"));
    command.arg("kubeconfig").arg("--data-dir");
    command.arg(host.families.store());
    command.args(["--server", &server, "--user", user, "--group", group]);
    process::output(command.arg("--out").arg(file)).map(drop)
}
