//! Files that change all at once.
//!
//! A volume of small files shows either its old or its new content, never a mix:
//! the files lie in a folder `..<time>`, `..data` is a symbolic link to it that is
//! replaced by rename, and the names that users see are links through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

use crate::error::io_error;
use crate::{Error, Result};

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) content: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// The owner, where it is not root.
    pub(crate) owner: Option<u32>,
}

/// All files of a volume, by their path in it.
pub(crate) type Payload = BTreeMap<String, File>;

/// A path in a volume that stays in it: relative, without `..`.
pub(crate) fn check_path(path: &str) -> Result<()> {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") {
        return Err(Error::Path {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Brings the folder `volume` to hold exactly `payload`, readable by `group` if given.
/// Returns whether anything had to change.
pub(crate) fn write(volume: &Path, payload: &Payload, group: Option<u32>) -> Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    fs::create_dir_all(volume).map_err(io_error("create", volume))?;
    let data = volume.join("..data");
    let old = fs::read_link(&data).ok();
    if let Some(old) = &old
        && holds(&volume.join(old), payload)
    {
        return Ok(false);
    }

    let name = format!("..{}", Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let fresh = volume.join(&name);
    make_folder(&fresh, group)?;
    for (path, file) in payload {
        write_file(&fresh, path, file, group)?;
    }
    let staged = volume.join("..data_tmp");
    remove_if_there(&staged)?;
    symlink(&name, &staged).map_err(io_error("link", &staged))?;
    fs::rename(&staged, &data).map_err(io_error("replace", &data))?;

    link_names(volume, payload)?;
    if let Some(old) = old {
        let old = volume.join(old);
        fs::remove_dir_all(&old).map_err(io_error("remove", &old))?;
    }
    make_accessible(volume, group)?;
    Ok(true)
}

fn holds(folder: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if collect(folder, Path::new(""), &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        found.contains(path)
            && fs::read(folder.join(path)).is_ok_and(|content| content == file.content)
    })
}

fn collect(folder: &Path, below: &Path, found: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(folder, &path, found)?;
        } else {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn write_file(root: &Path, path: &str, file: &File, group: Option<u32>) -> Result<()> {
    let target = root.join(path);
    let mut parent = root.to_owned();
    let folders = Path::new(path)
        .parent()
        .into_iter()
        .flat_map(Path::components);
    for folder in folders {
        parent.push(folder);
        if !parent.is_dir() {
            make_folder(&parent, group)?;
        }
    }
    fs::write(&target, &file.content).map_err(io_error("write", &target))?;
    // A group that is to read must be able to, whatever mode the user asked for.
    let mode = file.mode | if group.is_some() { 0o440 } else { 0 };
    fs::set_permissions(&target, fs::Permissions::from_mode(mode))
        .map_err(io_error("set the mode of", &target))?;
    if file.owner.is_some() || group.is_some() {
        chown(&target, file.owner, group).map_err(io_error("set the owner of", &target))?;
    }
    Ok(())
}

fn make_folder(path: &Path, group: Option<u32>) -> Result<()> {
    fs::create_dir(path).map_err(io_error("create", path))?;
    make_accessible(path, group)
}

fn make_accessible(path: &Path, group: Option<u32>) -> Result<()> {
    if group.is_some() {
        chown(path, None, group).map_err(io_error("set the group of", path))?;
    }
    let mode = if group.is_some() { 0o2775 } else { 0o755 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(io_error("set the mode of", path))
}

/// Links each first part of a path to `..data/<part>`, and removes links to what is gone.
fn link_names(volume: &Path, payload: &Payload) -> Result<()> {
    let wanted: BTreeSet<&str> = payload
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect();
    for name in &wanted {
        let link = volume.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(PathBuf::from("..data").join(name), &link).map_err(io_error("link", &link))?;
        }
    }
    for entry in fs::read_dir(volume).map_err(io_error("read", volume))? {
        let entry = entry.map_err(io_error("read", volume))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File {
            content: content.into(),
            mode: 0o644,
            owner: None,
        };
        files
            .iter()
            .map(|(path, content)| ((*path).to_owned(), file(content)))
            .collect()
    }

    fn read(volume: &Path, path: &str) -> Option<String> {
        fs::read_to_string(volume.join(path)).ok()
    }

    #[test]
    fn content_is_replaced_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(read(&volume, "a").as_deref(), Some("1"));
        assert_eq!(read(&volume, "d/b").as_deref(), Some("2"));
        let first = fs::read_link(volume.join("..data")).unwrap();

        assert!(!write(&volume, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(
            fs::read_link(volume.join("..data")).unwrap(),
            first,
            "nothing changed"
        );

        assert!(write(&volume, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(read(&volume, "a").as_deref(), Some("3"));
        assert!(
            fs::symlink_metadata(volume.join("d")).is_err(),
            "stale names go"
        );
        assert!(!volume.join(first).exists(), "old content goes");
    }

    #[test]
    fn modes_are_kept_and_paths_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        let secret = File {
            content: b"x".into(),
            mode: 0o400,
            owner: None,
        };
        write(
            root.path(),
            &Payload::from([("k".to_owned(), secret.clone())]),
            None,
        )
        .unwrap();
        let mode = fs::metadata(root.path().join("k"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o400);
        for path in ["../x", "/x", "a/../b", "", "..data"] {
            let payload = Payload::from([(path.to_owned(), secret.clone())]);
            assert!(write(root.path(), &payload, None).is_err(), "{path:?}");
        }
    }
}
