//! `/proc/sys`, which a container sees read-only.
//!
//! Forwarding is switched per interface there, and nowhere else. The agent's container has its
//! own view of mounts: made writable in it, the tree stays read-only for everybody else's.

use std::path::Path;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};

const TREE: &str = "/proc/sys";

pub(crate) fn make_writable() -> anyhow::Result<()> {
    let flags = statvfs(Path::new(TREE))
        .with_context(|| format!("look at {TREE}"))?
        .flags();
    if !flags.contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let nothing = None::<&str>;
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        nothing,
        TREE,
        nothing,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | kept,
        nothing,
    )
    .with_context(|| {
        format!("make {TREE} writable for this container (it needs SYS_ADMIN and no AppArmor profile that forbids mounts)")
    })
}
