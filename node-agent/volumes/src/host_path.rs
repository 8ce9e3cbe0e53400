//! A path of the node itself.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use crate::error::io_error;
use crate::{Error, Result};

/// Checks that the path is what its type says, making it where the type allows that.
pub(crate) fn set_up(source: &HostPathVolumeSource) -> Result<()> {
    let path = Path::new(&source.path);
    let expect = |expected: &'static str, is: fn(&fs::Metadata) -> bool| {
        let found = fs::metadata(path).is_ok_and(|metadata| is(&metadata));
        let refused = || Error::HostPathType {
            path: path.to_owned(),
            expected,
        };
        found.then_some(()).ok_or_else(refused)
    };
    match source.type_.as_deref().unwrap_or_default() {
        // No check by contract; the runtime makes a missing folder for a mount.
        "" => match fs::metadata(path) {
            Ok(_) => Ok(()),
            Err(_) => make_folder(path),
        },
        "DirectoryOrCreate" if !path.exists() => make_folder(path),
        "Directory" | "DirectoryOrCreate" => expect("directory", fs::Metadata::is_dir),
        "FileOrCreate" if !path.exists() => fs::File::create_new(path)
            .map(|_| ())
            .map_err(io_error("create", path)),
        "File" | "FileOrCreate" => expect("file", fs::Metadata::is_file),
        "Socket" => expect("socket", |metadata| metadata.file_type().is_socket()),
        "CharDevice" => expect("character device", |metadata| {
            metadata.file_type().is_char_device()
        }),
        "BlockDevice" => expect("block device", |metadata| {
            metadata.file_type().is_block_device()
        }),
        other => Err(Error::Field(format!("unknown hostPath type: {other}"))),
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(io_error("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_or_create_makes_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let set_up = |name: &str, type_: &str| {
            let path = root.path().join(name).to_string_lossy().into_owned();
            super::set_up(&HostPathVolumeSource {
                path,
                type_: Some(type_.to_owned()),
            })
        };
        assert!(set_up("d", "Directory").is_err());
        assert!(set_up("d", "DirectoryOrCreate").is_ok());
        assert!(set_up("d", "Directory").is_ok());
        assert!(set_up("d", "File").is_err());
        assert!(set_up("f", "FileOrCreate").is_ok());
        assert!(set_up("f", "File").is_ok());
        assert!(set_up("f", "Socket").is_err());
        assert!(set_up("f", "Nonsense").is_err());
    }
}
