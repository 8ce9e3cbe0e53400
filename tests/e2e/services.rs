//! A Service is reached from everywhere a user may stand, over TCP and UDP, and leaves no trace in netfilter.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::{eventually, until};
use windlass_tests::http;
use windlass_tests::kubectl::kubectl;
use windlass_tests::namespace::Namespace;
use windlass_tests::netns;
use windlass_tests::web::Web;

#[test]
fn the_cluster_ip_answers_on_the_node() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("node")?;
    let web = Web::deploy(&namespace)?;
    web.is_balanced_over_all_pods(web.cluster_address()?)
}

#[test]
fn the_cluster_ip_answers_inside_a_pod() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("pod")?;
    let web = Web::deploy(&namespace)?;
    namespace.start_client("client")?;
    let url = format!("http://{}/", web.cluster_address()?);
    let script = format!("for i in $(seq 60); do wget -q -O - {url} || exit 1; done");
    let answered = namespace.run(&["exec", "client", "--", "sh", "-c", &script])?;
    let answered: std::collections::BTreeSet<_> = answered.lines().map(str::to_owned).collect();
    ensure!(answered == web.pods()?, "answered: {answered:?}");
    Ok(())
}

#[test]
fn a_service_is_reached_by_its_name_inside_a_pod() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("name")?;
    let web = Web::deploy(&namespace)?;
    namespace.start_client("client")?;
    for name in [
        "web".to_owned(),
        format!("web.{}.svc.cluster.local", namespace.name()),
    ] {
        let url = format!("http://{name}/");
        let answer = namespace.run(&["exec", "client", "--", "wget", "-q", "-O", "-", &url])?;
        ensure!(
            web.pods()?.contains(answer.trim()),
            "{url} answered {answer}"
        );
    }
    let unknown = [
        "exec",
        "client",
        "--",
        "nslookup",
        "no-such.default.svc.cluster.local",
    ];
    ensure!(
        !namespace.try_run(&unknown)?.success,
        "an unknown name has an address"
    );
    Ok(())
}

#[test]
fn the_cluster_ip_leads_a_pod_to_itself() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("hairpin")?;
    namespace.start_client("self")?;
    namespace.run(&[
        "exec",
        "self",
        "--",
        "sh",
        "-c",
        "echo me > /tmp/index.html; httpd -p 8080 -h /tmp",
    ])?;
    namespace.run(&["expose", "pod", "self", "--port=80", "--target-port=8080"])?;
    let ip = namespace.field(&["service", "self"], "{.spec.clusterIP}")?;
    until(
        Duration::from_secs(20),
        "the pod to reach itself through its Service",
        || {
            let url = format!("http://{ip}/index.html");
            let said = namespace.try_run(&["exec", "self", "--", "wget", "-q", "-O", "-", &url])?;
            Ok(said.success && said.stdout.trim() == "me")
        },
    )
}

#[test]
fn the_node_port_answers_from_the_outside_and_on_the_node() -> Result<()> {
    let cluster = Cluster::shared()?;
    let namespace = Namespace::create("nodeport")?;
    let web = Web::deploy(&namespace)?;
    let address = web.node_port(cluster.node_ip()?)?;
    netns::inside(cluster.outside()?, || {
        web.is_balanced_over_all_pods(address)
    })
    .context("from the outside")?;
    web.is_balanced_over_all_pods(address)
        .context("on the node")
}

/// A pod's own port on its node: the runtime hands it to the network plugin, which no Service does.
#[test]
fn a_host_port_answers_at_its_node() -> Result<()> {
    const PORT: u16 = 18_080;
    let cluster = Cluster::shared()?;
    let namespace = Namespace::create("hostport")?;
    namespace.apply(&format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "at-host"}}, "spec": {{
            "terminationGracePeriodSeconds": 0, "containers": [{{
                "name": "echo", "image": "windlass.dev/echo:dev", "imagePullPolicy": "IfNotPresent",
                "ports": [{{"containerPort": 8080, "hostPort": {PORT}}}]}}]}}}}"#
    ))?;
    namespace.wait_ready("at-host")?;
    let node = namespace.field(&["pod", "at-host"], "{.status.hostIP}")?;
    let address = SocketAddr::new(node.parse()?, PORT);
    netns::inside(cluster.outside()?, || {
        eventually(Duration::from_secs(20), "the host port to answer", || {
            Ok(windlass_tests::http::get_text(address, "/")
                .ok()
                .filter(|name| name.trim() == "at-host"))
        })
    })?;
    Ok(())
}

#[test]
fn a_pod_address_answers_on_the_node_and_inside_another_pod() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("direct")?;
    let web = Web::deploy(&namespace)?;
    namespace.start_client("client")?;
    for pod in web.pods()? {
        let address = web.pod_address(&pod)?;
        ensure!(windlass_tests::http::get_text(address, "/")? == pod);
        let url = format!("http://{address}/");
        let answer = namespace.run(&["exec", "client", "--", "wget", "-q", "-O", "-", &url])?;
        ensure!(answer.trim() == pod, "{url} answered {answer}");
    }
    Ok(())
}

