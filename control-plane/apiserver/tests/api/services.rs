//! Addresses and node ports of Services.

use serde_json::{Value, json};

use crate::server::*;

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

#[tokio::test]
async fn a_service_gets_an_address_and_keeps_it() {
    let server = Server::start().await;
    let one = server.post(SERVICES, &service("one", json!({}))).await.ok();
    let address = one["spec"]["clusterIP"].as_str().unwrap();
    assert!(address.starts_with("10.96."), "{address}");
    assert_eq!(one["spec"]["clusterIPs"], json!([address]));
    assert_eq!(
        (&one["spec"]["ipFamilies"], &one["spec"]["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    let two = server.post(SERVICES, &service("two", json!({}))).await.ok();
    assert_ne!(two["spec"]["clusterIP"], one["spec"]["clusterIP"]);

    let replaced = server
        .put(
            &format!("{SERVICES}/one"),
            &service("one", json!({"selector": {"a": "b"}})),
        )
        .await
        .ok();
    assert_eq!(replaced["spec"]["clusterIP"], one["spec"]["clusterIP"]);
    let patch = json!({"spec": {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"]}});
    server
        .patch(&format!("{SERVICES}/one"), "merge", &patch)
        .await
        .refused(422);
}

#[tokio::test]
async fn a_taken_address_is_refused_and_a_freed_one_is_had_again() {
    let server = Server::start().await;
    let wanted = json!({"clusterIP": "10.96.3.3"});
    server
        .post(SERVICES, &service("one", wanted.clone()))
        .await
        .ok();
    let status = server
        .post(SERVICES, &service("two", wanted.clone()))
        .await
        .refused(422);
    let cause = &status["details"]["causes"][0];
    assert_eq!(cause["field"], "spec.clusterIPs");
    assert!(
        cause["message"]
            .as_str()
            .unwrap()
            .contains("provided IP is already allocated"),
        "{cause}"
    );
    let outside = service("three", json!({"clusterIP": "192.0.2.7"}));
    server.post(SERVICES, &outside).await.refused(422);
    server
        .delete(&format!("{SERVICES}/one"), &json!(null))
        .await
        .ok();
    server.post(SERVICES, &service("two", wanted)).await.ok();
}

#[tokio::test]
async fn a_refused_or_dry_service_takes_nothing() {
    let server = Server::start().await;
    let wanted = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100}]});
    server
        .post(
            &format!("{SERVICES}?dryRun=All"),
            &service("dry", wanted.clone()),
        )
        .await
        .ok();
    server
        .post(
            "/api/v1/namespaces/nowhere/services",
            &service("x", wanted.clone()),
        )
        .await
        .refused(404);
    server
        .post(SERVICES, &service("one", wanted.clone()))
        .await
        .ok();
    let status = server
        .post(SERVICES, &service("two", wanted))
        .await
        .refused(422);
    let cause = &status["details"]["causes"][0];
    assert_eq!(cause["field"], "spec.ports[0].nodePort");
    assert!(
        cause["message"]
            .as_str()
            .unwrap()
            .contains("provided port is already allocated")
    );
}

#[tokio::test]
async fn node_ports_come_and_go_with_the_type() {
    let server = Server::start().await;
    let ports = json!([
        {"name": "a", "port": 53, "protocol": "UDP"},
        {"name": "b", "port": 53, "protocol": "TCP"},
        {"name": "c", "port": 80},
    ]);
    let object = service("dns", json!({"type": "NodePort", "ports": ports}));
    let created = server.post(SERVICES, &object).await.ok();
    let port = |object: &Value, index: usize| object["spec"]["ports"][index]["nodePort"].clone();
    let first = port(&created, 0).as_i64().unwrap();
    assert!((30000..=32767).contains(&first));
    assert_eq!(
        port(&created, 1),
        first,
        "two protocols of one port share its number"
    );
    assert_ne!(port(&created, 2), first);

    let path = format!("{SERVICES}/dns");
    let internal = server
        .patch(&path, "merge", &json!({"spec": {"type": "ClusterIP"}}))
        .await
        .ok();
    assert!(
        internal["spec"]["ports"][0].get("nodePort").is_none(),
        "{internal}"
    );
    let other = service(
        "other",
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": first}]}),
    );
    server.post(SERVICES, &other).await.ok();
}

#[tokio::test]
async fn headless_and_external_services_have_no_address() {
    let server = Server::start().await;
    let headless = service("h", json!({"clusterIP": "None", "selector": {"a": "b"}}));
    let headless = server.post(SERVICES, &headless).await.ok();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let external = json!({"metadata": {"name": "e"}, "spec": {"type": "ExternalName", "externalName": "example.test"}});
    let external = server.post(SERVICES, &external).await.ok();
    assert!(
        external["spec"].get("clusterIP").is_none_or(|ip| ip == ""),
        "{external}"
    );
    let path = format!("{SERVICES}/e");
    let change =
        json!({"spec": {"type": "ClusterIP", "externalName": null, "ports": [{"port": 80}]}});
    let changed = server.patch(&path, "merge", &change).await.ok();
    assert!(
        changed["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("10.96.")
    );
}

#[tokio::test]
async fn the_kubernetes_service_leads_to_this_server() {
    let server = Server::start().await;
    let service = server.get(&format!("{SERVICES}/kubernetes")).await.ok();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let endpoints = server
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .ok();
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.1");
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    assert_eq!(
        server.get(slices).await.ok()["endpoints"][0]["addresses"][0],
        "192.0.2.1"
    );
}
