//! Removing everything: pins, and with the last reference the programs and maps.

use std::{fs, io, path::Path};

use aya::programs::{TcAttachType, tc::qdisc_detach_program};
use nix::{
    mount::{MntFlags, umount2},
    net::if_::if_nameindex,
};

use crate::{
    bpffs::{MOUNT_SOURCE, STANDARD, entries, is_bpffs, pin_error, remove_link},
    error::{Error, Result},
};

/// Detaches every program of every layout version pinned under `bpffs`, removes the
/// directory, and unmounts the bpffs that an earlier run mounted. Nothing there is fine.
pub fn cleanup(bpffs: &Path) -> Result<()> {
    remove_filters()?;
    if bpffs.exists() {
        if is_bpffs(bpffs)? {
            // Links first: a program without its pinned maps goes on, but nobody could
            // find it any more.
            for version in children(bpffs)? {
                remove_links(&version.join("links"))?;
                remove_tree(&version)?;
            }
        }
        unmount_ours(bpffs)?;
        match fs::remove_dir(bpffs) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(pin_error("remove", bpffs, source));
            }
            _ => {}
        }
    }
    unmount_ours(Path::new(STANDARD))
}

/// Unmounts bpffs from a path where this project mounted it, unless others pinned
/// something there meanwhile.
fn unmount_ours(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|source| pin_error("read", Path::new("/proc/self/mounts"), source))?;
    let ours = mounts.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(MOUNT_SOURCE)
            && fields.next() == path.to_str()
            && fields.next() == Some("bpf")
    });
    if !ours || holds_pins(path)? {
        return Ok(());
    }
    // Lazily: nothing is pinned any more, and whoever happens to look into it (a scan of the
    // mount table is enough) must not make the cleanup fail.
    umount2(path, MntFlags::MNT_DETACH).map_err(|error| pin_error("unmount", path, error.into()))
}

/// The kernel's own two iterators (`maps.debug`, `progs.debug`) are in every bpffs.
fn holds_pins(path: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(path).map_err(|source| pin_error("list", path, source))?;
    Ok(entries.any(|entry| {
        entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().ends_with(".debug"))
    }))
}

fn remove_links(directory: &Path) -> Result<()> {
    for pin in entries(directory)? {
        remove_link(&pin)?;
    }
    Ok(())
}

/// Filters of a clsact qdisc are kept by the interface, not by a pin.
fn remove_filters() -> Result<()> {
    let interfaces = if_nameindex().map_err(|error| Error::Link {
        doing: "list interfaces",
        target: "this network namespace".to_owned(),
        source: error.into(),
    })?;
    let hooks = [
        (TcAttachType::Ingress, ["from_pod", "from_uplink"]),
        (TcAttachType::Egress, ["to_pod", "to_uplink"]),
    ];
    for interface in &interfaces {
        let Ok(name) = interface.name().to_str() else {
            continue;
        };
        for (side, programs) in hooks {
            for program in programs {
                // An error says that there is no such filter, or no qdisc for one.
                if qdisc_detach_program(name, side, program).is_ok() {
                    tracing::debug!(interface = name, program, "filter removed");
                }
            }
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("remove", path, source))
        }
        _ => Ok(()),
    }
}

/// The directories of ours, `v<number>`; others' pins on a shared bpffs stay.
fn children(bpffs: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(bpffs).map_err(|source| pin_error("list", bpffs, source))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| pin_error("list", bpffs, source))?;
        let is_ours = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix('v'))
            .is_some_and(|number| number.parse::<u32>().is_ok());
        if is_ours {
            found.push(entry.path());
        }
    }
    Ok(found)
}
