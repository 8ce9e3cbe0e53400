//! Questions and the answers that they must have, by every way that a client may take.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::namespace::Namespace;
use windlass_tests::proxy::Proxy;

use super::client::{Answer, Way, ask, dig};

const SOON: Duration = Duration::from_secs(30);
const NAMES: usize = 100;

#[test]
fn every_question_has_the_answer_of_the_specification() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("names")?;
    namespace.apply(&objects().to_string())?;
    namespace.wait_ready("db-0")?;
    let table = table(&namespace)?;
    let mut by_dig = false;
    for server in servers()? {
        for (name, kind, expected) in &table {
            for way in [Way::Udp, Way::Tcp] {
                let mut said = None;
                let what = format!("{name} {kind} of {server} by {way:?}");
                until(SOON, &what, || {
                    said = Some(ask(server, way, name, kind)?);
                    Ok(said.as_ref() == Some(expected))
                })
                .with_context(|| format!("{said:?}, expected {expected:?}"))?;
                if let Some(said) = dig(server, way, name, kind)? {
                    by_dig = true;
                    ensure!(said == *expected, "{what}: dig says {said:?}");
                }
            }
        }
    }
    println!(
        "asked by a client of our own{}",
        if by_dig { " and by dig" } else { "" }
    );
    Ok(())
}

/// At which addresses cluster DNS is asked.
fn servers() -> Result<Vec<SocketAddr>> {
    let proxy = Proxy::start()?;
    let service = proxy.get("/api/v1/namespaces/kube-system/services/kube-dns")?;
    addresses(&service.json()?["spec"]["clusterIPs"])?
        .into_iter()
        .map(|ip| Ok(SocketAddr::new(ip, 53)))
        .collect()
}

fn addresses(list: &Value) -> Result<Vec<IpAddr>> {
    let list = list.as_array().context("a list of addresses")?.iter();
    list.map(|it| Ok(it.as_str().context("an address")?.parse()?))
        .collect()
}

fn objects() -> Value {
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let service = |name: &str, spec: Value| {
        let mut spec = spec;
        if spec["type"] != "ExternalName" {
            spec["ports"] = ports.clone();
            spec["ipFamilyPolicy"] = "PreferDualStack".into();
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let alias = |name: &str, target: &str| {
        service(
            name,
            json!({"type": "ExternalName", "externalName": target}),
        )
    };
    json!({"apiVersion": "v1", "kind": "List", "items": [
        service("web", json!({"selector": {"app": "db"}})),
        service("db", json!({"selector": {"app": "db"}, "clusterIP": "None"})),
        service("idle", json!({"selector": {"app": "nobody"}, "clusterIP": "None"})),
        alias("near", "kubernetes.default.svc.cluster.local"),
        alias("nowhere", "none.default.svc.cluster.local"),
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db-0", "labels": {"app": "db"}},
            "spec": {"hostname": "db-0", "subdomain": "db", "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "echo", "image": "windlass.dev/echo:dev", "imagePullPolicy": "IfNotPresent",
            }]},
        },
    ]})
}

