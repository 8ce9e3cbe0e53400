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

const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

#[tokio::test]
async fn an_address_is_an_object_that_goes_with_its_service_and_not_before() {
    let server = Server::start().await;
    let own = server.get(&format!("{ADDRESSES}/10.96.0.1")).await.ok();
    assert_eq!(own["spec"]["parentRef"]["name"], "kubernetes");
    let wanted = json!({"clusterIP": "10.96.4.4"});
    let path = format!("{ADDRESSES}/10.96.4.4");
    let dry = format!("{SERVICES}?dryRun=All");
    server.post(&dry, &service("a", wanted.clone())).await.ok();
    server.get(&path).await.refused(404);
    server
        .post(SERVICES, &service("a", wanted.clone()))
        .await
        .ok();
    let made = server.get(&path).await.ok();
    assert_eq!(
        made["spec"]["parentRef"],
        json!({"resource": "services", "namespace": "default", "name": "a"})
    );
    assert_eq!(
        made["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"],
        "IPv4"
    );
    server.delete(&path, &json!(null)).await.ok();
    server.until_code(&path, 200).await;
    server
        .delete(&format!("{SERVICES}/a"), &json!(null))
        .await
        .ok();
    server.get(&path).await.refused(404);

    // An address that is somebody else's by its object is not given out.
    let foreign = json!({"metadata": {"name": "10.96.4.4"}, "spec": {"parentRef": {
        "group": "gateway.networking.k8s.io", "resource": "gateways", "namespace": "x", "name": "y",
    }}});
    server.post(ADDRESSES, &foreign).await.ok();
    server
        .post(SERVICES, &service("a", wanted.clone()))
        .await
        .refused(422);
    server.delete(&path, &json!(null)).await.ok();
    server.post(SERVICES, &service("a", wanted)).await.ok();
}

#[tokio::test]
async fn a_further_range_is_used_while_it_is_ready() {
    let server = Server::start().await;
    let range = json!({"metadata": {"name": "more", "finalizers": ["a/b"]}, "spec": {"cidrs": ["10.97.0.0/28"]}});
    let mut made = server.post(RANGES, &range).await.ok();
    let wanted = |name| {
        service(
            name,
            json!({"clusterIP": format!("10.97.0.{}", if name == "a" { 5 } else { 6 })}),
        )
    };
    server.post(SERVICES, &wanted("a")).await.refused(422);
    made["status"] = json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]});
    server
        .put(&format!("{RANGES}/more/status"), &made)
        .await
        .ok();
    server.post(SERVICES, &wanted("a")).await.ok();
    server
        .delete(&format!("{RANGES}/more"), &json!(null))
        .await
        .ok();
    server.post(SERVICES, &wanted("b")).await.refused(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_over_one_store_never_give_an_address_or_a_port_twice() {
    if !windlass_loopback::is_etcd_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let etcd = windlass_loopback::EtcdServer::start(folder.path())
        .await
        .unwrap();
    let start = || async {
        let store = crate::store::connect(&etcd).await;
        Server::start_over(store, Setup::default()).await
    };
    let (one, two) = (start().await, start().await);
    for n in 0..20 {
        let wanted = json!({"clusterIP": format!("10.96.5.{}", n + 1)});
        let (a, b) = (
            service(&format!("a{n}"), wanted.clone()),
            service(&format!("b{n}"), wanted),
        );
        let (a, b) = tokio::join!(one.post(SERVICES, &a), two.post(SERVICES, &b));
        let mut codes = [a.code, b.code];
        codes.sort_unstable();
        assert_eq!(codes, [201, 422]);
    }
    for port in 30200..30220 {
        let wanted = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
        let (a, b) = (
            service(&format!("c{port}"), wanted.clone()),
            service(&format!("d{port}"), wanted.clone()),
        );
        let (a, b) = tokio::join!(one.post(SERVICES, &a), two.post(SERVICES, &b));
        let mut codes = [a.code, b.code];
        codes.sort_unstable();
        assert_eq!(codes, [201, 422]);
        let name = if a.code == 201 { "c" } else { "d" };
        let own = format!("{SERVICES}/{name}{port}");
        one.delete(&own, &json!(null)).await.ok();
        // The other server may have it now.
        two.post(SERVICES, &service(&format!("e{port}"), wanted))
            .await
            .ok();
    }
}

#[tokio::test]
async fn a_server_that_is_advertised_in_the_other_family_takes_the_kubernetes_slice_over() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _etcd) = crate::store::open(dir.path()).await;
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let mut uids = Vec::new();
    for (address, family) in [
        ("192.0.2.1", "IPv4"),
        ("2001:db8::1", "IPv6"),
        ("2001:db8::2", "IPv6"),
    ] {
        let setup = Setup {
            advertise_address: address.parse().unwrap(),
            ..Setup::default()
        };
        let server = Server::start_over(store.clone(), setup).await;
        let found = server.get(slice).await.ok();
        assert_eq!(found["addressType"], family);
        // One that has died is told of for a while where servers share a store.
        let endpoints = found["endpoints"].as_array().unwrap();
        assert!(
            endpoints
                .iter()
                .any(|it| it["addresses"] == json!([address])),
            "{found}"
        );
        uids.push(found["metadata"]["uid"].clone());
    }
    assert_ne!(uids[0], uids[1], "its type never changes");
    assert_eq!(uids[1], uids[2]);
}
