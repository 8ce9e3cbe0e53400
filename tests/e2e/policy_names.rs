//! Policies of the cluster that speak of names: whoever asks cluster DNS may go where it was told to, at once, and
//! nowhere else.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::kubectl::{kubectl_with_input, try_kubectl};
use windlass_tests::namespace::Namespace;
use windlass_tests::netns;

use crate::netpol::{Kind, namespace_of};
use crate::policy::{dials, metrics_of};

const SOON: Duration = Duration::from_secs(20);
const BACK_WITHIN: Duration = Duration::from_secs(60);
const PORT: u16 = 8_080;
/// The outside's own interface, and addresses on its segment that nobody else has.
const LINK: &str = "outside0";
const FIRST: u8 = 101;
const HOSTS: u8 = 8;

/// Servers outside of the cluster, each at addresses of its own.
struct Hosts<'a> {
    outside: &'a str,
    /// One of each family that the cluster has.
    addresses: Vec<Vec<IpAddr>>,
}

impl<'a> Hosts<'a> {
    fn start(cluster: &'a Cluster) -> Result<Self> {
        let outside = cluster.outside()?;
        let shown = Command::new("ip")
            .args(["-n", outside, "-j", "address", "show", "dev", LINK])
            .output()?;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
        let own = shown[0]["addr_info"].as_array().context("addresses")?;
        let own = own.iter().filter(|it| it["scope"] == "global");
        let own: Vec<IpAddr> = own
            .map(|it| Ok(it["local"].as_str().context("an address")?.parse()?))
            .collect::<Result<_>>()?;
        let families = cluster.nodes(1)?[0].addresses.clone();
        let of_cluster =
            |address: &&IpAddr| families.iter().any(|it| it.is_ipv4() == address.is_ipv4());
        let hosts = (FIRST..FIRST + HOSTS).map(|last| {
            let like = own.iter().filter(of_cluster);
            like.map(|address| beside(*address, last)).collect()
        });
        let hosts = Self {
            outside,
            addresses: hosts.collect(),
        };
        for address in hosts.addresses.iter().flatten() {
            // One that was killed may have left them.
            hosts.address("replace", *address)?;
            let listener = netns::inside(outside, || {
                TcpListener::bind((*address, PORT))
                    .with_context(|| format!("listening at {address}"))
            })?;
            std::thread::spawn(move || serve(&listener));
        }
        Ok(hosts)
    }

    fn address(&self, verb: &str, address: IpAddr) -> Result<()> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let mut words = vec![
            "-n".to_owned(),
            self.outside.to_owned(),
            "address".to_owned(),
        ];
        words.extend([
            verb.to_owned(),
            format!("{address}/{bits}"),
            "dev".to_owned(),
            LINK.to_owned(),
        ]);
        if verb == "replace" && address.is_ipv6() {
            words.push("nodad".to_owned());
        }
        let said = Command::new("ip").args(&words).output()?;
        ensure!(said.status.success(), "ip {words:?}: {said:?}");
        Ok(())
    }
}

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        for address in self.addresses.iter().flatten() {
            self.address("del", *address).ok();
        }
    }
}

/// The same network, another end.
fn beside(address: IpAddr, last: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, last].into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = last;
            octets.into()
        }
    }
}

/// One page for everybody, until the test ends.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut stream = stream;
            let mut request = [0; 1_024];
            let asked = stream.read(&mut request);
            let page = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nhi\n";
            asked.is_ok_and(|length| length > 0 && stream.write_all(page).is_ok())
        });
    }
}

/// A name of the cluster's own for addresses outside of it.
fn name(namespace: &Namespace, host: usize, addresses: &[IpAddr]) -> Result<()> {
    let service = format!("host{host}");
    let families: Vec<&str> = addresses
        .iter()
        .map(|it| if it.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    let policy = if families.len() > 1 {
        "RequireDualStack"
    } else {
        "SingleStack"
    };
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": service},
        "spec": {"clusterIP": "None", "ipFamilies": families, "ipFamilyPolicy": policy,
            "ports": [{"name": "http", "port": PORT}]},
    })];
    items.extend(addresses.iter().zip(&families).map(|(address, family)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family, "endpoints": [{"addresses": [address]}],
            "ports": [{"name": "http", "port": PORT}],
        })
    }));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    namespace.apply(&list.to_string())?;
    Ok(())
}

/// A policy of the cluster, for as long as this lives.
struct OnlyTo<'a> {
    namespace: &'a Namespace,
    name: String,
}

impl OnlyTo<'_> {
    /// Pods of the namespace may ask cluster DNS, and go to what these names are.
    fn these(&self, names: &[&str]) -> Result<()> {
        let label = |key: &str, value: &str| json!({"matchLabels": {key: value}});
        let own = label("kubernetes.io/metadata.name", self.namespace.name());
        let dns = json!({"pods": {
            "namespaceSelector": label("kubernetes.io/metadata.name", "kube-system"),
            "podSelector": label("k8s-app", "kube-dns"),
        }});
        let names: Vec<String> = names
            .iter()
            .map(|it| format!("{it}.{}.svc.cluster.local", self.namespace.name()))
            .collect();
        let policy = json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": self.name},
            "spec": {"tier": "Admin", "priority": 10, "subject": {"namespaces": own}, "egress": [
                {"action": "Accept", "to": [dns]},
                {"action": "Accept", "to": [{"domainNames": names}],
                    "protocols": [{"tcp": {"destinationPort": {"number": PORT}}}]},
                {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]},
            ]},
        });
        let policy = policy.to_string();
        until(SOON, "the policy to be taken", || {
            Ok(try_kubectl(&["apply", "-f", "-"], &policy)?.success)
        })
    }
}

