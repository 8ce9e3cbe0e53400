//! Policies as a user applies them: from the first packet of a pod on, on what is open, and not on the node.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use windlass_tests::cluster::{Cluster, Node};
use windlass_tests::eventually::until;
use windlass_tests::http;
use windlass_tests::kubectl::{kubectl, kubectl_with_input, try_kubectl};
use windlass_tests::namespace::{self, Namespace};
use windlass_tests::netns;

use crate::netpol::{Kind, namespace_of};

/// From `kubectl apply` to the packet, with everything that lies between on a loaded machine.
const SOON: Duration = Duration::from_secs(10);

/// A pod that serves its name on 8080, by the name `web` of the port, and is probed by its node.
fn server_pod(name: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod",
            "metadata": {{"name": "{name}", "labels": {{"run": "{name}"}}}},
            "spec": {{"terminationGracePeriodSeconds": 0, "containers": [{{
                "name": "busybox", "image": "windlass.dev/busybox:dev", "imagePullPolicy": "IfNotPresent",
                "ports": [{{"name": "web", "containerPort": 8080}}],
                "readinessProbe": {{"httpGet": {{"path": "/index.html", "port": "web"}}, "periodSeconds": 1, "timeoutSeconds": 10}},
                "command": ["sh", "-c",
                    "mkdir /www; echo {name} > /www/index.html; exec httpd -f -p 8080 -h /www"]}}]}}}}"#
    )
}

/// Applies a NetworkPolicy whose spec is this YAML flow mapping.
pub(crate) fn apply(namespace: &Namespace, name: &str, spec: &str) -> Result<()> {
    namespace.apply(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    ))?;
    Ok(())
}

/// Whether a pod gets the page of an address within a second or so.
pub(crate) fn reaches(namespace: &Namespace, from: &str, host: &str) -> Result<bool> {
    let script = format!("timeout 2 wget -q -O - http://{host}/index.html");
    let said = namespace.try_run(&["exec", from, "--", "sh", "-c", &script])?;
    Ok(said.success && !said.stdout.is_empty())
}

pub(crate) fn becomes(namespace: &Namespace, from: &str, host: &str, expected: bool) -> Result<()> {
    let what = format!("{from} -> {host} to be {expected}");
    until(SOON, &what, || {
        Ok(reaches(namespace, from, host)? == expected)
    })
}

/// A server and two clients, `friend` and `stranger`; returns the server's address and port.
fn trio(namespace: &Namespace) -> Result<String> {
    namespace.apply(&server_pod("server"))?;
    for name in ["friend", "stranger"] {
        namespace.apply(&namespace::client_pod(name))?;
    }
    for name in ["server", "friend", "stranger"] {
        namespace.wait_ready(name)?;
    }
    let ip = namespace.field(&["pod", "server"], "{.status.podIP}")?;
    let server = SocketAddr::new(ip.parse()?, 8_080).to_string();
    for name in ["friend", "stranger"] {
        becomes(namespace, name, &server, true)?;
    }
    Ok(server)
}

#[test]
fn a_policy_lets_in_whom_it_names_and_nobody_else() -> Result<()> {
    let cluster = Cluster::shared()?;
    let namespace = Namespace::create("policy")?;
    let server = trio(&namespace)?;
    apply(
        &namespace,
        "only-friends",
        "{podSelector: {matchLabels: {run: server}}, ingress: [{from: [{podSelector: {matchLabels: {run: friend}}}],
          ports: [{port: web}]}]}",
    )?;
    becomes(&namespace, "stranger", &server, false)?;
    ensure!(
        reaches(&namespace, "friend", &server)?,
        "a friend is refused"
    );
    // By the Service as well, which is decided on its backend.
    namespace.run(&["expose", "pod", "server", "--port=80", "--target-port=8080"])?;
    let service = namespace.field(&["service", "server"], "{.spec.clusterIP}")?;
    let service = SocketAddr::new(service.parse()?, 80).to_string();
    becomes(&namespace, "friend", &service, true)?;
    ensure!(
        !reaches(&namespace, "stranger", &service)?,
        "the Service is a way around the policy"
    );
    // Labels decide, and they may change.
    namespace.run(&["label", "pod", "stranger", "run=friend", "--overwrite"])?;
    becomes(&namespace, "stranger", &server, true)?;
    namespace.run(&["label", "pod", "stranger", "run=stranger", "--overwrite"])?;
    becomes(&namespace, "stranger", &server, false)?;
    // The node still probes the pod, which stays ready.
    namespace.wait_ready("server")?;
    drops_name_their_policy(&cluster, &namespace, "only-friends", &server)?;
    namespace.run(&["delete", "networkpolicy", "only-friends"])?;
    becomes(&namespace, "stranger", &server, true)
}

