//! A store that an earlier build has written: every object is read as it was, and may be written.
//!
//! `stores/` has one archive for each build that was kept: the store's files as a killed server left them, with a table and a
//! log, and `objects.json`, which is what that server answered for each object.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::server::Server;

async fn get(client: &Client, path: &str) -> Option<Value> {
    let request = Request::get(path).body(Vec::new()).expect("a request");
    let text = client.request_text(request).await.ok()?;
    serde_json::from_str(&text).ok()
}

/// The fields that say the same of an object at any time.
fn version(object: &Value) -> (&Value, &Value) {
    (
        &object["metadata"]["uid"],
        &object["metadata"]["resourceVersion"],
    )
}

#[tokio::test]
async fn stores_of_earlier_builds_are_served_as_they_were() {
    let stores = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/stores");
    for archive in std::fs::read_dir(stores).expect("there are some") {
        let archive = archive.expect("a file").path();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let unpacked = Command::new("tar")
            .arg("xzf")
            .arg(&archive)
            .arg("-C")
            .arg(folder.path())
            .status();
        assert!(
            unpacked.expect("tar runs").success(),
            "{}",
            archive.display()
        );
        let objects = std::fs::read(folder.path().join("objects.json")).expect("objects");
        let objects: Vec<Value> = serde_json::from_slice(&objects).expect("objects");
        let server = Server::start(folder.path()).await;
        serves(&server.client().await, &objects).await;
    }
}

async fn serves(client: &Client, objects: &[Value]) {
    let mut same = 0;
    let mut kinds = BTreeSet::new();
    let mut written = BTreeSet::new();
    for known in objects {
        let (path, known) = (known["path"].as_str().expect("a path"), &known["object"]);
        let kind = known["kind"].as_str().expect("a kind");
        kinds.insert(kind);
        // Controllers go on with their work: pods of nodes that are away go, leases are renewed.
        let Some(found) = get(client, path).await else {
            continue;
        };
        if version(&found) == version(known) {
            assert_eq!(&found, known, "{path}");
            same += 1;
        }
        // One of a kind is changed: no rule of today refuses what was accepted then.
        if written.contains(kind) {
            continue;
        }
        let patch = json!({"metadata": {"annotations": {"windlass.test/upgraded": "yes"}}});
        let request = Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(patch.to_string().into_bytes());
        match client.request_text(request.expect("a request")).await {
            Ok(text) => {
                let changed: Value = serde_json::from_str(&text).expect("an object");
                assert_eq!(
                    changed["metadata"]["annotations"]["windlass.test/upgraded"],
                    "yes"
                );
                written.insert(kind);
            }
            Err(kube::Error::Api(status)) => panic!("{path}: {}", status.message),
            Err(error) => panic!("{path}: {error}"),
        }
    }
    assert!(
        same * 10 > objects.len() * 8,
        "{same} of {} objects are as they were",
        objects.len()
    );
    let unwritten: Vec<_> = kinds.difference(&written).collect();
    assert!(unwritten.len() <= 2, "nothing is left of {unwritten:?}");
}
