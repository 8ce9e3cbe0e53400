use hickory_proto::rr::RecordType;
use serde_json::json;

use super::*;

pub(crate) fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local").unwrap();
    zone.add_namespace("shop");
    zone.add_namespace("kube-system");
    let mut service = |value| zone.set_service(&serde_json::from_value(value).unwrap());
    service(
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}),
    );
    service(
        json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": {
        "clusterIP": "None", "clusterIPs": ["None"],
        "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}]}}),
    );
    service(
        json!({"metadata": {"name": "ext", "namespace": "shop"}, "spec": {
        "type": "ExternalName", "externalName": "example.org"}}),
    );
    service(
        json!({"metadata": {"name": "kube-dns", "namespace": "kube-system"}, "spec": {
        "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::a"],
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}),
    );
    service(
        json!({"metadata": {"name": "idle", "namespace": "shop"}, "spec": {
        "clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "pg", "port": 5432}]}}),
    );
    for (name, target) in [
        ("near", "web.shop.svc.cluster.local"),
        ("chain", "near.shop.svc.cluster.local"),
        ("nowhere", "none.shop.svc.cluster.local"),
        ("round", "about.shop.svc.cluster.local"),
        ("about", "round.shop.svc.cluster.local"),
        ("away", "alias.example.org"),
        ("lost", "missing.example.org"),
        ("ill", "broken.example.org"),
    ] {
        service(
            json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {
            "type": "ExternalName", "externalName": target}}),
        );
    }
    zone.set_slice(
        &serde_json::from_value(json!({
            "metadata": {"name": "db-6", "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00:244::2"], "hostname": "db-0", "conditions": {"ready": true}}],
            "ports": [{"name": "pg", "port": 5433, "protocol": "TCP"}],
        }))
        .unwrap(),
    );
    zone.set_slice(
        &serde_json::from_value(json!({
            "metadata": {"name": "db-1", "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false}}],
            "ports": [{"name": "pg", "port": 5433, "protocol": "TCP"}],
        }))
        .unwrap(),
    );
    zone
}

fn ask(name: &str, kind: RecordType) -> Vec<String> {
    match zone().answer(&Name::from_ascii(name).unwrap(), kind) {
        Answer::Records(records) => {
            let mut texts: Vec<_> = records.iter().map(|r| r.data.to_string()).collect();
            texts.sort();
            texts
        }
        Answer::Alias(alias) => vec![format!("alias {}", alias.1)],
        other => vec![format!("{other:?}")],
    }
}

#[test]
fn every_form_of_the_specification_has_its_answer() {
    use RecordType::{A, AAAA, NS, PTR, SRV, TXT};
    let table: &[(&str, RecordType, &[&str])] = &[
        ("web.shop.svc.cluster.local.", A, &["10.96.0.7"]),
        ("WEB.Shop.svc.cluster.local.", AAAA, &["fd00::7"]),
        ("web.shop.svc.cluster.local.", TXT, &["NoData"]),
        ("none.shop.svc.cluster.local.", A, &["NoName"]),
        ("web.none.svc.cluster.local.", A, &["NoName"]),
        ("shop.svc.cluster.local.", A, &["NoData"]),
        ("none.svc.cluster.local.", A, &["NoName"]),
        (
            "db.shop.svc.cluster.local.",
            A,
            &["10.244.0.2", "10.244.0.3"],
        ),
        ("db-0.db.shop.svc.cluster.local.", A, &["10.244.0.2"]),
        ("10-244-0-3.db.shop.svc.cluster.local.", A, &["10.244.0.3"]),
        ("10-244-0-4.db.shop.svc.cluster.local.", A, &["NoName"]),
        ("ext.shop.svc.cluster.local.", A, &["alias example.org."]),
        (
            "_http._tcp.web.shop.svc.cluster.local.",
            SRV,
            &["0 50 80 web.shop.svc.cluster.local."],
        ),
        ("_http._udp.web.shop.svc.cluster.local.", SRV, &["NoName"]),
        (
            "_pg._tcp.db.shop.svc.cluster.local.",
            SRV,
            &[
                "0 33 5433 10-244-0-3.db.shop.svc.cluster.local.",
                "0 33 5433 db-0.db.shop.svc.cluster.local.",
            ],
        ),
        (
            "7.0.96.10.in-addr.arpa.",
            PTR,
            &["web.shop.svc.cluster.local."],
        ),
        (
            "2.0.244.10.in-addr.arpa.",
            PTR,
            &["db-0.db.shop.svc.cluster.local."],
        ),
        ("9.9.9.9.in-addr.arpa.", PTR, &["Foreign"]),
        ("10-244-0-9.shop.pod.cluster.local.", A, &["10.244.0.9"]),
        (
            "fd00-244--9.shop.pod.cluster.local.",
            AAAA,
            &["fd00:244::9"],
        ),
        ("fd00-244--9.shop.pod.cluster.local.", A, &["NoData"]),
        ("10-244-0-9.none.pod.cluster.local.", A, &["NoName"]),
        ("shop.pod.cluster.local.", A, &["NoData"]),
        ("none.pod.cluster.local.", A, &["NoName"]),
        ("svc.cluster.local.", A, &["NoData"]),
        ("pod.cluster.local.", A, &["NoData"]),
        ("cluster.local.", A, &["NoData"]),
        ("cluster.local.", NS, &["ns.dns.cluster.local."]),
        ("ns.dns.cluster.local.", A, &["10.96.0.10"]),
        ("ns.dns.cluster.local.", AAAA, &["fd00::a"]),
        ("db.shop.svc.cluster.local.", AAAA, &["fd00:244::2"]),
        ("db-0.db.shop.svc.cluster.local.", AAAA, &["fd00:244::2"]),
        ("idle.shop.svc.cluster.local.", A, &["NoName"]),
        ("idle.shop.svc.cluster.local.", SRV, &["NoName"]),
        (
            "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa.",
            PTR,
            &["db-0.db.shop.svc.cluster.local."],
        ),
        (
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            &["web.shop.svc.cluster.local."],
        ),
        ("dns-version.cluster.local.", TXT, &["1.1.0"]),
        ("example.org.", A, &["Foreign"]),
    ];
    for (name, kind, expected) in table {
        assert_eq!(ask(name, *kind), *expected, "{name} {kind}");
    }
}

#[test]
fn what_is_removed_is_no_longer_answered() {
    let mut zone = zone();
    zone.remove_service("shop", "web");
    zone.remove_slice("shop", "db-1");
    zone.remove_slice("shop", "db-6");
    let ask = |name: &str, kind| zone.answer(&Name::from_ascii(name).unwrap(), kind);
    assert_eq!(
        ask("web.shop.svc.cluster.local.", RecordType::A),
        Answer::NoName
    );
    assert_eq!(
        ask("db.shop.svc.cluster.local.", RecordType::A),
        Answer::NoName
    );
    assert_eq!(
        ask("7.0.96.10.in-addr.arpa.", RecordType::PTR),
        Answer::Foreign
    );
    assert_eq!(
        ask("2.0.244.10.in-addr.arpa.", RecordType::PTR),
        Answer::Foreign
    );
}

#[test]
fn where_namespaces_are_not_known_any_name_may_be_one() {
    let mut zone = zone();
    zone.remove_namespace("shop");
    let ask =
        |zone: &Zone, name: &str| zone.answer(&Name::from_ascii(name).unwrap(), RecordType::A);
    assert_eq!(ask(&zone, "shop.svc.cluster.local."), Answer::NoName);
    zone.remove_namespace("kube-system");
    assert_eq!(ask(&zone, "none.svc.cluster.local."), Answer::NoData);
}
