//! A store outlives `down`, and so do the Nodes in it with the pod CIDRs that they were given, which nobody may
//! change. A cluster that starts with other address families than the last time forgets them: the agents register
//! their Nodes again, which are then given addresses of the families that there are now.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::preflight::Host;
use crate::{layout, process};

pub const IPV4: &str = "ipv4";
pub const BOTH: &str = "ipv4,ipv6";

/// Stands beside the store.
fn file() -> PathBuf {
    layout::data().join("ip-families")
}

fn of(host: &Host) -> &'static str {
    if host.dual_stack { BOTH } else { IPV4 }
}

/// What the store was last used with.
pub fn last() -> String {
    let families = fs::read_to_string(file()).unwrap_or_else(|_| IPV4.to_owned());
    families.trim().to_owned()
}

/// Whether the store may hold Nodes of other families than these.
pub fn changed(host: &Host) -> bool {
    last() != of(host)
}

pub fn remember(host: &Host) -> Result<()> {
    fs::write(file(), format!("{}\n", of(host)))
        .with_context(|| format!("writing {}", file().display()))
}

/// To be done while no agent runs.
pub fn forget_nodes(kubectl: &mut Command) -> Result<()> {
    process::output(kubectl.args(["delete", "nodes", "--all"])).map(drop)
}
