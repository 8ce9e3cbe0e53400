//! How something is to be deleted: in the body or the address, what admission is told of it, and what the answer says.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::hooks::{VALIDATING, configuration, rule, serve};
use crate::server::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_told_how_something_is_to_be_deleted() {
    let server = Server::start().await.with_default_account().await;
    let told: Arc<Mutex<Vec<Value>>> = Arc::default();
    let seen = told.clone();
    let (url, bundle) = serve(move |_, request| {
        seen.lock().unwrap().push(request["options"].clone());
        json!({"allowed": true})
    })
    .await;
    let deletions = |resource: &str| {
        let rule = rule("DELETE", "", resource);
        configuration(
            "ValidatingWebhookConfiguration",
            resource,
            url.clone(),
            &bundle,
            &rule,
        )
    };
    for resource in ["configmaps", "pods"] {
        server.post(VALIDATING, &deletions(resource)).await.ok();
    }
    server.get(VALIDATING).await.ok();

    let made = server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let uid = made["metadata"]["uid"].clone();
    let options = json!({
        "gracePeriodSeconds": 5, "propagationPolicy": "Foreground", "preconditions": {"uid": uid}, "dryRun": ["All"],
    });
    let one = format!("{CONFIG_MAPS}/a");
    server.delete(&one, &options).await.ok();
    let by_address = format!("{one}?propagationPolicy=Background");
    server.delete(&by_address, &Value::Null).await.ok();
    // How long a pod has is told although nobody said it: as long as it asks for itself.
    server.post(PODS, &pod("p")).await.ok();
    server.bind("p", "n").await;
    server.delete(&format!("{PODS}/p"), &Value::Null).await.ok();

    let is = |more: Value| {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        let map = options.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        options
    };
    assert_eq!(
        *told.lock().unwrap(),
        [
            is(options),
            is(json!({"propagationPolicy": "Background"})),
            is(json!({"gracePeriodSeconds": 30})),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_hold_for_each_of_a_collection() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let others = json!({"preconditions": {"uid": "another"}});
    let refused = server.delete(CONFIG_MAPS, &others).await.refused(409);
    assert_eq!(refused["reason"], "Conflict");
    server.get(&format!("{CONFIG_MAPS}/a")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_dependents_to_go_in_the_older_way_learns_that_it_takes_time() {
    let server = Server::start().await;
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.test/hold"]);
    server.post(CONFIG_MAPS, &held).await.ok();
    let path = format!("{CONFIG_MAPS}/held");
    for (options, code) in [
        (json!({"orphanDependents": false}), 202),
        (json!({"propagationPolicy": "Background"}), 200),
    ] {
        let answer = server.delete(&path, &options).await;
        assert_eq!(answer.code, code, "{options}");
        assert_eq!(answer.json()["kind"], "ConfigMap");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_named_twice_is_kept_once_with_a_warning() {
    let server = Server::start().await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u"});
    let mut owned = config_map("owned");
    owned["metadata"]["ownerReferences"] = json!([owner, owner]);
    let path = format!("{CONFIG_MAPS}/owned");
    let made = server.post(CONFIG_MAPS, &owned).await;
    let changed = server.put(&path, &owned).await;
    for answer in [made, changed] {
        let warning = answer.headers["warning"].to_str().unwrap().to_owned();
        assert!(
            warning.ends_with("duplicate UID(s) observed: u\""),
            "{warning}"
        );
        assert_eq!(answer.ok()["metadata"]["ownerReferences"], json!([owner]));
    }
}

#[tokio::test]
async fn a_status_is_one_to_who_wants_tables_too() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let request = http::Request::delete(format!("{CONFIG_MAPS}/a"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let told = server.send(request, "").await.ok();
    assert_eq!(
        (&told["kind"], &told["status"]),
        (&json!("Status"), &json!("Success"))
    );
}

#[tokio::test]
async fn pods_of_jobs_and_replication_controllers_stay_unless_the_deletion_says_otherwise() {
    let server = Server::start().await;
    let spec = pod("p")["spec"].clone();
    let mut job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": spec}}});
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    let controller = json!({"metadata": {"name": "j"}, "spec": {
        "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec},
    }});
    for (path, object, warns) in [
        ("/apis/batch/v1/namespaces/default/jobs", job, true),
        (
            "/api/v1/namespaces/default/replicationcontrollers",
            controller,
            false,
        ),
    ] {
        let one = format!("{path}/j");
        server.post(path, &object).await.ok();
        let answer = server.delete(&one, &Value::Null).await;
        assert_eq!(answer.headers.contains_key("warning"), warns, "{path}");
        let left = server.get(&one).await.ok();
        assert_eq!(left["metadata"]["finalizers"], json!(["orphan"]), "{path}");
        let all = json!({"propagationPolicy": "Background"});
        let answer = server.delete(&one, &all).await;
        assert!(!answer.headers.contains_key("warning"), "{path}");
        server.get(&one).await.refused(404);
    }
}
