//! The life of objects: creation, change, deletion.

use serde_json::json;

use crate::server::*;

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let server = Server::start().await;
    let created = server.post(CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(created.code, 201);
    let created = created.ok();
    let metadata = &created["metadata"];
    assert_eq!(metadata["namespace"], "default");
    assert!(metadata["uid"].is_string() && metadata["creationTimestamp"].is_string());

    let path = format!("{CONFIG_MAPS}/a");
    let read = server.get(&path).await.ok();
    assert_eq!(read, created);

    let mut changed = read.clone();
    changed["data"]["k"] = "new".into();
    let changed = server.put(&path, &changed).await.ok();
    assert_eq!(changed["data"]["k"], "new");
    assert_ne!(
        changed["metadata"]["resourceVersion"],
        metadata["resourceVersion"]
    );
    assert_eq!(changed["metadata"]["uid"], metadata["uid"]);

    let status = server.delete(&path, &json!(null)).await.ok();
    assert_eq!(
        (&status["status"], &status["details"]["name"]),
        (&json!("Success"), &json!("a"))
    );
    server.get(&path).await.refused(404);
    server.delete(&path, &json!(null)).await.refused(404);
}

#[tokio::test]
async fn a_name_is_generated_and_a_taken_one_refused() {
    let server = Server::start().await;
    let object = json!({"metadata": {"generateName": "web-"}});
    let one = server.post(CONFIG_MAPS, &object).await.ok();
    let two = server.post(CONFIG_MAPS, &object).await.ok();
    let name = one["metadata"]["name"].as_str().unwrap();
    assert!(
        name.starts_with("web-")
            && name.len() == 9
            && one["metadata"]["name"] != two["metadata"]["name"]
    );
    let status = server
        .post(CONFIG_MAPS, &config_map(name))
        .await
        .refused(409);
    assert_eq!(status["reason"], "AlreadyExists");
    assert_eq!(
        status["message"],
        format!("configmaps \"{name}\" already exists")
    );
}

#[tokio::test]
async fn a_write_that_changes_nothing_makes_no_revision() {
    let server = Server::start().await;
    let created = server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(server.put(&path, &created).await.ok(), created);
    let patched = server
        .patch(&path, "merge", &json!({"data": {"k": "v"}}))
        .await
        .ok();
    assert_eq!(patched, created);
}

#[tokio::test]
async fn when_an_object_goes_is_not_for_updates_to_say() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    for (field, value) in [
        ("deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        ("deletionGracePeriodSeconds", json!(5)),
    ] {
        let mut object = config_map("a");
        object["metadata"][field] = value;
        let status = server.put(&path, &object).await.refused(422);
        let cause = &status["details"]["causes"][0];
        assert_eq!(cause["field"], format!("metadata.{field}"));
        let message = cause["message"].as_str().unwrap();
        let expected = "field is immutable; may only be changed via deletion";
        assert!(message.ends_with(expected), "{message}");
    }
}

#[tokio::test]
async fn a_stale_version_or_another_uid_is_a_conflict() {
    let server = Server::start().await;
    let created = server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    server
        .patch(&path, "merge", &json!({"data": {"k": "2"}}))
        .await
        .ok();
    let mut stale = created.clone();
    stale["data"]["k"] = "3".into();
    let status = server.put(&path, &stale).await.refused(409);
    assert_eq!(status["reason"], "Conflict");
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("the object has been modified"),
        "{status}"
    );
    let patch = json!({"metadata": {"resourceVersion": created["metadata"]["resourceVersion"]}, "data": {"k": "4"}});
    server.patch(&path, "merge", &patch).await.refused(409);

    stale["metadata"]["resourceVersion"] = "".into();
    stale["metadata"]["uid"] = "other".into();
    server.put(&path, &stale).await.refused(409);
    let uid = json!({"preconditions": {"uid": "other"}});
    server.delete(&path, &uid).await.refused(409);
}

