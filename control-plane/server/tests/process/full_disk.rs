//! A server that starts where nothing more can be written.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::server::{Server, until};

#[tokio::test]
async fn a_server_starts_with_the_kubeconfig_of_its_earlier_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(Server::start(folder.path()).await);
    // Writing the file again fails, as on a full disk: its first name is taken.
    std::fs::create_dir(folder.path().join("admin.tmp")).expect("a folder");

    let server = Server::start(folder.path()).await;
    let client = server.client().await;
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some("new".into()),
            ..Default::default()
        },
        ..Default::default()
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let created = namespaces.create(&PostParams::default(), &namespace).await;
    created.expect("it serves");
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "new");
    until("the controllers to run", async || {
        accounts.get("default").await.is_ok()
    })
    .await;
}
