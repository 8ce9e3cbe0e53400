//! A cluster of both families: what its objects say, and what a user gets who asks for one family, the other or both.
//! That packets of both find their way is part of every test beside this one.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::http;
use windlass_tests::kubectl::kubectl;
use windlass_tests::namespace::Namespace;
use windlass_tests::netns;

use super::{NODES, Spread, client_pod};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn objects_have_addresses_of_both_families() -> Result<()> {
    let cluster = Cluster::shared()?;
    let nodes = cluster.nodes(NODES)?;
    let namespace = Namespace::create("families")?;
    for (number, node) in nodes.iter().enumerate() {
        let object: Value =
            serde_json::from_str(&kubectl(&["get", "node", &node.name, "-o", "json"])?)?;
        let said = object["status"]["addresses"].as_array();
        let internal = said
            .into_iter()
            .flatten()
            .filter(|it| it["type"] == "InternalIP");
        let internal = families(internal.map(|it| &it["address"]))?;
        ensure!(internal == node.addresses, "{}: {internal:?}", node.name);
        let cidrs = object["spec"]["podCIDRs"].as_array().cloned();
        let cidrs = cidrs.with_context(|| format!("the pod CIDRs of {}", node.name))?;
        ensure!(
            cidrs.len() == 2 && cidrs[0] == object["spec"]["podCIDR"],
            "{cidrs:?}"
        );

        let name = format!("pod-{number}");
        namespace.apply(&client_pod(&name, &node.name))?;
        namespace.wait_ready(&name)?;
        let pod = namespace.get(&["pod", &name])?;
        let status = &pod["status"];
        let ips = families(list(&status["podIPs"]).map(|it| &it["ip"]))?;
        for (ip, cidr) in ips.iter().zip(&cidrs) {
            let cidr: ipnet::IpNet = cidr.as_str().context("a CIDR")?.parse()?;
            ensure!(cidr.contains(ip), "{ip} of {name} is not of {cidr}");
        }
        ensure!(status["podIP"] == json!(ips[0]), "{status}");
        let hosts = families(list(&status["hostIPs"]).map(|it| &it["ip"]))?;
        ensure!(hosts == node.addresses, "{name}: {hosts:?}");
        let inside = namespace.run(&["exec", &name, "--", "cat", "/etc/hosts"])?;
        for ip in ips {
            let own = format!("{ip}\t{name}");
            ensure!(
                inside.lines().any(|line| line == own),
                "{own:?} is not in\n{inside}"
            );
        }
    }
    Ok(())
}

/// What a Service asks for, what it gets, and the families of its endpoints and names.
#[test]
fn a_service_has_the_families_that_it_asks_for() -> Result<()> {
    let cluster = Cluster::shared()?;
    let nodes = cluster.nodes(NODES)?;
    let spread = Spread::deploy("asked", &nodes)?;
    let namespace = &spread.namespace;
    let client = "client";
    namespace.apply(&client_pod(client, &nodes[1].name))?;
    namespace.wait_ready(client)?;
    for (name, asked, expected) in [
        ("unsaid", json!({}), vec!["IPv4"]),
        ("six", json!({"ipFamilies": ["IPv6"]}), vec!["IPv6"]),
        (
            "both",
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            vec!["IPv4", "IPv6"],
        ),
        (
            "six-first",
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}),
            vec!["IPv6", "IPv4"],
        ),
        (
            "headless",
            json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "None"}),
            vec!["IPv4", "IPv6"],
        ),
    ] {
        let mut spec =
            json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
        if name != "headless" {
            spec["type"] = "NodePort".into();
        }
        for (key, value) in asked.as_object().context("fields")? {
            spec[key] = value.clone();
        }
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        namespace.apply(&object.to_string())?;
        let made = namespace.get(&["service", name])?["spec"].clone();
        ensure!(made["ipFamilies"] == json!(expected), "{name}: {made}");
        let wanted: BTreeSet<IpAddr> = if name == "headless" {
            let of_pods = spread.pods.iter().flat_map(|pod| &pod.addresses);
            of_pods.map(SocketAddr::ip).collect()
        } else {
            let ips: Vec<IpAddr> = addresses(list(&made["clusterIPs"]))?;
            let of_ips: Vec<&str> = ips.iter().map(|ip| family(*ip)).collect();
            ensure!(of_ips == expected, "{name}: {ips:?}");
            let port = u16::try_from(made["ports"][0]["nodePort"].as_u64().context("a port")?)?;
            for ip in &ips {
                answers(&spread, SocketAddr::new(*ip, 80))
                    .with_context(|| format!("{name}: {ip}"))?;
            }
            for address in &nodes[2].addresses {
                let target = SocketAddr::new(*address, port);
                let outside = netns::inside(cluster.outside()?, || {
                    match expected.contains(&family(*address)) {
                        true => answers(&spread, target),
                        false => refuses(target),
                    }
                });
                outside.with_context(|| format!("{name}: {target} from outside"))?;
            }
            ips.into_iter().collect()
        };
        let fqdn = format!("{name}.{}.svc.cluster.local", namespace.name());
        let mut named = BTreeSet::new();
        until(SOON, "the name to be as the Service is", || {
            let said = namespace.try_run(&["exec", client, "--", "nslookup", &fqdn])?;
            named = answers_of_nslookup(&said.stdout);
            Ok(named == wanted)
        })
        .with_context(|| format!("{name}: {named:?}, not {wanted:?}"))?;
    }
    let (two, one) = (
        r#"{"spec": {"ipFamilyPolicy": "RequireDualStack"}}"#,
        "{.spec.clusterIPs}",
    );
    let before = namespace.field(&["service", "six"], "{.spec.clusterIP}")?;
    namespace.run(&["patch", "service", "six", "-p", two])?;
    let after = namespace.field(&["service", "six"], one)?;
    let after: Vec<IpAddr> = serde_json::from_str(&after).with_context(|| after.clone())?;
    ensure!(
        after.len() == 2 && after[0].to_string() == before,
        "{before} became {after:?}"
    );
    answers(&spread, SocketAddr::new(after[1], 80)).context("the family that was added")
}

fn answers(spread: &Spread, target: SocketAddr) -> Result<()> {
    until(SOON, "one of the pods to answer", || {
        Ok(http::get_text(target, "/").is_ok_and(|name| spread.names().contains(&name)))
    })
}

fn refuses(target: SocketAddr) -> Result<()> {
    match std::net::TcpStream::connect_timeout(&target, SOON) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("expected a refusal, got {other:?}"),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The addresses after those of the server.
fn answers_of_nslookup(text: &str) -> BTreeSet<IpAddr> {
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("Address: "));
    lines
        .filter_map(|address| address.trim().parse().ok())
        .collect()
}

fn addresses<'a>(texts: impl Iterator<Item = &'a Value>) -> Result<Vec<IpAddr>> {
    texts
        .map(|text| Ok(text.as_str().context("a text")?.parse()?))
        .collect()
}

/// Two addresses, the first of IPv4 and the second of IPv6.
fn families<'a>(texts: impl Iterator<Item = &'a Value>) -> Result<Vec<IpAddr>> {
    let found = addresses(texts)?;
    let of: Vec<&str> = found.iter().map(|ip| family(*ip)).collect();
    ensure!(
        of == ["IPv4", "IPv6"],
        "{found:?} are not one address of each family"
    );
    Ok(found)
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}
