//! A store outlives `down`, and so do the Nodes in it with the pod CIDRs that they were given, which nobody may
//! change. A cluster that starts with other address families than the last time forgets them: the agents register
//! their Nodes again, which are then given addresses of the families that there are now. Services keep the family that
//! they were given first, that of the API server among them: a cluster of IPv6 alone has a store of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{layout, process};

/// Of addresses that Nodes, pods and Services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Ipv4,
    Both,
    Ipv6,
}

impl Families {
    pub const ALL: [Self; 3] = [Self::Ipv4, Self::Both, Self::Ipv6];

    /// As the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Both => "ipv4,ipv6",
            Self::Ipv6 => "ipv6",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Where the control plane keeps what such a cluster consists of.
    pub fn store(self) -> PathBuf {
        let store = layout::control_plane_data();
        match self {
            Self::Ipv4 | Self::Both => store,
            Self::Ipv6 => store.with_extension("ipv6"),
        }
    }

    pub fn has_ipv6(self) -> bool {
        self != Self::Ipv4
    }

    /// A value of a flag that names one network of each family.
    pub fn networks(self, v4: &str, v6: &str) -> String {
        match self {
            Self::Ipv4 => v4.to_owned(),
            Self::Both => format!("{v4},{v6}"),
            Self::Ipv6 => v6.to_owned(),
        }
    }
}

/// Stands beside the store.
fn file() -> PathBuf {
    layout::data().join("ip-families")
}

/// What the last cluster had.
pub fn last() -> Families {
    let held = fs::read_to_string(file()).ok();
    held.and_then(|name| Families::named(name.trim()))
        .unwrap_or(Families::Ipv4)
}

pub fn remember(families: Families) -> Result<()> {
    fs::write(file(), format!("{}\n", families.name()))
        .with_context(|| format!("writing {}", file().display()))
}

/// To be done while no agent runs.
pub fn forget_nodes(kubectl: &mut Command) -> Result<()> {
    process::output(kubectl.args(["delete", "nodes", "--all"])).map(drop)
}
