//! Values are packed with those of their folder: `/registry/pods`, or a group's folder of custom resources.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use windlass_packed::{Packed, Packer};

use super::record::Write;

/// The packers of all folders.
#[derive(Default)]
pub(super) struct Packing {
    folders: RwLock<HashMap<Box<str>, Arc<Packer>>>,
}

impl Packing {
    pub(super) fn pack(&self, write: Write<impl AsRef<[u8]>>) -> Write<Packed> {
        if write.put.is_none() {
            return write.map(|_| Packed::plain(&[]));
        }
        let packer = self.packer(folder(&write.key));
        write.map(|value| packer.pack(value.as_ref()))
    }

    fn packer(&self, folder: &str) -> Arc<Packer> {
        if let Some(packer) = self.folders.read().get(folder) {
            return packer.clone();
        }
        self.folders
            .write()
            .entry(folder.into())
            .or_default()
            .clone()
    }
}

/// The first two segments of a key.
fn folder(key: &str) -> &str {
    let ends = key.match_indices('/').map(|(at, _)| at);
    ends.filter(|at| *at > 0)
        .nth(1)
        .map_or(key, |end| &key[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_what_upstream_gives_a_resource() {
        assert_eq!(folder("/registry/pods/default/web-0"), "/registry/pods");
        assert_eq!(folder("/registry/minions/node"), "/registry/minions");
        assert_eq!(
            folder("/registry/example.test/widgets/a/b"),
            "/registry/example.test"
        );
        assert_eq!(folder("/k"), "/k");
    }
}
