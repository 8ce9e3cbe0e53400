//! What the servers of this suite keep their objects in: the embedded store, or with `WINDLASS_TEST_STORE=etcd` an
//! etcd-server each, on loopback.

use std::path::Path;
use std::sync::Arc;

use windlass_loopback::EtcdServer;
use windlass_store::{Embedded, EmbeddedOptions, Etcd, EtcdOptions, Store};

/// Another client of it.
pub async fn connect(server: &EtcdServer) -> Arc<dyn Store> {
    let options = EtcdOptions {
        endpoints: vec![server.url().to_owned()],
        ..Default::default()
    };
    Arc::new(Etcd::connect(options).await.unwrap())
}

/// A new store; it lives in `folder`.
pub async fn open(folder: &Path) -> (Arc<dyn Store>, Option<EtcdServer>) {
    let folder = folder.join("store");
    if std::env::var("WINDLASS_TEST_STORE").is_ok_and(|kind| kind == "etcd") {
        let server = EtcdServer::start(&folder).await.unwrap();
        return (connect(&server).await, Some(server));
    }
    let store = Embedded::open(&folder, EmbeddedOptions::default()).await;
    (Arc::new(store.unwrap()), None)
}