/// What a node's datapath counts, as Prometheus reads it.
pub(crate) fn metrics_of(node: &Node) -> Result<String> {
    let ask = || http::get_text(SocketAddr::from(([127, 0, 0, 1], 10_249)), "/metrics");
    match &node.netns {
        Some(netns) => netns::inside(netns, ask),
        None => ask(),
    }
}

/// What a stranger sends is counted under the policy's name, and told by Events when the policy asks for it.
fn drops_name_their_policy(
    cluster: &Cluster,
    namespace: &Namespace,
    policy: &str,
    server: &str,
) -> Result<()> {
    let series = format!(
        "windlass_policy_drops_total{{policy=\"{}/{policy}\",decision=\"isolation\",reason=\"policy-denied-ingress\"}}",
        namespace.name()
    );
    // Who may come in is decided on the server's node.
    let node = namespace.field(&["pod", "server"], "{.spec.nodeName}")?;
    let nodes = cluster.nodes(1)?;
    let node = nodes.iter().find(|it| it.name == node).context("a node")?;
    let metrics = metrics_of(node)?;
    let counted = metrics.lines().find_map(|line| line.strip_prefix(&series));
    let counted: u64 = counted.with_context(|| series.clone())?.trim().parse()?;
    ensure!(counted > 0, "{series} {counted}");
    let annotate = [
        "annotate",
        "networkpolicy",
        policy,
        "windlass.dev/drop-events=true",
    ];
    namespace.run(&annotate)?;
    until(Duration::from_secs(60), "an Event on the policy", || {
        ensure!(!reaches(namespace, "stranger", server)?, "it is let in");
        let events = [
            "events",
            "--field-selector",
            "reason=PolicyDropped,involvedObject.kind=NetworkPolicy",
        ];
        Ok(namespace
            .field(&events, "{.items[*].message}")?
            .contains("policy-denied-ingress"))
    })
}

#[test]
fn labels_of_namespaces_decide_who_may_come_from_where() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let (namespace, other) = (Namespace::create("here")?, Namespace::create("there")?);
    let server = trio(&namespace)?;
    other.start_client("guest")?;
    let selector = format!(
        "{{matchLabels: {{kubernetes.io/metadata.name: {}}}}}",
        other.name()
    );
    apply(
        &namespace,
        "from-there",
        &format!("{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {selector}}}]}}]}}"),
    )?;
    becomes(&namespace, "friend", &server, false)?;
    becomes(&other, "guest", &server, true)
}

#[test]
fn a_pod_is_restricted_from_its_first_packet_on() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("first")?;
    trio(&namespace)?;
    // Of every family, one after the other.
    let addresses = namespace.field(&["pod", "server"], "{.status.podIPs[*].ip}")?;
    let addresses = addresses.split_whitespace().map(str::parse);
    let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>()?;
    let servers = addresses
        .iter()
        .map(|ip| SocketAddr::new(*ip, 8_080).to_string());
    let servers: Vec<String> = servers.collect();
    for server in &servers {
        becomes(&namespace, "friend", server, true)?;
    }
    let tries = servers
        .iter()
        .map(|server| format!("timeout 2 wget -q -O - http://{server}/index.html && exit 7"));
    let script = tries.chain(["exit 0".to_owned()]).collect::<Vec<_>>();
    let script = script.join("; ");
    apply(
        &namespace,
        "locked-in",
        "{podSelector: {matchLabels: {locked: \"yes\"}}, policyTypes: [Egress]}",
    )?;
    for attempt in 0..5 {
        let name = format!("eager{attempt}");
        namespace.apply(&format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "labels": {{"locked": "yes"}}}},
                "spec": {{"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [{{
                    "name": "busybox", "image": "windlass.dev/busybox:dev", "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "{script}"]}}]}}}}"#
        ))?;
    }
    for attempt in 0..5 {
        let name = format!("eager{attempt}");
        let path = "{.status.containerStatuses[0].state.terminated.exitCode}";
        let mut code = String::new();
        until(Duration::from_secs(60), "an eager pod to end", || {
            code = namespace.field(&["pod", &name], path)?;
            Ok(!code.is_empty())
        })?;
        ensure!(
            code == "0",
            "{name} got out before its policy was there: {code}"
        );
    }
    Ok(())
}

