//! Watchers that do not read: they cost the server little, and others nothing.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::server::{PATIENCE, Server};

const WATCHERS: usize = 40;
const WRITES: usize = 300;
/// A version of the object: no two alike, and nothing that packs well.
const BYTES: usize = 64 << 10;
/// All of it for each of them would be 750 MiB.
const ALLOWED_MIB: u64 = 300;

fn content(seed: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    };
    let text: String = std::iter::repeat_with(&mut next).take(BYTES).collect();
    text.replace(['"', '\\'], "x")
}

async fn watch(
    client: Client,
    from: &str,
) -> impl futures::Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin {
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let parameters = WatchParams::default()
        .fields("metadata.name=big")
        .timeout(290);
    maps.watch(&parameters, from)
        .await
        .expect("a watch")
        .boxed()
}

#[tokio::test]
async fn watchers_that_do_not_read_are_bounded_and_hold_nobody_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(folder.path()).await;
    let client = server.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let mut map = ConfigMap::default();
    map.metadata.name = Some("big".to_owned());
    let made = maps.create(&PostParams::default(), &map).await;
    let from = made
        .expect("a write")
        .resource_version()
        .expect("a version");

    let mut stalled = Vec::new();
    for _ in 0..WATCHERS {
        // A connection each.
        stalled.push(watch(server.client().await, &from).await);
    }
    let mut reading = watch(server.client().await, &from).await;
    let before = server.memory();
    let mut peak = before;
    for write in 0..WRITES {
        let patch = Patch::Merge(json!({"data": {"n": write.to_string(), "text": content(write)}}));
        let written = maps.patch("big", &PatchParams::default(), &patch).await;
        let version = written.expect("a write").resource_version();
        let seen = tokio::time::timeout(PATIENCE, reading.next()).await;
        let Some(Ok(WatchEvent::Modified(seen))) = seen.expect("who reads is not held up") else {
            panic!("the next version");
        };
        assert_eq!(seen.resource_version(), version);
        peak = peak.max(server.memory());
    }
    assert!(
        peak < before + ALLOWED_MIB,
        "from {before} to {peak} MiB for {WATCHERS} watchers that do not read"
    );

    // One that begins to read sees each version once and in order, for as long as it is told any.
    let mut next = 0;
    let mut late = stalled.swap_remove(0);
    while next < WRITES {
        match tokio::time::timeout(PATIENCE, late.next()).await {
            Ok(Some(Ok(WatchEvent::Modified(map)))) => {
                assert_eq!(map.data.expect("data")["n"], next.to_string());
                next += 1;
            }
            // It was cut off: by 410, or with its connection.
            Ok(Some(Ok(WatchEvent::Error(status)))) => {
                assert_eq!(status.code, 410);
                break;
            }
            Ok(Some(Err(_)) | None) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(next > 0, "something was on its way");
    drop(stalled);
}