fn table(namespace: &Namespace) -> Result<Vec<(String, &'static str, Answer)>> {
    let zone = "cluster.local.";
    let (own, all) = (namespace.name(), format!("svc.{zone}"));
    let own_zone = format!("{own}.{all}");
    let service = namespace.get(&["service", "web"])?;
    let virtual_ips = addresses(&service["spec"]["clusterIPs"])?;
    let pod = namespace.get(&["pod", "db-0"])?;
    let pod_ips = pod["status"]["podIPs"].as_array().context("podIPs")?;
    let pod_ips = addresses(&pod_ips.iter().map(|it| it["ip"].clone()).collect())?;
    let api = namespace.run(&[
        "-n",
        "default",
        "get",
        "service",
        "kubernetes",
        "-o",
        "json",
    ])?;
    let api: Value = serde_json::from_str(&api)?;
    let api = addresses(&api["spec"]["clusterIPs"])?;

    let found = |mut records: Vec<String>| {
        records.sort();
        Answer {
            status: "NOERROR",
            records,
        }
    };
    let not_there = Answer {
        status: "NXDOMAIN",
        records: Vec::new(),
    };
    let of = |kind: &str, ips: &[IpAddr]| {
        let ips = ips.iter().filter(|ip| ip.is_ipv4() == (kind == "A"));
        ips.map(|ip| format!("{kind} {ip}")).collect::<Vec<_>>()
    };
    let mut table = Vec::new();
    let mut row =
        |name: String, kind: &'static str, answer: Answer| table.push((name, kind, answer));
    for kind in ["A", "AAAA"] {
        row(
            format!("web.{own_zone}"),
            kind,
            found(of(kind, &virtual_ips)),
        );
        row(
            format!("WeB.{own_zone}"),
            kind,
            found(of(kind, &virtual_ips)),
        );
        row(format!("db.{own_zone}"), kind, found(of(kind, &pod_ips)));
        row(
            format!("db-0.db.{own_zone}"),
            kind,
            found(of(kind, &pod_ips)),
        );
        let target = format!("kubernetes.default.{all}");
        let mut chain = of(kind, &api);
        chain.push(format!("CNAME {target}"));
        row(format!("near.{own_zone}"), kind, found(chain));
        for name in ["none", "idle", "web.default.svc.cluster.local", "db-1.db"] {
            row(format!("{name}.{own_zone}"), kind, not_there.clone());
        }
        row(own_zone.clone(), kind, found(Vec::new()));
        row(all.clone(), kind, found(Vec::new()));
        row(zone.into(), kind, found(Vec::new()));
        for ip in &pod_ips {
            let dashed = ip.to_string().replace(['.', ':'], "-");
            row(
                format!("{dashed}.{own}.pod.{zone}"),
                kind,
                found(of(kind, &[*ip])),
            );
            row(
                format!("{dashed}.no-such.pod.{zone}"),
                kind,
                not_there.clone(),
            );
        }
    }
    row(format!("web.{own_zone}"), "MX", found(Vec::new()));
    row(format!("none.{own_zone}"), "MX", not_there.clone());
    row(format!("web.{own_zone}"), "ANY", {
        found([of("A", &virtual_ips), of("AAAA", &virtual_ips)].concat())
    });
    row(format!("near.{own_zone}"), "CNAME", {
        found(vec![format!("CNAME kubernetes.default.{all}")])
    });
    row(
        format!("dns-version.{zone}"),
        "TXT",
        found(vec!["TXT \"1.1.0\"".into()]),
    );
    row(format!("_http._tcp.web.{own_zone}"), "SRV", {
        found(vec![format!("SRV 0 100 80 web.{own_zone}")])
    });
    row(format!("_http._tcp.db.{own_zone}"), "SRV", {
        found(vec![format!("SRV 0 100 8080 db-0.db.{own_zone}")])
    });
    row(
        format!("_http._udp.web.{own_zone}"),
        "SRV",
        not_there.clone(),
    );
    for (ips, name) in [(&virtual_ips, "web"), (&pod_ips, "db-0.db")] {
        for ip in ips {
            row(
                reverse(*ip),
                "PTR",
                found(vec![format!("PTR {name}.{own_zone}")]),
            );
        }
    }
    // RFC 6604: an alias to a name that is not there is not there.
    let nowhere = Answer {
        status: "NXDOMAIN",
        records: vec![format!("CNAME none.default.{all}")],
    };
    row(format!("nowhere.{own_zone}"), "A", nowhere);
    Ok(table)
}

fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev();
            let nibbles = nibbles.flat_map(|octet| [octet & 15, octet >> 4]);
            nibbles.map(|it| format!("{it:x}.")).collect::<String>() + "ip6.arpa."
        }
    }
}

#[test]
#[ignore = "measures: cargo xtask test e2e -- --ignored names_follow --nocapture"]
fn names_follow_changes() -> Result<()> {
    let _cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("follow")?;
    let proxy = Proxy::start()?;
    let server = *servers()?.first().context("an address of cluster DNS")?;
    // Of the family that Services have.
    let kind = if server.is_ipv4() { "A" } else { "AAAA" };
    let path = format!("/api/v1/namespaces/{}/services", namespace.name());
    let mut took = Vec::new();
    for number in 0..NAMES {
        let name = format!("s{number}");
        let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        let headers = [("Content-Type", "application/json")];
        let made = proxy.request("POST", &path, &headers, service.to_string().as_bytes())?;
        ensure!(made.status == 201, "{}", made.text());
        let begun = Instant::now();
        let full = format!("{name}.{}.svc.cluster.local.", namespace.name());
        while ask(server, Way::Udp, &full, kind)?.records.is_empty() {
            ensure!(begun.elapsed() < SOON, "{full} is not there");
        }
        took.push(begun.elapsed());
    }
    took.sort();
    println!(
        "after the API's answer: p50 {:?}, p99 {:?}, the longest {:?}",
        took[NAMES / 2],
        took[NAMES * 99 / 100 - 1],
        took[NAMES - 1]
    );
    Ok(())
}
