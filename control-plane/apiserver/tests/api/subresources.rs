//! Status, scale, eviction, tokens, reviews.

use http::Request;
use serde_json::json;
use windlass_apiserver::authn::UserInfo;

use crate::definitions::{establish, instances};
use crate::server::*;

#[tokio::test]
async fn status_and_spec_have_separate_write_paths() {
    let server = Server::start().await;
    let mut object = deployment("web");
    object["status"] = json!({"replicas": 9});
    let created = server.post(DEPLOYMENTS, &object).await.ok();
    assert!(
        created["status"].get("replicas").is_none(),
        "{}",
        created["status"]
    );
    let path = format!("{DEPLOYMENTS}/web");
    let both = json!({"spec": {"replicas": 5}, "status": {"replicas": 3, "observedGeneration": 1}});
    let status = server
        .patch(&format!("{path}/status"), "merge", &both)
        .await
        .ok();
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"]),
        (&json!(1), &json!(3))
    );
    assert_eq!(status["metadata"]["generation"], 1);
    let main = server
        .patch(
            &path,
            "merge",
            &json!({"spec": {"replicas": 2}, "status": {"replicas": 7}}),
        )
        .await
        .ok();
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"]["replicas"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(main["metadata"]["generation"], 2);
}

#[tokio::test]
async fn a_status_write_changes_as_much_metadata_as_its_kind_lets_it() {
    let server = Server::start().await;
    establish(&server, "buoys", "Buoy").await;
    let attachment = json!({"metadata": {"name": "o"}, "spec": {
        "attacher": "d.example", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
    let quota = json!({"metadata": {"name": "o"}, "spec": {"hard": {"pods": "1"}}});
    let buoy = json!({"apiVersion": "life.test/v1", "kind": "Buoy", "metadata": {"name": "o"}});
    for (collection, object, labels, annotations) in [
        (DEPLOYMENTS, deployment("o"), false, true),
        (
            "/apis/storage.k8s.io/v1/volumeattachments",
            attachment,
            false,
            false,
        ),
        (
            "/api/v1/namespaces/default/resourcequotas",
            quota,
            true,
            true,
        ),
        (&instances("buoys"), buoy, false, false),
    ] {
        server.post(collection, &object).await.ok();
        let path = format!("{collection}/o/status");
        let change = json!({"metadata": {"labels": {"l": "x"}, "annotations": {"a": "x"}}});
        let written = server.patch(&path, "merge", &change).await.ok();
        let meta = &written["metadata"];
        assert_eq!(
            (meta["labels"]["l"] == "x", meta["annotations"]["a"] == "x"),
            (labels, annotations),
            "{collection}"
        );
    }
}

#[tokio::test]
async fn a_scale_reads_and_writes_the_replicas() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web/scale");
    let mut scale = server.get(&path).await.ok();
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!(1))
    );
    assert_eq!(scale["status"]["selector"], "app=web");
    scale["spec"]["replicas"] = 4.into();
    assert_eq!(server.put(&path, &scale).await.ok()["spec"]["replicas"], 4);
    server.put(&path, &scale).await.refused(409);
    for (field, value) in [("name", ""), ("name", "other"), ("namespace", "other")] {
        let mut elsewhere = scale.clone();
        elsewhere["metadata"][field] = value.into();
        server.put(&path, &elsewhere).await.refused(400);
    }
    let patched = server
        .patch(&path, "merge", &json!({"spec": {"replicas": 6}}))
        .await
        .ok();
    assert_eq!(patched["spec"]["replicas"], 6);
    server
        .patch(&path, "merge", &json!({"spec": {"replicas": -1}}))
        .await
        .refused(422);
    assert_eq!(
        server.get(&format!("{DEPLOYMENTS}/web")).await.ok()["spec"]["replicas"],
        6
    );
}

