//! Lists: pages, revisions, selectors.

use serde_json::{Value, json};

use crate::server::*;

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn pages_of_a_list_show_one_revision() {
    let server = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.post(CONFIG_MAPS, &config_map(name)).await.ok();
    }
    let first = server.get(&format!("{CONFIG_MAPS}?limit=2")).await.ok();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap();

    server
        .delete(&format!("{CONFIG_MAPS}/d"), &json!(null))
        .await
        .ok();
    server.post(CONFIG_MAPS, &config_map("cc")).await.ok();
    let second = server
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    assert_eq!(names(&second), ["c", "d"], "as it was when the list began");
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = server
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    assert_eq!(names(&third), ["e"]);
    assert!(third["metadata"].get("continue").is_none());
    server
        .get(&format!("{CONFIG_MAPS}?continue=broken"))
        .await
        .refused(400);
}

#[tokio::test]
async fn an_exact_revision_shows_the_past_and_a_future_one_is_a_timeout() {
    let server = Server::start().await;
    let created = server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let revision = created["metadata"]["resourceVersion"].as_str().unwrap();
    server.post(CONFIG_MAPS, &config_map("b")).await.ok();
    let exact = format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(names(&server.get(&exact).await.ok()), ["a"]);
    let newer =
        format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=NotOlderThan");
    let list = server.get(&newer).await.ok();
    let shown: u64 = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(shown >= revision.parse().unwrap() && names(&list).contains(&"a"));
    let future = server
        .get(&format!("{CONFIG_MAPS}?resourceVersion=999999"))
        .await
        .refused(504);
    assert_eq!(
        future["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
}

#[tokio::test]
async fn selectors_choose_by_label_and_field() {
    let server = Server::start().await.with_default_account().await;
    server.post(PODS, &pod("p")).await.ok();
    server.post(PODS, &pod("q")).await.ok();
    server.bind("q", "n1").await;
    for (query, expected) in [
        ("labelSelector=app%3Dp", vec!["p"]),
        ("labelSelector=app+in+(p,q),app!%3Dq", vec!["p"]),
        ("labelSelector=!app", vec![]),
        ("fieldSelector=spec.nodeName%3Dn1", vec!["q"]),
        ("fieldSelector=spec.nodeName%3D", vec!["p"]),
        ("fieldSelector=metadata.name%3Dp", vec!["p"]),
        (
            "fieldSelector=metadata.name%3D%3Dq,metadata.namespace%3Ddefault",
            vec!["q"],
        ),
        (
            "fieldSelector=metadata.name!%3Dp,status.phase%3DPending",
            vec!["q"],
        ),
    ] {
        let list = server.get(&format!("/api/v1/pods?{query}")).await.ok();
        assert_eq!(names(&list), expected, "{query}");
    }
    let general =
        "\"x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"";
    for (path, field, why) in [
        (PODS, "x", "field label not supported: x"),
        (CONFIG_MAPS, "x", general),
        (
            "/apis/batch/v1/jobs",
            "x",
            "field label \"x\" not supported for batchv1.Job",
        ),
        (
            "/api/v1/nodes",
            "metadata.namespace",
            "field label not supported: metadata.namespace",
        ),
    ] {
        let path = format!("{path}?fieldSelector={field}%3Dred");
        assert_eq!(server.get(&path).await.refused(400)["message"], why);
    }
    server
        .get(&format!("{PODS}?labelSelector=a%3D%3D%3Db"))
        .await
        .refused(400);
}

#[tokio::test]
async fn a_list_sees_the_write_that_returned_before_it() {
    let server = Server::start().await;
    for index in 0..50 {
        let name = format!("m{index}");
        server.post(CONFIG_MAPS, &config_map(&name)).await.ok();
        let list = server.get(CONFIG_MAPS).await.ok();
        assert!(names(&list).contains(&name.as_str()));
    }
}

#[tokio::test]
async fn a_long_list_is_whole() {
    let server = Server::start().await;
    let text = "x".repeat(1500);
    for index in 0..300 {
        let object = json!({"metadata": {"name": format!("m{index:03}")}, "data": {"t": text}});
        server.post(CONFIG_MAPS, &object).await.ok();
    }
    let list = server.get(CONFIG_MAPS).await.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 300);
    assert_eq!(list["items"][299]["metadata"]["name"], "m299");
}