/// What a cloud's balancers ask a node, as they ask a kube-proxy.
#[test]
fn balancers_are_told_whether_a_node_serves_and_stays() -> Result<()> {
    let cluster = Cluster::shared()?;
    let node = cluster.nodes(1)?.swap_remove(0);
    let namespace = Namespace::create("balanced")?;
    Web::deploy(&namespace)?;
    let local = r#"{"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}}"#;
    namespace.run(&["patch", "service", "web", "-p", local])?;
    let port = namespace.field(&["service", "web"], "{.spec.healthCheckNodePort}")?;
    let at = SocketAddr::new(node.ip, port.parse()?);
    let pods = namespace.get(&["pods", "-l", "app=web"])?;
    let pods = pods["items"].as_array().context("a list of pods")?;
    let here = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"] == node.name);
    let here = here.count();
    let is_told = |endpoints: usize| {
        until(Duration::from_secs(20), "the balancer to be told", || {
            let Ok(told) = http::get(at, "/") else {
                return Ok(false);
            };
            let body = told.json()?;
            ensure!(body["service"]["name"] == "web" && body["serviceProxyHealthy"] == true);
            let status = if endpoints > 0 { 200 } else { 503 };
            Ok(told.status == status
                && told.header("content-type") == Some("application/json")
                && told.header("x-load-balancing-endpoint-weight") == Some(&endpoints.to_string())
                && body["localEndpoints"] == endpoints)
        })
    };
    is_told(here)?;
    namespace.run(&["scale", "deployment/web", "--replicas=0"])?;
    is_told(0)?;

    let proxy = SocketAddr::new(node.ip, 10_256);
    let is_eligible = |eligible: bool| {
        until(Duration::from_secs(20), "the proxy to be told", || {
            let (health, life) = (http::get(proxy, "/healthz")?, http::get(proxy, "/livez")?);
            let body = health.json()?;
            ensure!(life.status == 200 && life.json()?.get("nodeEligible").is_none());
            ensure!(body["healthy"] == true && body["status"]["IPv4"]["healthy"] == true);
            Ok(health.status == if eligible { 200 } else { 503 }
                && body["nodeEligible"] == eligible)
        })
    };
    is_eligible(true)?;
    // As the cluster autoscaler does, but for the effect, which is nothing to this.
    let taint = "ToBeDeletedByClusterAutoscaler";
    kubectl(&[
        "taint",
        "node",
        &node.name,
        &format!("{taint}=1:PreferNoSchedule"),
    ])?;
    let left = is_eligible(false);
    kubectl(&["taint", "node", &node.name, &format!("{taint}-")])?;
    left?;
    is_eligible(true)
}

#[test]
fn udp_is_balanced_too() -> Result<()> {
    let cluster = Cluster::shared()?;
    let namespace = Namespace::create("udp")?;
    let _web = Web::deploy(&namespace)?;
    namespace.run(&[
        "expose",
        "deployment",
        "web",
        "--name=udp",
        "--port=9000",
        "--protocol=UDP",
        "--type=NodePort",
    ])?;
    let ip: Ipv4Addr = namespace
        .field(&["service", "udp"], "{.spec.clusterIP}")?
        .parse()?;
    eventually(Duration::from_secs(20), "an answer over UDP", || {
        Ok(echoed((ip, 9000).into()).ok())
    })?;
    let port: u16 = namespace
        .field(&["service", "udp"], "{.spec.ports[0].nodePort}")?
        .parse()?;
    let address = SocketAddr::new(cluster.node_ip()?, port);
    netns::inside(cluster.outside()?, || {
        eventually(
            Duration::from_secs(20),
            "an answer over UDP outside",
            || Ok(echoed(address).ok()),
        )
    })
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("refuse")?;
    let web = Web::deploy(&namespace)?;
    let address = web.cluster_address()?;
    namespace.run(&["scale", "deployment", "web", "--replicas=0"])?;
    until(Duration::from_secs(30), "a refusal", || {
        let refused = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2));
        Ok(refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    })
}

#[test]
fn services_add_no_rule_to_iptables_or_nftables() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let before = netfilter()?;
    let namespace = Namespace::create("netfilter")?;
    let web = Web::deploy(&namespace)?;
    web.is_balanced_over_all_pods(web.cluster_address()?)?;
    let after = netfilter()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    ensure!(
        !after.to_lowercase().contains("windlass") && !after.contains("KUBE"),
        "{after}"
    );
    Ok(())
}

/// Every rule of the machine, without counters and times.
pub(crate) fn netfilter() -> Result<String> {
    let mut rules = String::new();
    for command in [
        &["iptables-save"][..],
        &["ip6tables-save"],
        &["nft", "--stateless", "list", "ruleset"],
    ] {
        let output = Command::new(command[0])
            .args(&command[1..])
            .output()
            .with_context(|| format!("could not start {}", command[0]))?;
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            // ":INPUT ACCEPT [123:456]"
            let line = if line.starts_with(':') {
                line.split('[').next().unwrap_or(line)
            } else {
                line
            };
            if !line.starts_with('#') {
                rules += line.trim_end();
                rules += "\n";
            }
        }
    }
    Ok(rules)
}

fn echoed(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(address)?;
    socket.send(b"windlass")?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    ensure!(&answer[..length] == b"windlass");
    Ok(())
}
