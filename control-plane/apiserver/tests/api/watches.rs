//! Watches: what a client sees from a revision on.

use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use windlass_apiserver::Body;
use windlass_apiserver::authn::UserInfo;

use crate::server::*;

/// A watch's lines, one at a time.
pub struct Lines {
    body: Body,
    rest: Vec<u8>,
}

impl Lines {
    pub async fn open(server: &Server, path: &str) -> Self {
        let admin = UserInfo::new("admin", &["system:masters"]);
        let response = server.open(Some(admin), Request::get(path), "").await;
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }

    /// The next event; `None` once the server has ended the watch.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .expect("an event in time");
            self.rest
                .extend_from_slice(&frame?.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn seen(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }
}

pub fn seen(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_from_a_revision_misses_and_repeats_nothing() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let list = server.get(CONFIG_MAPS).await.ok();
    let revision = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    server.post(CONFIG_MAPS, &config_map("b")).await.ok();
    let mut watch = Lines::open(
        &server,
        &format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}"),
    )
    .await;
    assert_eq!(watch.seen().await, seen("ADDED", "b"));
    server
        .patch(
            &format!("{CONFIG_MAPS}/a"),
            "merge",
            &json!({"data": {"k": "2"}}),
        )
        .await
        .ok();
    assert_eq!(watch.seen().await, seen("MODIFIED", "a"));
    let deleted = server.get(CONFIG_MAPS).await.ok();
    server
        .delete(&format!("{CONFIG_MAPS}/a"), &json!(null))
        .await
        .ok();
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["data"]["k"]),
        (&json!("DELETED"), &json!("2"))
    );
    let version: u64 = event["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let before: u64 = deleted["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(version > before, "a deletion has a revision of its own");
}

#[tokio::test]
async fn a_watch_without_a_revision_begins_with_what_there_is() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for query in ["watch=1", "watch=1&resourceVersion=0"] {
        let mut watch = Lines::open(&server, &format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(watch.seen().await, seen("ADDED", "a"), "{query}");
    }
}

#[tokio::test]
async fn a_watch_list_says_where_the_list_ends() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let query =
        "watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut watch = Lines::open(&server, &format!("{CONFIG_MAPS}?{query}")).await;
    assert_eq!(watch.seen().await, seen("ADDED", "a"));
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let metadata = &bookmark["object"]["metadata"];
    assert_eq!(metadata["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(metadata["resourceVersion"].is_string());
    server
        .get(&format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true"))
        .await
        .refused(422);
}

#[tokio::test]
async fn entering_and_leaving_a_selection_is_adding_and_deleting() {
    let server = Server::start().await;
    let path = format!("{CONFIG_MAPS}?watch=1&labelSelector=on%3Dyes");
    let mut watch = Lines::open(&server, &path).await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let label = |value: Value| json!({"metadata": {"labels": {"on": value}}});
    let object = format!("{CONFIG_MAPS}/a");
    server
        .patch(&object, "merge", &label(json!("yes")))
        .await
        .ok();
    assert_eq!(watch.seen().await, seen("ADDED", "a"));
    server
        .patch(&object, "merge", &json!({"data": {"k": "2"}}))
        .await
        .ok();
    assert_eq!(watch.seen().await, seen("MODIFIED", "a"));
    server
        .patch(&object, "merge", &label(json!(null)))
        .await
        .ok();
    assert_eq!(watch.seen().await, seen("DELETED", "a"));
    server.delete(&object, &json!(null)).await.ok();
    server
        .patch(&object, "merge", &label(json!("yes")))
        .await
        .refused(404);
}

#[tokio::test]
async fn a_node_sees_its_pods_only() {
    let server = Server::start().await.with_default_account().await;
    let mut watch = Lines::open(
        &server,
        "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1",
    )
    .await;
    for (name, node) in [("p", "n2"), ("q", "n1")] {
        server.post(PODS, &pod(name)).await.ok();
        server.bind(name, node).await;
    }
    assert_eq!(watch.seen().await, seen("ADDED", "q"));
    server
        .delete(&format!("{PODS}/q"), &json!({"gracePeriodSeconds": 0}))
        .await
        .ok();
    assert_eq!(watch.seen().await, seen("DELETED", "q"));
}

#[tokio::test]
async fn one_object_can_be_watched() {
    let server = Server::start().await;
    let path = format!("{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3Db");
    let mut watch = Lines::open(&server, &path).await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    server.post(CONFIG_MAPS, &config_map("b")).await.ok();
    assert_eq!(watch.seen().await, seen("ADDED", "b"));
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout_and_a_late_revision_is_told_in_it() {
    let server = Server::start().await;
    let mut watch = Lines::open(&server, &format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(watch.next().await, None);
    let mut watch = Lines::open(&server, &format!("{CONFIG_MAPS}?watch=1&resourceVersion=1")).await;
    let revision = server.get(CONFIG_MAPS).await.ok()["metadata"]["resourceVersion"].clone();
    assert_ne!(revision, "1", "the system's objects have been written");
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(
        watch.seen().await,
        seen("ADDED", "a"),
        "nothing of it is lost since the start"
    );
}

#[tokio::test]
async fn a_watcher_that_falls_behind_catches_up() {
    let server = Server::start().await;
    let mut watch = Lines::open(&server, &format!("{CONFIG_MAPS}?watch=1")).await;
    for index in 0..600 {
        server
            .post(CONFIG_MAPS, &config_map(&format!("m{index:04}")))
            .await
            .ok();
    }
    for index in 0..600 {
        assert_eq!(watch.seen().await, seen("ADDED", &format!("m{index:04}")));
    }
}

#[tokio::test]
async fn a_table_watch_sends_rows() {
    let server = Server::start().await;
    let admin = UserInfo::new("admin", &["system:masters"]);
    let request = Request::get(format!("{CONFIG_MAPS}?watch=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let response = server.open(Some(admin), request, "").await;
    let mut watch = Lines {
        body: response.into_body(),
        rest: Vec::new(),
    };
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["kind"], "Table");
    assert_eq!(event["object"]["rows"][0]["cells"][0], "a");
    assert_eq!(event["object"]["columnDefinitions"][0]["name"], "Name");
}