#[tokio::test]
async fn an_eviction_asks_the_budget() {
    let server = Server::start().await.with_default_account().await;
    server.post(PODS, &pod("p")).await.ok();
    server.bind("p", "n").await;
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    server
        .patch(&format!("{PODS}/p/status"), "merge", &running)
        .await
        .ok();
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}});
    server.post(budgets, &budget).await.ok();
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let status = server.post(&path, &eviction).await.refused(429);
    assert_eq!(status["details"]["causes"][0]["reason"], "DisruptionBudget");
    let allowed = json!({"status": {
        "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1,
    }});
    server
        .patch(&format!("{budgets}/b/status"), "merge", &allowed)
        .await
        .ok();
    server.post(&path, &eviction).await.ok();
    let marked = server.get(&format!("{PODS}/p")).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn a_token_lets_its_account_in_until_the_account_is_gone() {
    let server = Server::start().await.with_default_account().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = json!({"spec": {"expirationSeconds": 600}});
    let answer = server.post(path, &request).await.ok();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let review = json!({"spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let reviewed = server.post(reviews, &review).await.ok();
    assert_eq!(
        reviewed["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    let list = || Request::get(CONFIG_MAPS).header("authorization", format!("Bearer {token}"));
    let status = server.send_as(None, list(), "").await.refused(403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("system:serviceaccount:default:default")
    );
    server
        .post(path, &json!({"spec": {"expirationSeconds": 5}}))
        .await
        .refused(422);

    server
        .delete(
            "/api/v1/namespaces/default/serviceaccounts/default",
            &json!(null),
        )
        .await
        .ok();
    server.get(CONFIG_MAPS).await.ok();
    server.send_as(None, list(), "").await.refused(401);
}

#[tokio::test]
async fn rbac_objects_take_effect_and_reviews_tell() {
    let server = Server::start().await;
    let jane = || Some(UserInfo::new("jane", &["system:authenticated"]));
    server
        .send_as(jane(), Request::get(CONFIG_MAPS), "")
        .await
        .refused(403);
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]});
    server.post(&format!("{rbac}/roles"), &role).await.ok();
    let binding = json!({
        "metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}],
    });
    server
        .post(&format!("{rbac}/rolebindings"), &binding)
        .await
        .ok();
    let allowed = async {
        while server
            .send_as(jane(), Request::get(CONFIG_MAPS), "")
            .await
            .code
            != 200
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, allowed)
        .await
        .expect("the role takes effect");
    let review = json!({"spec": {"user": "jane", "resourceAttributes": {
        "namespace": "default", "verb": "list", "resource": "configmaps",
    }}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(
        server.post(path, &review).await.ok()["status"]["allowed"],
        true
    );
    let review = json!({"spec": {"user": "jane", "resourceAttributes": {"verb": "list", "resource": "secrets"}}});
    assert_eq!(
        server.post(path, &review).await.ok()["status"]["allowed"],
        false
    );
}

#[tokio::test]
async fn connections_say_what_is_missing() {
    let server = Server::start().await.with_default_account().await;
    server.post(PODS, &pod("p")).await.ok();
    let log = server.get(&format!("{PODS}/p/log")).await;
    assert_eq!((log.code, log.body.len()), (200, 0));
    server
        .get(&format!("{PODS}/p/log?container=other"))
        .await
        .refused(400);
    server
        .get(&format!("{PODS}/p/exec?command=sh&stdout=1"))
        .await
        .refused(400);
    let status = server
        .get(&format!("{PODS}/p/exec?command=sh&container=other"))
        .await
        .refused(400);
    assert_eq!(status["message"], "container other is not valid for pod p");
    server.bind("p", "n").await;
    server.get(&format!("{PODS}/p/log")).await.refused(404);
    server.get("/api/v1/nodes/n/proxy/pods").await.refused(404);
}

#[tokio::test]
async fn a_pod_with_a_node_says_where_that_is() {
    let server = Server::start().await.with_default_account().await;
    let (zone, region) = (
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
    );
    let node = json!({"metadata": {"name": "n", "labels": {zone: "z", region: "r", "topology.kubernetes.io/rack": "k"}}});
    server.post("/api/v1/nodes", &node).await.ok();
    // Admission looks into the cache; a list waits until that has it.
    server.get("/api/v1/nodes").await.ok();
    let mut chosen = pod("chosen");
    chosen["metadata"]["labels"][zone] = "elsewhere".into();
    server.post(PODS, &chosen).await.ok();
    let path = format!("{PODS}/chosen");
    let binding = json!({
        "metadata": {"name": "chosen", "labels": {"from": "binding"}}, "target": {"name": "n"},
    });
    server.post(&format!("{path}/binding"), &binding).await.ok();
    assert_eq!(
        server.get(&path).await.ok()["metadata"]["labels"],
        json!({"app": "chosen", "from": "binding", zone: "z", region: "r"})
    );
    for (node, labels) in [
        ("n", json!({"app": "fixed-n", zone: "z", region: "r"})),
        ("unknown", json!({"app": "fixed-unknown"})),
    ] {
        let mut fixed = pod(&format!("fixed-{node}"));
        fixed["spec"]["nodeName"] = node.into();
        let made = server.post(PODS, &fixed).await.ok();
        assert_eq!(made["metadata"]["labels"], labels);
    }
}