#[tokio::test]
async fn patches_of_three_forms_apply() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web");
    let patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 4}]);
    assert_eq!(
        server.patch(&path, "json", &patch).await.ok()["spec"]["replicas"],
        4
    );
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "i:2"}]}}}});
    let object = server.patch(&path, "strategic", &patch).await.ok();
    let containers = object["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    assert_eq!(containers.len(), 2, "a strategic merge keeps the others");
    let object = server.patch(&path, "merge", &patch).await.ok();
    let containers = object["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    assert_eq!(containers.len(), 1, "a merge patch replaces the list");
    assert!(object["metadata"]["generation"].as_i64().unwrap() >= 4);
}

#[tokio::test]
async fn a_dry_run_checks_everything_and_keeps_nothing() {
    let server = Server::start().await;
    let dry = server
        .post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a"))
        .await
        .ok();
    assert!(dry["metadata"]["uid"].is_string());
    server.get(&format!("{CONFIG_MAPS}/a")).await.refused(404);
    server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    server
        .post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a"))
        .await
        .refused(409);
    let path = format!("{CONFIG_MAPS}/a?dryRun=All");
    let changed = server
        .patch(&path, "merge", &json!({"data": {"k": "2"}}))
        .await
        .ok();
    assert_eq!(changed["data"]["k"], "2");
    server.delete(&path, &json!(null)).await.ok();
    assert_eq!(
        server.get(&format!("{CONFIG_MAPS}/a")).await.ok()["data"]["k"],
        "v"
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_one_is_gone() {
    let server = Server::start().await;
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["example.test/hold"]);
    server.post(CONFIG_MAPS, &object).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    let marked = server.delete(&path, &json!(null)).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let again = server.delete(&path, &json!(null)).await.ok();
    assert_eq!(
        again["metadata"]["deletionTimestamp"],
        marked["metadata"]["deletionTimestamp"]
    );
    server
        .patch(&path, "merge", &json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    server.get(&path).await.refused(404);

    server.post(DEPLOYMENTS, &deployment("d")).await.ok();
    let path = format!("{DEPLOYMENTS}/d");
    let marked = server
        .delete(&path, &json!({"propagationPolicy": "Foreground"}))
        .await
        .ok();
    assert_eq!(
        marked["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    server
        .patch(&path, "merge", &json!({"metadata": {"finalizers": []}}))
        .await
        .ok();
    server.get(&path).await.refused(404);
}

#[tokio::test]
async fn a_pod_that_runs_is_given_its_grace() {
    let server = Server::start().await.with_default_account().await;
    server.post(PODS, &pod("p")).await.ok();
    let path = format!("{PODS}/p");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let status = server.post(&format!("{path}/binding"), &binding).await;
    assert_eq!(
        (status.code, status.json()["status"].clone()),
        (201, json!("Success"))
    );
    server
        .post(&format!("{path}/binding"), &binding)
        .await
        .refused(409);
    let bound = server.get(&path).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["metadata"]["generation"], 1, "not its user's wish");

    let marked = server
        .delete(&path, &json!({"gracePeriodSeconds": 20}))
        .await
        .ok();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 20);
    let kept = server
        .delete(&path, &json!({"gracePeriodSeconds": 25}))
        .await
        .ok();
    assert_eq!(
        kept["metadata"]["deletionGracePeriodSeconds"], 20,
        "grace only gets shorter"
    );
    let sooner = server
        .delete(&path, &json!({"gracePeriodSeconds": 5}))
        .await
        .ok();
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    server
        .delete(&path, &json!({"gracePeriodSeconds": 0}))
        .await
        .ok();
    server.get(&path).await.refused(404);
}

#[tokio::test]
async fn a_pod_that_was_never_placed_goes_at_once() {
    let server = Server::start().await.with_default_account().await;
    server.post(PODS, &pod("p")).await.ok();
    let gone = server.delete(&format!("{PODS}/p"), &json!(null)).await.ok();
    assert_eq!(gone["kind"], "Pod");
    server.get(&format!("{PODS}/p")).await.refused(404);
}

#[tokio::test]
async fn a_namespace_ends_when_its_content_has_been_finalized() {
    let server = Server::start().await;
    let namespaces = "/api/v1/namespaces";
    server
        .post(namespaces, &json!({"metadata": {"name": "x"}}))
        .await
        .ok();
    let path = format!("{namespaces}/x");
    let marked = server.delete(&path, &json!(null)).await.ok();
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = server
        .post(&format!("{path}/configmaps"), &config_map("a"))
        .await
        .refused(403);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let mut finalized = server.get(&path).await.ok();
    finalized["spec"]["finalizers"] = json!([]);
    server
        .put(&format!("{path}/finalize"), &finalized)
        .await
        .ok();
    server.get(&path).await.refused(404);
    server
        .post(&format!("{path}/configmaps"), &config_map("a"))
        .await
        .refused(404);
    server
        .delete(&format!("{namespaces}/default"), &json!(null))
        .await
        .refused(403);
}

#[tokio::test]
async fn a_collection_is_deleted_by_its_selector() {
    let server = Server::start().await;
    for (name, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"app": app});
        server.post(CONFIG_MAPS, &object).await.ok();
    }
    let list = server
        .delete(
            &format!("{CONFIG_MAPS}?labelSelector=app%3Dx"),
            &json!(null),
        )
        .await
        .ok();
    assert_eq!(
        (&list["kind"], list["items"].as_array().unwrap().len()),
        (&json!("ConfigMapList"), 2)
    );
    let left = server.get(CONFIG_MAPS).await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn a_pod_gets_its_account_its_token_and_its_tolerations() {
    let server = Server::start().await.with_default_account().await;
    let pod = server.post(PODS, &pod("p")).await.ok();
    let spec = &pod["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["priority"]),
        (&json!("default"), &json!(0))
    );
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    let volume = &spec["volumes"][0];
    assert_eq!(volume["projected"]["sources"].as_array().unwrap().len(), 3);
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!(
        mount["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(pod["status"]["phase"], "Pending");
    let mut other = crate::server::pod("q");
    other["spec"]["serviceAccountName"] = "nobody".into();
    server.post(PODS, &other).await.refused(403);

    // A manifest that replaces the pod knows nothing of the priority that was computed.
    let mut manifest = pod.clone();
    let spec = manifest["spec"].as_object_mut().unwrap();
    spec.remove("priority");
    spec.remove("preemptionPolicy");
    let replaced = server.put(&format!("{PODS}/p"), &manifest).await.ok();
    assert_eq!(replaced["spec"], pod["spec"]);
}

#[tokio::test]
async fn fields_are_owned_under_the_names_of_the_version_that_was_written() {
    let server = Server::start().await;
    let event = json!({"metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "a", "reason": "r",
        "type": "Normal", "note": "n", "reportingController": "c", "reportingInstance": "i", "regarding": {"name": "p"}});
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 2, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let scalers = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    for (path, object, version, field) in [
        (events, event, "events.k8s.io/v1", "/f:regarding"),
        (
            scalers,
            scaler,
            "autoscaling/v1",
            "/f:spec/f:targetCPUUtilizationPercentage",
        ),
    ] {
        let created = server.post(path, &object).await.ok();
        let entry = &created["metadata"]["managedFields"][0];
        assert_eq!(entry["apiVersion"], version);
        assert!(entry["fieldsV1"].pointer(field).is_some(), "{entry}");
    }
}

#[tokio::test]
async fn an_apply_creates_merges_and_names_conflicts() {
    let server = Server::start().await;
    let path = |manager: &str| format!("{CONFIG_MAPS}/a?fieldManager={manager}");
    let config = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let created = server
        .patch(&path("one"), "apply", &config(json!({"k": "1", "l": "1"})))
        .await;
    assert_eq!(created.code, 201);
    let fields = &created.ok()["metadata"]["managedFields"];
    assert_eq!(
        (&fields[0]["manager"], &fields[0]["operation"]),
        (&json!("one"), &json!("Apply"))
    );

    let status = server
        .patch(&path("two"), "apply", &config(json!({"k": "2"})))
        .await
        .refused(409);
    assert_eq!(status["details"]["causes"][0]["field"], ".data.k");
    let forced = format!("{}&force=true", path("two"));
    assert_eq!(
        server
            .patch(&forced, "apply", &config(json!({"k": "2"})))
            .await
            .ok()["data"]["k"],
        "2"
    );
    let left = server
        .patch(&path("one"), "apply", &config(json!({})))
        .await
        .ok();
    assert_eq!(
        left["data"],
        json!({"k": "2"}),
        "only what nobody else owns goes"
    );
    let again = server
        .patch(&path("one"), "apply", &config(json!({})))
        .await
        .ok();
    assert_eq!(again, left, "applying twice is applying once");

    server
        .patch(&path("kubectl-edit"), "merge", &json!({"data": {"m": "3"}}))
        .await
        .ok();
    let object = server.get(&format!("{CONFIG_MAPS}/a")).await.ok();
    let managers: Vec<_> = object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["manager"].as_str().unwrap())
        .collect();
    assert!(
        managers.contains(&"kubectl-edit") && managers.contains(&"two"),
        "{managers:?}"
    );
}

#[tokio::test]
async fn fields_that_go_never_leaves_out_are_told_in_every_version() {
    let server = Server::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = json!({"metadata": {"name": "sparse"}});
    let created = server.post(roles, &role).await.ok();
    assert_eq!(created.get("rules"), Some(&json!(null)));
    let path = format!("{roles}/sparse");
    assert_eq!(server.get(&path).await.ok(), created);
    // A JSON patch finds them.
    let patch = json!([{"op": "test", "path": "/rules", "value": null}]);
    let patched = server.patch(&path, "json", &patch).await.ok();
    assert_eq!(patched, created);

    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}});
    let events = "/api/v1/namespaces/default/events";
    let old = server.post(events, &event).await.ok();
    let new = server
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await
        .ok();
    assert_eq!(
        (&old["source"], &old["reportingInstance"]),
        (&json!({}), &json!(""))
    );
    assert_eq!(
        (&new["deprecatedSource"], new.get("reportingInstance")),
        (&json!({}), None)
    );
    for (event, field) in [(&old, "firstTimestamp"), (&new, "deprecatedFirstTimestamp")] {
        assert_eq!(event.get(field), Some(&json!(null)), "{field}");
    }
}

#[tokio::test]
async fn an_applied_list_that_gets_defaults_is_written_once() {
    let server = Server::start().await;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
        "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [{"port": 80}]});
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/s?fieldManager=m";
    let first = server.patch(path, "apply", &slice).await.ok();
    // managedFields tell whole seconds: a change in the next one would have another time.
    let second = || {
        let now = std::time::SystemTime::now();
        now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    };
    let applied = second();
    while second() == applied {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(server.patch(path, "apply", &slice).await.ok(), first);
}
