//! The pin directory: `<bpffs>/v<layout>/` holds the maps by name, `links/` the links.
//!
//! The layout version is in the path, so that a build with other layouts can never
//! mistake these maps for its own; a migration opens both directories.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use crate::{
    error::{Error, Result},
    sys,
};

/// Where the kernel expects bpffs, and where systemd mounts it.
pub(crate) const STANDARD: &str = "/sys/fs/bpf";

/// The source that a mount of ours shows in `/proc/mounts`, to know it again.
pub(crate) const MOUNT_SOURCE: &str = "windlass";

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

#[derive(Clone, Debug)]
pub(crate) struct PinDirectory {
    root: PathBuf,
}

impl PinDirectory {
    /// Makes the directory, mounting bpffs on the given path when it is not on one.
    pub(crate) fn prepare(bpffs: &Path, layout: u32) -> Result<Self> {
        let pins = Self {
            root: bpffs.join(format!("v{layout}")),
        };
        // Its parent is a directory of sysfs, in which nothing can be created.
        let standard = Path::new(STANDARD);
        if bpffs.starts_with(standard) && !is_bpffs(standard)? {
            mount_bpffs(standard)?;
        }
        create(bpffs)?;
        if !is_bpffs(bpffs)? {
            mount_bpffs(bpffs)?;
        }
        create(&pins.root)?;
        create(&pins.links())?;
        Ok(pins)
    }

    /// The newest state that an agent of another layout left.
    pub(crate) fn predecessor(&self) -> Result<Option<PathBuf>> {
        let Some(bpffs) = self.root.parent() else {
            return Ok(None);
        };
        let entries = fs::read_dir(bpffs).map_err(|source| pin_error("list", bpffs, source))?;
        let versions = entries.filter_map(|entry| {
            let path = entry.ok()?.path();
            let version: u32 = path
                .file_name()?
                .to_str()?
                .strip_prefix('v')?
                .parse()
                .ok()?;
            (path != self.root).then_some((version, path))
        });
        Ok(versions.max().map(|(_, path)| path))
    }

    pub(crate) fn maps(&self) -> &Path {
        &self.root
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    pub(crate) fn pinned_links(&self) -> Result<Vec<PathBuf>> {
        entries(&self.links())
    }
}

/// What is in a directory; nothing where there is none.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = |error| pin_error("list", directory, error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(listed(error)),
    };
    let paths = entries.map(|entry| Ok(entry.map_err(listed)?.path()));
    paths.collect()
}

/// Whether bpffs is mounted where the kernel expects it.
pub fn standard_bpffs_is_mounted() -> Result<bool> {
    is_bpffs(Path::new(STANDARD))
}

/// Mounts bpffs where the kernel expects it, unless it is there.
pub fn mount_standard_bpffs() -> Result<()> {
    if standard_bpffs_is_mounted()? {
        return Ok(());
    }
    mount_bpffs(Path::new(STANDARD))
}

fn mount_bpffs(path: &Path) -> Result<()> {
    tracing::info!(path = %path.display(), "mounting bpffs");
    mount(
        Some(MOUNT_SOURCE),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|error| pin_error("mount bpffs on", path, error.into()))
}

pub(crate) fn is_bpffs(path: &Path) -> Result<bool> {
    let kind = statfs(path)
        .map_err(|error| pin_error("look at the file system of", path, error.into()))?
        .filesystem_type();
    Ok(kind == FsType(BPF_FS_MAGIC))
}

/// Detaches a pinned link and removes its pin. One that is gone already is fine.
pub(crate) fn remove_link(pin: &Path) -> Result<()> {
    let link = sys::open_pin(pin).map_err(|source| pin_error("open", pin, source))?;
    let Some(link) = link else { return Ok(()) };
    // Fails for a link whose interface or cgroup is gone: that one is detached.
    if let Err(error) = sys::detach_link(link.as_fd()) {
        tracing::debug!(%error, pin = %pin.display(), "link not detached");
    }
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("remove", pin, source))
        }
        _ => Ok(()),
    }
}

fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| pin_error("create", path, error))
}

pub(crate) fn pin_error(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Pins {
        doing,
        path: path.to_owned(),
        source,
    }
}
