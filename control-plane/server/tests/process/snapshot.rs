//! `snapshot save` while the server runs, `snapshot restore` into another folder.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};

use windlass_store::{Embedded, EmbeddedOptions};

use crate::server::{Server, run};

#[tokio::test]
async fn a_saved_cluster_is_restored_as_it_was_and_later_than_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let file = folder.path().join("snapshot");
    let file = file.to_str().expect("a plain path");
    let server = Server::start(&first).await;
    let maps = |client| Api::<ConfigMap>::namespaced(client, "default");
    let before = maps(server.client().await);
    let mut map = ConfigMap::default();
    map.metadata.name = Some("saved".to_owned());
    let made = before.create(&PostParams::default(), &map).await;
    let made = made.expect("a write");
    run(&["snapshot", "save", file], &first);
    map.metadata.name = Some("later".to_owned());
    let later = before.create(&PostParams::default(), &map).await;
    let later = later.expect("a write");
    drop(server);

    run(&["snapshot", "restore", file], &second);
    let server = Server::start(&second).await;
    let after = maps(server.client().await);
    assert_eq!(after.get("saved").await.expect("it is there"), made);
    assert!(after.get_opt("later").await.expect("an answer").is_none());
    let list = after.list(&Default::default()).await.expect("a list");
    let revision = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    assert!(
        revision(list.metadata.resource_version) > revision(later.resource_version()),
        "who has seen what came after the snapshot lists again"
    );
}

/// `snapshot save` opens the store itself while the server is away: one that comes back just then waits for it.
#[tokio::test]
async fn a_server_waits_for_who_has_its_store_for_a_moment() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(Server::start(folder.path()).await);
    let path = folder.path().join("store.redb");
    let held = Embedded::open(&path, EmbeddedOptions::default()).await;
    let held = held.expect("the server is gone");
    let moment = tokio::time::sleep(std::time::Duration::from_secs(2));
    let (server, ()) = tokio::join!(Server::start(folder.path()), async {
        moment.await;
        drop(held);
    });
    server.client().await;
}
