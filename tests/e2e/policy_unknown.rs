//! A pod whose address the API does not have yet: what others make of it, and for how long.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::{eventually, until};
use windlass_tests::kubectl::{kubectl_with_input, try_kubectl};
use windlass_tests::namespace::Namespace;
use windlass_tests::proxy::Proxy;

use crate::netpol::namespace_of;
use crate::policy::{apply, metrics_of};

const PODS: usize = 10;
const PORT: u16 = 9_000;
/// A try that is not answered soon is dropped; the next one is a packet of its own.
const TRY: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(60);

/// Keeps the status of some pods out of the API, as a kubelet does that has not looked yet.
struct Withheld(String);

impl Withheld {
    fn of(namespace: &Namespace) -> Result<Self> {
        let name = format!("withheld-{}", namespace.name());
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector":
                {"matchLabels": {"kubernetes.io/metadata.name": namespace.name()}}}},
        });
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods/status"]}]},
                "matchConditions": [{"name": "late", "expression": "object.metadata.name.startsWith('late')"}],
                "validations": [{"expression": "false", "message": "not yet"}],
            },
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]});
        kubectl_with_input(&["apply", "-f", "-"], &list.to_string())?;
        Ok(Self(name))
    }

    /// Everything may be said.
    fn lift(&self) -> Result<()> {
        let kind = "validatingadmissionpolicybinding";
        let said = try_kubectl(&["delete", kind, &self.0], "")?;
        ensure!(said.success, "{}", said.stderr);
        Ok(())
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        for kind in [
            "validatingadmissionpolicybinding",
            "validatingadmissionpolicy",
        ] {
            try_kubectl(&["delete", "--ignore-not-found", kind, &self.0], "").ok();
        }
    }
}

fn on_node(name: &str, node: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"run": name.trim_end_matches(char::is_numeric)}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "echo", "image": "windlass.dev/echo:dev", "imagePullPolicy": "IfNotPresent"}],
        },
    })
    .to_string()
}

fn unknown_drops(cluster: &Cluster, node: usize) -> Result<u64> {
    let metrics = metrics_of(&cluster.nodes(2)?[node])?;
    let of_reason = metrics.lines().filter(|line| {
        line.starts_with("windlass_datapath_packets_total{")
            && line.contains("\"identity-unknown\"")
    });
    let counts = of_reason.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

#[test]
#[ignore = "measures, over two nodes: cargo xtask up --nodes 3; cargo xtask test e2e -- --ignored policy_unknown --nocapture"]
fn a_pod_is_unknown_to_others_until_the_api_has_its_address() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let nodes = cluster.nodes(2)?;
    let namespace = Namespace::create("unknown")?;
    namespace.apply(&on_node("server", &nodes[0].name))?;
    namespace.wait_ready("server")?;
    let server: IpAddr = namespace
        .field(&["pod", "server"], "{.status.podIP}")?
        .parse()?;
    let server = SocketAddr::new(server, PORT);
    apply(
        &namespace,
        "known",
        "{podSelector: {matchLabels: {run: server}}, ingress: [{from: [{podSelector: {matchLabels: {run: late}}}]}]}",
    )?;
    let withheld = Withheld::of(&namespace)?;
    let names: Vec<String> = (0..PODS).map(|number| format!("late{number}")).collect();
    for name in &names {
        namespace.apply(&on_node(name, &nodes[1].name))?;
    }
    let mut places = Vec::new();
    for name in &names {
        let uid = namespace.field(&["pod", name], "{.metadata.uid}")?;
        let place = eventually(SOON, "a pod to run", || Ok(namespace_of(&uid).ok()))?;
        places.push(place);
    }
    let before = unknown_drops(&cluster, 0)?;
    let proxy = Proxy::start()?;
    let path = |name: &str| format!("/api/v1/namespaces/{}/pods/{name}", namespace.name());
    let published = |name: &str| -> Result<bool> {
        let pod: Value = proxy.get(&path(name))?.json()?;
        Ok(pod["status"]["podIP"].is_string())
    };
    for name in &names {
        ensure!(
            !published(name)?,
            "the API has the address of {name} already"
        );
    }

    let late = std::thread::scope(|scope| -> Result<Vec<(Duration, Duration)>> {
        let began = Instant::now();
        let dialling: Vec<_> = places
            .iter()
            .map(|place| {
                scope.spawn(move || -> Result<Duration> {
                    setns(place, CloneFlags::CLONE_NEWNET).context("entering a pod")?;
                    while TcpStream::connect_timeout(&server, TRY).is_err() {
                        ensure!(began.elapsed() < SOON, "it is never let in");
                    }
                    Ok(began.elapsed())
                })
            })
            .collect();
        // Some packets of each.
        until(SOON, "drops for want of an identity", || {
            Ok(unknown_drops(&cluster, 0)? >= before + 3 * PODS as u64)
        })?;
        ensure!(
            dialling.iter().all(|it| !it.is_finished()),
            "somebody unknown is let in"
        );
        withheld.lift()?;
        let mut known: Vec<Option<Duration>> = vec![None; PODS];
        while known.iter().any(Option::is_none) {
            ensure!(began.elapsed() < SOON, "the addresses are never published");
            for (name, known) in names.iter().zip(&mut known) {
                if known.is_none() && published(name)? {
                    *known = Some(began.elapsed());
                }
            }
        }
        let let_in = dialling
            .into_iter()
            .map(|it| it.join().expect("a dialling thread"));
        let let_in: Vec<Duration> = let_in.collect::<Result<_>>()?;
        Ok(known.into_iter().flatten().zip(let_in).collect())
    })?;
    for (name, (known, let_in)) in names.iter().zip(&late) {
        let after = let_in.saturating_sub(*known);
        eprintln!("{name}: in the API {known:?}, let in {let_in:?}, {after:?} later");
    }
    let mut after: Vec<Duration> = late.iter().map(|it| it.1.saturating_sub(it.0)).collect();
    after.sort();
    eprintln!(
        "at most {:?}, half within {:?}",
        after[PODS - 1],
        after[PODS / 2]
    );
    Ok(())
}