#[test]
fn a_policy_holds_for_connections_that_are_open() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("open")?;
    namespace.run(&[
        "run",
        "echo",
        "--image=windlass.dev/echo:dev",
        "--image-pull-policy=IfNotPresent",
    ])?;
    namespace.apply(&namespace::client_pod("client"))?;
    for name in ["echo", "client"] {
        namespace.wait_ready(name)?;
    }
    let client = namespace_of(&namespace.field(&["pod", "client"], "{.metadata.uid}")?)?;
    let addresses = namespace.field(&["pod", "echo"], "{.status.podIPs[*].ip}")?;
    let mut talks = Vec::new();
    for address in addresses.split_whitespace() {
        let target = SocketAddr::new(address.parse()?, 9_000);
        until(SOON, "a connection", || {
            let talk = connected(&client, target)?;
            Ok(talk.map(|talk| talks.push(talk)).is_some())
        })?;
    }
    let answered = |talk: &TcpStream| -> Result<bool> {
        let (mut writing, mut reading) = (talk, talk);
        talk.set_read_timeout(Some(Duration::from_secs(1)))?;
        writing.write_all(b"?")?;
        // What was lost is sent again: then there is more than one to read.
        Ok(matches!(reading.read(&mut [0; 64]), Ok(1..)))
    };
    for talk in &talks {
        ensure!(answered(talk)?, "no answer before there is a policy");
    }
    for (name, spec) in [
        ("in", "{podSelector: {matchLabels: {run: echo}}}"),
        (
            "out",
            "{podSelector: {matchLabels: {run: client}}, policyTypes: [Egress]}",
        ),
    ] {
        apply(&namespace, name, spec)?;
        for talk in &talks {
            until(SOON, "an open connection to fall silent", || {
                Ok(!answered(talk)?)
            })?;
        }
        namespace.run(&["delete", "networkpolicy", name])?;
        for talk in &talks {
            until(Duration::from_secs(60), "it to go on", || answered(talk))?;
        }
    }
    Ok(())
}

#[test]
fn the_usual_rule_for_dns_admits_cluster_dns() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("dns")?;
    let server = trio(&namespace)?;
    namespace.run(&["expose", "pod", "server", "--port=80", "--target-port=8080"])?;
    let lookup = || {
        let name = format!("server.{}.svc.cluster.local", namespace.name());
        let script = format!("timeout 3 nslookup {name}");
        Ok::<_, anyhow::Error>(
            namespace
                .try_run(&["exec", "friend", "--", "sh", "-c", &script])?
                .success,
        )
    };
    until(SOON, "the name", lookup)?;
    apply(
        &namespace,
        "closed",
        "{podSelector: {matchLabels: {run: friend}}, policyTypes: [Egress]}",
    )?;
    becomes(&namespace, "friend", &server, false)?;
    ensure!(!lookup()?, "DNS passes where nothing may");
    apply(
        &namespace,
        "dns",
        "{podSelector: {matchLabels: {run: friend}}, policyTypes: [Egress], egress: [{
            to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}},
                  podSelector: {matchLabels: {k8s-app: kube-dns}}}],
            ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]}",
    )?;
    until(SOON, "cluster DNS to be admitted", lookup)?;
    ensure!(
        !reaches(&namespace, "friend", &server)?,
        "more than DNS is open"
    );
    // As policy suites have it: the port, whoever is there.
    let to = |port: u16| {
        format!(
            "{{podSelector: {{matchLabels: {{run: friend}}}}, policyTypes: [Egress], egress: [{{
                ports: [{{port: {port}, protocol: UDP}}]}}]}}"
        )
    };
    apply(&namespace, "dns", &to(54))?;
    until(SOON, "cluster DNS to be kept away", || Ok(!lookup()?))?;
    apply(&namespace, "dns", &to(53))?;
    until(SOON, "cluster DNS to be admitted by its port", lookup)
}

