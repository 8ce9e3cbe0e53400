//! What CoreDNS' plugin `kubernetes` is tested with, asked of this server: clusters that change from one to the other
//! must not notice.

use serde_json::{Value, json};

use super::*;

fn cluster() -> Zone {
    let mut zone = Zone::new("cluster.local").unwrap();
    zone.add_namespace("lab");
    let http = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let with_addresses = |name: &str, ips: &[&str]| {
        json!({"metadata": {"name": name, "namespace": "lab"},
            "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": http}})
    };
    let headless = |name: &str| json!({"metadata": {"name": name, "namespace": "lab"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
    let alias = |name: &str, target: &str| {
        json!({"metadata": {"name": name, "namespace": "lab"},
            "spec": {"type": "ExternalName", "externalName": target, "ports": http}})
    };
    for service in [
        with_addresses("one", &["10.0.0.1"]),
        with_addresses("idle", &["10.0.0.9"]),
        with_addresses("six", &["1234:abcd::1"]),
        with_addresses("both", &["10.0.0.3", "10::3"]),
        headless("bare"),
        headless("portless"),
        alias("away", "example.org"),
        alias("inside", "one.lab.svc.cluster.local."),
        alias("address", "192.0.2.77"),
    ] {
        zone.set_service(&serde_json::from_value(service).unwrap());
    }
    let mut slice = |of: &str, family: &str, endpoints: Value, ports: &Value| {
        let slice = json!({
            "metadata": {"name": format!("{of}-{family}"), "namespace": "lab",
                "labels": {"kubernetes.io/service-name": of}},
            "addressType": family, "endpoints": endpoints, "ports": ports,
        });
        zone.set_slice(&serde_json::from_value(slice).unwrap());
    };
    let named = |ip: &str, hostname: &str| json!({"addresses": [ip], "hostname": hostname});
    slice("one", "IPv4", json!([named("172.0.0.1", "ep1a")]), &http);
    let of_bare = json!([
        {"addresses": ["172.0.0.2"]},
        {"addresses": ["172.0.0.3"]},
        named("172.0.0.4", "twice"),
        named("172.0.0.5", "twice"),
        {"addresses": ["172.0.0.6"], "hostname": "starting", "conditions": {"ready": false}},
    ]);
    slice("bare", "IPv4", of_bare, &http);
    let of_bare = json!([{"addresses": ["5678:abcd::1"]}, {"addresses": ["5678:abcd::2"]}]);
    slice("bare", "IPv6", of_bare, &http);
    let of_portless = json!([{"addresses": ["172.0.0.20"]}]);
    slice("portless", "IPv4", of_portless, &json!([]));
    zone
}

/// Name, type, what is answered, and what is added to it.
type Case<'a> = (&'a str, RecordType, &'a [&'a str], &'a [&'a str]);

