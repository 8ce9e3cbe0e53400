//! Webhooks that are late, that want to see what others made of an object, and that meet objects without a name.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::hooks::{MUTATING, VALIDATING, configuration, rule, serve};
use crate::server::*;

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

/// Admission looks into the cache; a list waits until that has what was written.
async fn configure(server: &Server, path: &str, configuration: &Value) {
    server.post(path, configuration).await.ok();
    server.get(path).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_late_counts_as_its_failure_policy_says() {
    let server = Server::start().await;
    let (url, bundle) = serve(|_, _| Value::Null).await;
    for (path, kind) in [
        (MUTATING, "MutatingWebhookConfiguration"),
        (VALIDATING, "ValidatingWebhookConfiguration"),
    ] {
        let rule = rule("CREATE", "", "configmaps");
        let mut late = configuration(kind, "late", format!("{url}/late"), &bundle, &rule);
        late["webhooks"][0]["timeoutSeconds"] = 1.into();
        late["webhooks"][0]["failurePolicy"] = "Ignore".into();
        configure(&server, path, &late).await;
        server
            .post(CONFIG_MAPS, &config_map(kind))
            .await
            .refused(422);
        let name = kind.to_lowercase();
        server.post(CONFIG_MAPS, &config_map(&name)).await.ok();

        let fail = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]);
        let own = format!("{path}/late");
        server.patch(&own, "json", &fail).await.ok();
        server.get(path).await.ok();
        let refused = server
            .post(CONFIG_MAPS, &config_map("refused"))
            .await
            .refused(500);
        let expected = format!(
            "Internal error occurred: failed calling webhook \"late.example.test\": failed to call webhook: Post \"{url}/late?timeout=1s\": \
             context deadline exceeded"
        );
        assert_eq!(refused["message"], expected);
        server.delete(&own, &Value::Null).await.ok();
        server.get(path).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_want_to_are_asked_again_and_others_are_not() {
    let server = Server::start().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let (url, bundle) = serve(move |path, request| {
        // The server makes ConfigMaps of its own.
        if request["name"] == "a" {
            let name = path.trim_start_matches('/').to_owned();
            log.lock().unwrap().push(name);
        }
        let seen = &request["object"]["data"];
        match path {
            // Counts what it has seen of the other's.
            "/first" => {
                let counted = if seen["second"].is_null() { "0" } else { "1" };
                patch(json!([{"op": "add", "path": "/data/first", "value": counted}]))
            }
            _ => patch(json!([{"op": "add", "path": format!("/data{path}"), "value": "x"}])),
        }
    })
    .await;
    for (name, policy) in [
        ("first", "IfNeeded"),
        ("second", "Never"),
        ("third", "IfNeeded"),
    ] {
        let rule = rule("CREATE", "", "configmaps");
        let kind = "MutatingWebhookConfiguration";
        let mut hook = configuration(kind, name, format!("{url}/{name}"), &bundle, &rule);
        hook["webhooks"][0]["reinvocationPolicy"] = policy.into();
        configure(&server, MUTATING, &hook).await;
    }
    let made = server.post(CONFIG_MAPS, &config_map("a")).await.ok();
    // The second time the first one changes the object, so that the third one, which was content, is asked again too.
    assert_eq!(
        *asked.lock().unwrap(),
        ["first", "second", "third", "first", "third"]
    );
    assert_eq!(
        made["data"],
        json!({"k": "v", "first": "1", "second": "x", "third": "x"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_a_webhook_adds_gets_what_the_others_get() {
    let server = Server::start().await.with_default_account().await;
    let limits = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"memory": "64Mi"}, "defaultRequest": {"memory": "32Mi"}},
    ]}});
    let path = "/api/v1/namespaces/default/limitranges";
    server.post(path, &limits).await.ok();
    server.get(path).await.ok();
    let (url, bundle) = serve(|_, _| {
        let sidecar = json!({"name": "side", "image": "example.test/side:1"});
        patch(json!([{"op": "add", "path": "/spec/containers/-", "value": sidecar}]))
    })
    .await;
    let rule = rule("CREATE", "", "pods");
    let kind = "MutatingWebhookConfiguration";
    let inject = configuration(kind, "inject", format!("{url}/inject"), &bundle, &rule);
    configure(&server, MUTATING, &inject).await;
    let made = server.post(PODS, &pod("p")).await.ok();
    let containers = made["spec"]["containers"].as_array().unwrap();
    let [own, added] = containers.as_slice() else {
        panic!("two containers: {containers:?}");
    };
    assert_eq!(added["name"], "side");
    assert_eq!(added["resources"], own["resources"]);
    assert_eq!(added["resources"]["limits"]["memory"], "64Mi");
    assert_eq!(added["volumeMounts"], own["volumeMounts"]);
    assert_eq!(made["spec"]["volumes"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_name_is_made_after_mutation_and_before_validation() {
    let server = Server::start().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let (url, bundle) = serve(move |path, request| {
        if request["object"]["metadata"]["generateName"] == "made-" {
            log.lock().unwrap().push((path.to_owned(), request.clone()));
        }
        json!({"allowed": true})
    })
    .await;
    for (path, kind, name) in [
        (MUTATING, "MutatingWebhookConfiguration", "mutate"),
        (VALIDATING, "ValidatingWebhookConfiguration", "validate"),
    ] {
        let rule = rule("CREATE", "", "configmaps");
        let hook = configuration(kind, name, format!("{url}/{name}"), &bundle, &rule);
        configure(&server, path, &hook).await;
    }
    let map = json!({"metadata": {"generateName": "made-"}});
    let made = server
        .post(&format!("{CONFIG_MAPS}?fieldManager=tests"), &map)
        .await
        .ok();
    let seen = seen.lock().unwrap();
    let [(_, mutated), (_, validated)] = seen.as_slice() else {
        panic!("two were asked: {seen:?}");
    };
    assert_eq!(mutated.get("name"), None);
    assert_eq!(mutated["object"]["metadata"]["generateName"], "made-");
    for field in ["name", "uid", "creationTimestamp"] {
        assert_eq!(mutated["object"]["metadata"].get(field), None, "{field}");
        assert_eq!(
            validated["object"]["metadata"][field], made["metadata"][field],
            "{field}"
        );
    }
    assert_eq!(validated["name"], made["metadata"]["name"]);
    assert_eq!(
        validated["options"],
        json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "tests"})
    );
}

#[tokio::test]
async fn a_name_that_is_taken_is_told_of_in_upstreams_words() {
    let server = Server::start().await;
    let mut kept = config_map("kept");
    kept["metadata"]["finalizers"] = json!(["example.test/wait"]);
    server.post(CONFIG_MAPS, &kept).await.ok();
    let refused = server.post(CONFIG_MAPS, &kept).await.refused(409);
    assert_eq!(refused["message"], "configmaps \"kept\" already exists");
    server
        .delete(&format!("{CONFIG_MAPS}/kept"), &Value::Null)
        .await
        .ok();
    for path in [CONFIG_MAPS.to_owned(), format!("{CONFIG_MAPS}?dryRun=All")] {
        let refused = server.post(&path, &kept).await.refused(409);
        assert_eq!(refused["reason"], "AlreadyExists");
        assert_eq!(
            refused["message"],
            "object is being deleted: configmaps \"kept\" already exists"
        );
    }
}
