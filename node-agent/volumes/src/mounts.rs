//! Mounts below a pod's folder, and their end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Result;
use crate::error::io_error;

/// Mounts memory on the folder `path`, unless something is mounted there already.
pub(crate) fn memory(path: &Path, size_limit: Option<u64>) -> Result<()> {
    if is_mount_point(path) {
        return Ok(());
    }
    let options = size_limit.map(|bytes| format!("size={bytes}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        flags,
        options.as_deref(),
    )
    .map_err(|errno| io_error("mount memory on", path)(errno.into()))
}

/// Mounts huge pages of a size on the folder `path`, unless something is mounted there already.
pub(crate) fn huge_pages(path: &Path, size: &str) -> Result<()> {
    if is_mount_point(path) {
        return Ok(());
    }
    let options = format!("pagesize={size}");
    let (kind, none) = ("hugetlbfs", MsFlags::empty());
    mount(Some(kind), path, Some(kind), none, Some(options.as_str()))
        .map_err(|errno| io_error("mount huge pages on", path)(errno.into()))
}

/// Binds `source` to the existing `target`.
pub(crate) fn bind(source: &Path, target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .map_err(|errno| io_error("bind", target)(errno.into()))
}

/// Mounts the file system of a block device on the folder `path`, unless it is there already.
pub(crate) fn device(source: &Path, path: &Path, fs_type: &str) -> Result<()> {
    if is_mount_point(path) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID;
    mount(Some(source), path, Some(fs_type), flags, None::<&str>)
        .map_err(|errno| io_error("mount a device on", path)(errno.into()))
}

/// Takes off what is mounted on `target` last.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(|errno| io_error("unmount", target)(errno.into()))
}

/// Whether another file system is mounted on `path`. (A bind within one file system
/// is not seen; those are made once and found by their target.)
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    match path.parent() {
        Some(parent) => device(path) != device(parent),
        None => true,
    }
}

/// Unmounts everything below a folder, which may not be there.
pub(crate) fn unmount_below(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    mounted_below(folder)?
        .iter()
        .try_for_each(|target| unmount(target))
}

/// Makes mounts below `folder` travel between the node and the containers that ask for that: what a container mounts
/// there (a CSI driver does) has to appear on the node. Most nodes' roots are shared; where this one is not, the folder
/// becomes a shared mount of its own.
pub fn share(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(io_error("read", table))?;
    let real = folder.canonicalize().map_err(io_error("resolve", folder))?;
    if is_shared(&text, &real) {
        return Ok(());
    }
    // What is mounted already would stay below, out of reach.
    if !mounted_below(folder)?.iter().all(|mount| *mount == real) {
        tracing::warn!(folder = %folder.display(), "mounts do not travel: the folder is on a private mount and in use");
        return Ok(());
    }
    bind(folder, folder)?;
    let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, folder, None::<&str>, flags, None::<&str>)
        .map_err(|errno| io_error("share", folder)(errno.into()))
}

/// Whether the mount on which `path` lies is shared, by a `mountinfo`.
fn is_shared(table: &str, path: &Path) -> bool {
    let on_the_way = table.lines().filter_map(|line| {
        let target = unescape(line.split(' ').nth(4)?);
        path.starts_with(&target).then_some((target.len(), line))
    });
    // Of those on one target, the last one is on top.
    let last = on_the_way.max_by_key(|(length, _)| *length);
    last.is_some_and(|(_, line)| {
        let optional = line.split(' ').skip(6).take_while(|word| *word != "-");
        optional.into_iter().any(|word| word.starts_with("shared:"))
    })
}

/// Unmounts everything below a pod's folder and removes it. Does nothing if there is none.
///
/// Nothing is removed while anything is still mounted there: a failed unmount must
/// never turn into the deletion of what is mounted.
pub fn tear_down(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for target in mounted_below(folder)? {
        umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| io_error("unmount", &target)(errno.into()))?;
    }
    if let Some(left) = mounted_below(folder)?.first() {
        let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
        return Err(io_error("unmount", left)(busy));
    }
    fs::remove_dir_all(folder).map_err(io_error("remove", folder))
}

/// The mount points below `folder`, the last mounted one first.
pub(crate) fn mounted_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(io_error("read", table))?;
    let folder = folder.canonicalize().map_err(io_error("resolve", folder))?;
    let targets = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    let mut below: Vec<PathBuf> = targets
        .map(PathBuf::from)
        .filter(|target| target.starts_with(&folder))
        .collect();
    below.reverse();
    Ok(below)
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\ooo`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = || {
            let digits = std::str::from_utf8(tail.get(..3)?).ok()?;
            u8::from_str_radix(digits, 8).ok()
        };
        match octal().filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_counts_is_the_innermost_and_last() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
                     2 1 8:1 / /var rw - ext4 /dev/a rw\n\
                     3 2 8:1 / /var/lib/x rw - ext4 /dev/a rw\n\
                     4 3 8:1 / /var/lib/x rw master:3 shared:7 - ext4 /dev/a rw\n";
        assert!(is_shared(table, Path::new("/home")));
        assert!(!is_shared(table, Path::new("/var/lib/xy")));
        assert!(is_shared(table, Path::new("/var/lib/x/pods")));
    }

    #[test]
    fn the_kernels_escapes_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/end\\"), "/end\\");
    }
}