impl Drop for OnlyTo<'_> {
    fn drop(&mut self) {
        try_kubectl(&["delete", "clusternetworkpolicy", &self.name], "").ok();
    }
}

fn resolves(namespace: &Namespace, host: usize) -> Result<bool> {
    let script = format!(
        "timeout 5 nslookup host{host}.{}.svc.cluster.local",
        namespace.name()
    );
    Ok(namespace
        .try_run(&["exec", "client", "--", "sh", "-c", &script])?
        .success)
}

/// Asks for the name's addresses and goes there.
fn visits(namespace: &Namespace, host: usize) -> Result<bool> {
    let name = format!("host{host}.{}.svc.cluster.local", namespace.name());
    let script = format!("timeout 5 wget -q -O - http://{name}:{PORT}/");
    let said = namespace.try_run(&["exec", "client", "--", "sh", "-c", &script])?;
    Ok(said.success && said.stdout == "hi\n")
}

/// What the policy's rules have dropped on the client's node.
fn dropped(cluster: &Cluster, node: &str, policy: &str) -> Result<u64> {
    let nodes = cluster.nodes(1)?;
    let node = nodes.iter().find(|it| it.name == node).context("a node")?;
    let metrics = metrics_of(node)?;
    let series = format!("windlass_policy_drops_total{{policy=\"{policy}\",");
    let of_policy = metrics.lines().filter(|line| line.starts_with(&series));
    let counts = of_policy.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

#[test]
fn a_name_lets_out_to_what_it_is_from_the_first_packet_on() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("names")?;
    let hosts = Hosts::start(&cluster)?;
    for (number, addresses) in hosts.addresses.iter().enumerate() {
        name(&namespace, number, addresses)?;
    }
    namespace.start_client("client")?;
    let client = namespace_of(&namespace.field(&["pod", "client"], "{.metadata.uid}")?)?;
    let node = namespace.field(&["pod", "client"], "{.spec.nodeName}")?;
    for host in [0, usize::from(HOSTS) - 1] {
        until(SOON, "a host to be visited", || visits(&namespace, host))?;
    }

    let definition = Kind::Cluster.definition().to_string();
    kubectl_with_input(&["apply", "-f", "-"], &definition)?;
    let only = OnlyTo {
        namespace: &namespace,
        name: format!("names-{}", std::process::id()),
    };
    only.these(&["host0"])?;
    becomes(&client, &hosts.addresses[1], false)?;
    // Who is not named is found, and not reached.
    ensure!(
        resolves(&namespace, 1)?,
        "a policy must not keep a name from being resolved"
    );
    ensure!(!visits(&namespace, 1)?, "a name that no rule has lets out");
    until(SOON, "the name to be known", || visits(&namespace, 0))?;
    becomes(&client, &hosts.addresses[0], true)?;

    only.these(&["*"])?;
    // Until somebody has asked, nobody may go there.
    until(SOON, "another name to let out", || visits(&namespace, 1))?;
    becomes(&client, &hosts.addresses[2], false)?;
    let before = dropped(&cluster, &node, &only.name)?;
    for host in 3..usize::from(HOSTS) {
        ensure!(
            visits(&namespace, host)?,
            "host{host} is not reached at once"
        );
    }
    let after = dropped(&cluster, &node, &only.name)?;
    ensure!(
        after == before,
        "{} packets were dropped after their answer",
        after - before
    );

    // Whoever has an answer does not know of the agent's end, nor of its return.
    let agent = cluster.nodes(1)?.into_iter().find(|it| it.name == node);
    let agent = agent.context("the client's node")?.agent;
    let killed = agent.kill()?;
    let known = || {
        for address in &hosts.addresses[3] {
            ensure!(
                dials(&client, SocketAddr::new(*address, PORT))?,
                "{address} was given, and is not reached any more"
            );
        }
        Ok(())
    };
    until(BACK_WITHIN, "the agent to come back", || {
        known()?;
        Ok(agent.runs_again(killed))
    })?;
    // It writes the tables when this is served.
    until(BACK_WITHIN, "the agent to know its policies", || {
        known()?;
        Ok(dropped(&cluster, &node, &only.name).is_ok())
    })?;
    until(SOON, "the agent to learn again", || {
        known()?;
        visits(&namespace, 2)
    })?;
    known()
}

/// To all of these addresses, or to none.
fn becomes(client: &File, addresses: &[IpAddr], expected: bool) -> Result<()> {
    for address in addresses {
        let what = format!("{address} to be reached: {expected}");
        let target = SocketAddr::new(*address, PORT);
        until(SOON, &what, || Ok(dials(client, target)? == expected))?;
    }
    Ok(())
}
