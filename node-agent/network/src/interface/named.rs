//! A network namespace that outlives whoever made it: mounted on a file, as `ip netns add` does it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{FsType, statfs};

use super::LinkError;

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: FsType = FsType(0x6e73_6673);

/// Makes a namespace at `path`, unless there is one.
///
/// # Errors
/// When the file cannot be made or the namespace not mounted on it.
pub fn ensure(path: &Path) -> Result<(), LinkError> {
    if is_namespace(path) {
        return Ok(());
    }
    make(path).map_err(|source| {
        LinkError::io(
            format!("making the network namespace {}", path.display()),
            source,
        )
    })
}

/// Removes the name; the namespace goes with the last who is in it.
///
/// # Errors
/// When the file stays. One that is not there is removed.
pub fn remove(path: &Path) -> io::Result<()> {
    if is_namespace(path) {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS)
}

fn make(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    File::create(path)?;
    let path = path.to_owned();
    // The namespace of a thread is its own; this one ends with it, the mount stays.
    let maker = std::thread::Builder::new().spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = Path::new("/proc/thread-self/ns/net");
        mount(
            Some(own),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
    })?;
    let made = maker
        .join()
        .map_err(|_| io::Error::other("the thread that made it panicked"))?;
    made.map_err(io::Error::from)
}
