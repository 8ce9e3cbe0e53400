//! Secrets lie in the store as they are: nobody else on the machine may read its files.

use std::os::unix::fs::PermissionsExt;

use windlass_store::{Embedded, EmbeddedOptions};

use crate::suite::put;

#[tokio::test]
async fn only_the_owner_reads_the_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path, EmbeddedOptions::default())
        .await
        .expect("open");
    put(&store, "/registry/secrets/default/s", "secret").await;
    store
        .save_snapshot(&folder.path().join("snapshot"))
        .await
        .expect("save");
    let mut files = 0;
    for entry in std::fs::read_dir(folder.path()).expect("a folder") {
        let entry = entry.expect("a file");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        files += 1;
    }
    assert!(files >= 3, "the database, its log and a snapshot");
}
