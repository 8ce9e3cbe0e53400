//! A part of a volume, as a mount of its own or to be read.
//!
//! The volume's content belongs to the containers, so a symbolic link in it may point
//! anywhere on the host. The path is therefore opened by the kernel with the order to
//! stay beneath the volume, and what was opened, not its name, is bound to a place that
//! containers cannot reach.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};

use crate::error::io_error;
use crate::payload::check_path;
use crate::{Result, mounts};

/// What of a volume's mode its new folders take over.
const MODE_KEPT: Mode = Mode::S_IRWXU
    .union(Mode::S_IRWXG)
    .union(Mode::S_IRWXO)
    .union(Mode::S_ISGID);

/// Gives a path that shows `sub_path` of the volume at `volume`; a missing one becomes
/// a folder. `place` is where the part gets bound.
pub fn prepare(volume: &Path, sub_path: &str, place: &Path) -> Result<PathBuf> {
    let sub_path = sub_path.trim_end_matches('/');
    check_path(sub_path)?;
    let root: OwnedFd = fs::File::open(volume)
        .map_err(io_error("open", volume))?
        .into();
    let part = match open_beneath(&root, Path::new(sub_path)) {
        Ok(part) => part,
        Err(Errno::ENOENT) => make(root, sub_path)
            .map_err(|errno| io_error("create", &volume.join(sub_path))(errno.into()))?,
        Err(errno) => return Err(io_error("open", &volume.join(sub_path))(errno.into())),
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd()));
    let is_bound = place.exists()
        && mounts::mounted_below(place)?
            .iter()
            .any(|target| target == place);
    if is_bound {
        if identity(&source)? == identity(place)? {
            return Ok(place.to_owned());
        }
        // The volume has another file there by now: the next start sees that one.
        mounts::unmount(place)?;
    }
    let is_folder = fs::metadata(&source)
        .map_err(io_error("examine", &source))?
        .is_dir();
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    if is_folder {
        fs::create_dir_all(place).map_err(io_error("create", place))?;
    } else {
        fs::File::create(place).map_err(io_error("create", place))?;
    }
    mounts::bind(&source, place)?;
    Ok(place.to_owned())
}

/// Reads a file of the volume at `volume`, of `most` bytes at the most; None if there is none.
pub fn read(volume: &Path, path: &str, most: u64) -> Result<Option<Vec<u8>>> {
    check_path(path)?;
    let failed = |error: io::Error| io_error("read", &volume.join(path))(error);
    let root: OwnedFd = fs::File::open(volume)
        .map_err(io_error("open", volume))?
        .into();
    // Whatever else than a file lies there must not keep the reader waiting.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let file: fs::File = match open_with(&root, Path::new(path), flags) {
        Ok(file) => file.into(),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is no file")));
    }
    let mut content = Vec::new();
    let count = file.take(most + 1).read_to_end(&mut content);
    if count.map_err(failed)? as u64 > most {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    Ok(Some(content))
}

/// By which two names of one file are known to be that.
fn identity(path: &Path) -> Result<(u64, u64)> {
    let metadata = fs::metadata(path).map_err(io_error("examine", path))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes the missing folders of a path, never leaving what was opened. They are as open as the
/// volume is: whoever may write to that may write to them.
fn make(root: OwnedFd, sub_path: &str) -> nix::Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(fstat(&root)?.st_mode) & MODE_KEPT;
    let mut at = root;
    for part in Path::new(sub_path).components() {
        let part: &Path = part.as_ref();
        match mkdirat(&at, part, mode) {
            // The umask has taken its part.
            Ok(()) => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
                fchmod(open_with(&at, part, flags)?, mode)?;
            }
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        at = open_beneath(&at, part)?;
    }
    Ok(at)
}

fn open_beneath(at: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    open_with(at, path, OFlag::O_PATH)
}

fn open_with(at: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(at, path, how)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_link_out_of_the_volume_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        symlink("/etc", volume.join("escape")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        let place = root.path().join("place");
        for sub_path in ["escape", "escape/hostname", "up", "../outside", "/etc"] {
            assert!(prepare(&volume, sub_path, &place).is_err(), "{sub_path}");
        }
        assert!(!place.exists());
    }

    #[test]
    fn only_a_file_of_the_volume_itself_is_read() {
        let volume = tempfile::tempdir().unwrap();
        let at = |name: &str| volume.path().join(name);
        let read = |name: &str| read(volume.path(), name, 4);
        fs::write(at("short"), "1234").unwrap();
        fs::write(at("long"), "12345").unwrap();
        symlink("short", at("inside")).unwrap();
        symlink("/etc/hostname", at("escape")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        for name in ["short", "inside"] {
            assert_eq!(read(name).unwrap().as_deref(), Some(&b"1234"[..]), "{name}");
        }
        assert_eq!(read("absent").unwrap(), None);
        for name in ["long", "escape", "pipe", ".", "../x", "/etc/hostname"] {
            assert!(read(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_is_bound_anew() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("pod");
        let volume = folder.join("volume");
        fs::create_dir_all(&volume).unwrap();
        let place = folder.join("subpaths/0");
        fs::write(volume.join("f"), "old").unwrap();
        let shown = prepare(&volume, "f", &place).unwrap();
        fs::write(volume.join("new"), "new").unwrap();
        fs::rename(volume.join("new"), volume.join("f")).unwrap();
        assert_eq!(fs::read_to_string(&shown).unwrap(), "old");
        let shown = prepare(&volume, "f", &place).unwrap();
        assert_eq!(fs::read_to_string(&shown).unwrap(), "new");
        crate::tear_down(&folder).unwrap();
    }

    #[test]
    fn a_part_is_made_and_bound() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("pod");
        let volume = folder.join("volume");
        fs::create_dir_all(&volume).unwrap();
        let place = folder.join("subpaths/0");
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
        let shown = prepare(&volume, "a/b", &place).unwrap();
        for made in ["a", "a/b"] {
            let mode = fs::metadata(volume.join(made)).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o2777, "{made} is as open as its volume");
        }
        fs::write(volume.join("a/b/file"), "x").unwrap();
        assert_eq!(fs::read_to_string(shown.join("file")).unwrap(), "x");
        assert_eq!(
            prepare(&volume, "a/b", &place).unwrap(),
            shown,
            "asking again is harmless"
        );
        crate::tear_down(&folder).unwrap();
        assert!(!folder.exists());
    }
}