#[test]
fn egress_to_the_api_server_and_to_nodes_is_a_matter_of_addresses() -> Result<()> {
    let cluster = Cluster::shared()?;
    let namespace = Namespace::create("nodes")?;
    namespace.start_client("client")?;
    let client = namespace_of(&namespace.field(&["pod", "client"], "{.metadata.uid}")?)?;
    let kubernetes = |what: &str, path: &str| -> Result<IpAddr> {
        let path = format!("jsonpath={path}");
        let ip = kubectl(&["-n", "default", "get", what, "kubernetes", "-o", &path])?;
        ip.parse().with_context(|| format!("`{ip}`"))
    };
    let api = kubernetes("endpointslice", "{.endpoints[0].addresses[0]}")?;
    let api = SocketAddr::new(api, 6_443);
    let service = SocketAddr::new(kubernetes("service", "{.spec.clusterIP}")?, 443);
    // The kubelets, of every node and family.
    let nodes = cluster.nodes(1)?;
    let nodes = nodes.iter().flat_map(|node| &node.addresses);
    let kubelets: Vec<SocketAddr> = nodes.map(|ip| SocketAddr::new(*ip, 10_250)).collect();
    let expect = |api_is: bool, nodes_are: bool| {
        let of_api = [service, api].map(|target| (target, api_is));
        let of_nodes = kubelets.iter().map(|target| (*target, nodes_are));
        for (target, expected) in of_api.into_iter().chain(of_nodes) {
            let what = format!("{target} to be reached: {expected}");
            until(SOON, &what, || Ok(dials(&client, target)? == expected))?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let to = |addresses: &mut dyn Iterator<Item = IpAddr>, port: u16| {
        let blocks = addresses.map(|ip| {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            format!("{{ipBlock: {{cidr: \"{ip}/{bits}\"}}}}")
        });
        let blocks: Vec<String> = blocks.collect();
        let blocks = blocks.join(", ");
        format!(
            "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{blocks}], ports: [{{port: {port}}}]}}]}}"
        )
    };
    expect(true, true)?;
    apply(
        &namespace,
        "out",
        "{podSelector: {}, policyTypes: [Egress]}",
    )?;
    expect(false, false)?;
    apply(&namespace, "out", &to(&mut [api.ip()].into_iter(), 6_443))?;
    expect(true, false)?;
    apply(
        &namespace,
        "out",
        &to(&mut kubelets.iter().map(SocketAddr::ip), 10_250),
    )?;
    expect(false, true)
}

/// Whether a connection out of a network namespace is accepted.
pub(crate) fn dials(from: &File, target: SocketAddr) -> Result<bool> {
    Ok(connected(from, target)?.is_some())
}

fn connected(from: &File, target: SocketAddr) -> Result<Option<TcpStream>> {
    std::thread::scope(|scope| {
        let dialling = scope.spawn(|| {
            setns(from, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
            Ok(TcpStream::connect_timeout(&target, Duration::from_secs(2)).ok())
        });
        let dialled = dialling.join();
        dialled.map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

#[test]
fn policies_hold_while_the_agent_is_dead_and_after_it_came_back() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("deadagent")?;
    let server = trio(&namespace)?;
    apply(
        &namespace,
        "only-friends",
        "{podSelector: {matchLabels: {run: server}}, ingress: [{from: [{podSelector: {matchLabels: {run: friend}}}]}]}",
    )?;
    becomes(&namespace, "stranger", &server, false)?;
    let agent = cluster.agent()?;
    let killed = agent.kill()?;
    until(Duration::from_secs(60), "the agent to come back", || {
        Ok(agent.runs_again(killed))
    })?;
    // exec goes through the agent, so this asks while it has only just come back.
    until(Duration::from_secs(30), "friends to be let in", || {
        reaches(&namespace, "friend", &server)
    })?;
    for _ in 0..3 {
        ensure!(
            !reaches(&namespace, "stranger", &server)?,
            "a restart opened the door"
        );
    }
    namespace.run(&["delete", "networkpolicy", "only-friends"])?;
    becomes(&namespace, "stranger", &server, true)
}

#[test]
fn a_cluster_network_policy_decides_before_those_of_namespaces() -> Result<()> {
    let _cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("tiers")?;
    let server = trio(&namespace)?;
    let definition = Kind::Cluster.definition().to_string();
    kubectl_with_input(&["apply", "-f", "-"], &definition)?;
    let name = format!("tiers-{}", std::process::id());
    let cluster_policy = |tier: &str, action: &str| {
        let here = format!("{{kubernetes.io/metadata.name: {}}}", namespace.name());
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n\
             spec: {{tier: {tier}, priority: 10, subject: {{namespaces: {{matchLabels: {here}}}}},
                 ingress: [{{action: {action}, from: [{{pods: {{namespaceSelector: {{matchLabels: {here}}},
                   podSelector: {{matchLabels: {{run: stranger}}}}}}}}]}}]}}\n"
        )
    };
    let outcome = (|| {
        until(
            Duration::from_secs(30),
            "the definition to be served",
            || Ok(try_kubectl(&["apply", "-f", "-"], &cluster_policy("Baseline", "Deny"))?.success),
        )?;
        becomes(&namespace, "stranger", &server, false)?;
        ensure!(
            reaches(&namespace, "friend", &server)?,
            "only strangers are denied"
        );
        // A namespace's own policy overrides the baseline.
        apply(&namespace, "all", "{podSelector: {}, ingress: [{}]}")?;
        becomes(&namespace, "stranger", &server, true)?;
        // It does not override the administrator's.
        let replaced = "the tier to be changed";
        until(SOON, replaced, || {
            Ok(try_kubectl(&["apply", "-f", "-"], &cluster_policy("Admin", "Deny"))?.success)
        })?;
        becomes(&namespace, "stranger", &server, false)?;
        kubectl_with_input(&["apply", "-f", "-"], &cluster_policy("Admin", "Pass"))?;
        becomes(&namespace, "stranger", &server, true)
    })();
    try_kubectl(&["delete", "clusternetworkpolicy", &name], "")?;
    outcome
}