#[test]
fn a_cluster_that_had_coredns_sees_the_same_names() {
    use RecordType::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
    let client = Client::start(cluster());
    let zone = ".lab.svc.cluster.local.";
    let one = "one.lab.svc.cluster.local.";
    let cases: &[Case<'_>] = &[
        ("one{zone}", A, &["10.0.0.1"], &[]),
        ("idle{zone}", A, &["10.0.0.9"], &[]),
        ("one{zone}", SRV, &["0 100 80 one{zone}"], &["10.0.0.1"]),
        ("idle{zone}", SRV, &["0 100 80 idle{zone}"], &["10.0.0.9"]),
        ("six{zone}", SRV, &["0 100 80 six{zone}"], &["1234:abcd::1"]),
        (
            "_http._tcp.one{zone}",
            SRV,
            &["0 100 80 one{zone}"],
            &["10.0.0.1"],
        ),
        (
            "_http._tcp.six{zone}",
            SRV,
            &["0 100 80 six{zone}"],
            &["1234:abcd::1"],
        ),
        (
            "bare{zone}",
            A,
            &["172.0.0.2", "172.0.0.3", "172.0.0.4", "172.0.0.5"],
            &[],
        ),
        ("bare{zone}", AAAA, &["5678:abcd::1", "5678:abcd::2"], &[]),
        ("portless{zone}", A, &["172.0.0.20"], &[]),
        ("portless{zone}", SRV, &[], &[]),
        ("172-0-0-20.portless{zone}", A, &["172.0.0.20"], &[]),
        ("172-0-0-2.bare{zone}", A, &["172.0.0.2"], &[]),
        (
            "172-0-0-2.bare{zone}",
            SRV,
            &["0 100 80 172-0-0-2.bare{zone}"],
            &["172.0.0.2"],
        ),
        ("5678-abcd--1.bare{zone}", AAAA, &["5678:abcd::1"], &[]),
        ("5678-abcd--1.bare{zone}", A, &[], &[]),
        ("twice.bare{zone}", A, &["172.0.0.4", "172.0.0.5"], &[]),
        ("ep1a.one{zone}", A, &["172.0.0.1"], &[]),
        (
            "_http._tcp.bare{zone}",
            SRV,
            &[
                "0 16 80 172-0-0-2.bare{zone}",
                "0 16 80 172-0-0-3.bare{zone}",
                "0 16 80 5678-abcd--1.bare{zone}",
                "0 16 80 5678-abcd--2.bare{zone}",
                "0 16 80 twice.bare{zone}",
            ],
            &[
                "172.0.0.2",
                "172.0.0.3",
                "172.0.0.4",
                "172.0.0.5",
                "5678:abcd::1",
                "5678:abcd::2",
            ],
        ),
        ("away{zone}", CNAME, &["example.org."], &[]),
        ("away{zone}", A, &["192.0.2.1", "example.org."], &[]),
        ("inside{zone}", A, &["10.0.0.1", one], &[]),
        ("one{zone}", AAAA, &[], &[]),
        ("six{zone}", AAAA, &["1234:abcd::1"], &[]),
        ("both{zone}", A, &["10.0.0.3"], &[]),
        ("both{zone}", AAAA, &["10::3"], &[]),
        (
            "both{zone}",
            SRV,
            &["0 50 80 both{zone}"],
            &["10.0.0.3", "10::3"],
        ),
        ("one{zone}", SOA, &[], &[]),
        ("dns-version.cluster.local.", TXT, &["1.1.0"], &[]),
        ("svc.cluster.local.", A, &[], &[]),
        ("pod.cluster.local.", A, &[], &[]),
        ("lab.svc.cluster.local.", A, &[], &[]),
        ("svc.cluster.local.", NS, &[], &[]),
        ("lab.svc.cluster.local.", NS, &[], &[]),
        ("cluster.local.", NS, &["ns.dns.cluster.local."], &[]),
        ("cluster.local.", HINFO, &[], &[]),
        ("10-240-0-1.lab.pod.cluster.local.", A, &["10.240.0.1"], &[]),
        ("1.0.0.10.in-addr.arpa.", PTR, &[one], &[]),
        ("1.0.0.172.in-addr.arpa.", PTR, &["ep1a.one{zone}"], &[]),
        ("4.0.0.172.in-addr.arpa.", PTR, &["twice.bare{zone}"], &[]),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.1.ip6.arpa.",
            PTR,
            &["six{zone}"],
            &[],
        ),
        // Neither a name of its own, nor ready: it is asked of others, who know nothing of it.
        ("2.0.0.172.in-addr.arpa.", PTR, &[], &[]),
        ("6.0.0.172.in-addr.arpa.", PTR, &[], &[]),
    ];
    for (name, kind, answers, additional) in cases {
        let whole = |text: &str| text.replace("{zone}", zone);
        let all = |texts: &[&str]| texts.iter().map(|text| whole(text)).collect::<Vec<_>>();
        let name = whole(name);
        let said = client.ask(&name, *kind);
        let code = said.metadata.response_code;
        assert_eq!(code, ResponseCode::NoError, "{name} {kind}");
        assert_eq!(data(&said.answers), all(answers), "{name} {kind}");
        assert_eq!(data(&said.additionals), all(additional), "{name} {kind}");
        let is_negative = answers.is_empty() && said.metadata.authoritative;
        assert_eq!(!said.authorities.is_empty(), is_negative, "{name} {kind}");
    }
    for name in [
        "zero{zone}",
        "address{zone}",
        "no-endpoint.bare{zone}",
        "172-0-0-6.bare{zone}",
        "starting.bare{zone}",
        "endpoint.zero{zone}",
        "endpoint.away{zone}",
        "_https._tcp.one{zone}",
        "_http._udp.bare{zone}",
        "a.b.c.one{zone}",
        "one.elsewhere.svc.cluster.local.",
        "elsewhere.svc.cluster.local.",
        "foo.cluster.local.",
        "example.org.cluster.local.",
        "blah.lab.pod.cluster.local.",
        "10-240-0-1.elsewhere.pod.cluster.local.",
    ] {
        let name = name.replace("{zone}", zone);
        for kind in [A, AAAA, CNAME, SRV, NS, PTR, HINFO] {
            let said = client.ask(&name, kind);
            let code = said.metadata.response_code;
            assert_eq!(code, ResponseCode::NXDomain, "{name} {kind}");
            assert_eq!(said.authorities.len(), 1, "{name} {kind}");
        }
    }
}
