//! Secrets at rest, through API servers: what the store holds, and that a key is replaced while they run.

use std::sync::Arc;

use serde_json::json;
use windlass_apiserver::encryption::EncryptedStore;
use windlass_store::Store;

use crate::server::*;
use crate::store;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const KEY: &str = "/registry/secrets/default/s";
const OLD: &str = "{name: old, secret: AAAAAAAAAAAAAAAAAAAAAA==}";
const NEW: &str = "{name: new, secret: AAAAAAAAAAAAAAAAAAAAAQ==}";

fn config(keys: &[&str]) -> String {
    let keys = keys.join(", ");
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets]\n  providers:\n  - aesgcm: {{keys: [{keys}]}}\n"
    )
}

async fn written(store: &Arc<dyn Store>) -> String {
    let kv = store.get(KEY, None).await.unwrap().expect("it is written");
    String::from_utf8_lossy(&kv.value.to_vec()).into_owned()
}

#[tokio::test]
async fn a_key_is_replaced_while_servers_run_and_the_old_one_is_not_needed_after() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, _etcd) = store::open(dir.path()).await;
    let resources: Vec<_> = windlass_api::registry::builtin()
        .into_iter()
        .map(Arc::new)
        .collect();
    let sealed =
        |keys: &[&str]| EncryptedStore::new(raw.clone(), &config(keys), &resources).unwrap();
    let over = |store: EncryptedStore| Server::start_over(Arc::new(store), Setup::default());

    let store = sealed(&[OLD]);
    let server = over(store.clone()).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "open-sesame"}});
    server.post(SECRETS, &secret).await.ok();
    server.post(CONFIG_MAPS, &config_map("m")).await.ok();
    let text = written(&raw).await;
    assert!(text.starts_with("k8s:enc:aesgcm:v1:old:"));
    assert!(!text.contains("sesame") && !text.contains("b3Blbi1zZXNhbWU"));
    let map = raw
        .get("/registry/configmaps/default/m", None)
        .await
        .unwrap();
    assert!(map.unwrap().value.to_vec().starts_with(b"{"));

    // First a key that all servers can read, then the one that writes.
    store.reload(&config(&[OLD, NEW])).await.unwrap();
    let own = format!("{SECRETS}/s");
    let present = server.get(&own).await.ok();
    server.put(&own, &present).await.ok();
    assert!(written(&raw).await.starts_with("k8s:enc:aesgcm:v1:old:"));
    store.reload(&config(&[NEW, OLD])).await.unwrap();
    assert_eq!(server.get(&own).await.ok()["data"], present["data"]);
    // As `kubectl get secrets -o json | kubectl replace -f -` does: nothing changes but the key.
    let present = server.get(&own).await.ok();
    let replaced = server.put(&own, &present).await.ok();
    assert!(written(&raw).await.starts_with("k8s:enc:aesgcm:v1:new:"));
    let again = server.put(&own, &replaced).await.ok();
    assert_eq!(
        again["metadata"]["resourceVersion"], replaced["metadata"]["resourceVersion"],
        "what is under the present key is not written again"
    );
    store.reload(&config(&[NEW])).await.unwrap();
    drop(server);

    let server = over(sealed(&[NEW])).await;
    assert_eq!(
        server.get(&own).await.ok()["data"]["password"],
        "b3Blbi1zZXNhbWU="
    );
}
