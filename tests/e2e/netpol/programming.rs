//! How long a change takes from the API server's answer to the packet, in a large cluster: nodes that nobody runs, with
//! thousands of pods that are objects only, policies that select them and the two that are real, and one policy that
//! lets these two talk, and then does not.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::{pause, until};
use windlass_tests::namespace::Namespace;
use windlass_tests::proxy::Proxy;

use super::objects::{addresses, namespace_of};

/// Pods, policies and changes; `WINDLASS_CROWD=pods,policies,changes` says other numbers.
const CROWD: [usize; 3] = [10_000, 1_000, 100];
/// Namespaces, and nodes.
const GROUPS: usize = 20;
const WRITERS: usize = 8;
const SOON: Duration = Duration::from_secs(20);
/// Without an answer for so long, none comes any more: far above the time between two questions.
const SILENCE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "a measurement, three minutes: cargo xtask test e2e -- --ignored policy_programming --nocapture"]
fn policy_programming_takes_its_time_in_a_large_cluster() -> Result<()> {
    let _cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("programming")?;
    let proxy = Proxy::start()?;
    let (_, server) = pod(&namespace, "server")?;
    let (client, _) = pod(&namespace, "client")?;
    let started = Instant::now();
    let [pods, policies, changes] = size()?;
    let _crowd = Crowd::gather(&proxy, namespace.name(), pods, policies)?;
    eprintln!(
        "{pods} pods and {policies} policies are there after {:?}",
        started.elapsed()
    );

    let policies = format!(
        "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
        namespace.name()
    );
    let gate = |open: bool| {
        let rules = if open { json!([{}]) } else { json!([]) };
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "gate"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": rules},
        })
    };
    call(&proxy, "POST", &policies, &gate(false))?;
    let asker = Asker::start(client, SocketAddr::new(server, 80));
    until(SOON, "the first policy", || Ok(asker.is_silent()))?;
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for _ in 0..changes {
        asker.first.store(0, Ordering::Relaxed);
        call(&proxy, "PUT", &format!("{policies}/gate"), &gate(true))?;
        let told = asker.now();
        until(SOON, "the pod to be let in", || {
            Ok(asker.first.load(Ordering::Relaxed) > 0)
        })?;
        opened.push(asker.first.load(Ordering::Relaxed).saturating_sub(told));
        call(&proxy, "PUT", &format!("{policies}/gate"), &gate(false))?;
        let told = asker.now();
        until(SOON, "the pod to be kept out", || Ok(asker.is_silent()))?;
        closed.push(asker.last.load(Ordering::Relaxed).saturating_sub(told));
    }
    for (what, mut times) in [("let in", opened), ("kept out", closed)] {
        times.sort_unstable();
        let at = |percent: usize| Duration::from_micros(times[(times.len() - 1) * percent / 100]);
        eprintln!(
            "{what}: p50 {:?}, p90 {:?}, p99 {:?}, max {:?} after the API's answer",
            at(50),
            at(90),
            at(99),
            at(100)
        );
    }
    Ok(())
}

fn size() -> Result<[usize; 3]> {
    let Ok(said) = std::env::var("WINDLASS_CROWD") else {
        return Ok(CROWD);
    };
    let numbers: Vec<usize> = said.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let size = numbers.try_into();
    size.map_err(|_| anyhow::anyhow!("WINDLASS_CROWD=PODS,POLICIES,CHANGES"))
}

/// Its network namespace and address.
fn pod(namespace: &Namespace, name: &str) -> Result<(File, IpAddr)> {
    namespace.apply(
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
                "name": "echo", "image": "windlass.dev/echo:dev", "imagePullPolicy": "IfNotPresent", "args": ["--echo", "80"],
            }]},
        })
        .to_string(),
    )?;
    namespace.wait_ready(name)?;
    let object = namespace.get(&["pod", name])?;
    let uid = object["metadata"]["uid"].as_str().context("a uid")?;
    let ips = addresses(&object["status"]["podIPs"], |it| &it["ip"])?;
    Ok((namespace_of(uid)?, *ips.first().context("an address")?))
}

/// Asks all the time, and notes when it was answered: in microseconds since its beginning.
struct Asker {
    began: Instant,
    /// The first answer since this was zero.
    first: Arc<AtomicU64>,
    last: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Asker {
    fn start(place: File, target: SocketAddr) -> Self {
        let this = Self {
            began: Instant::now(),
            first: Arc::default(),
            last: Arc::default(),
            stop: Arc::default(),
        };
        let (began, first, last) = (this.began, this.first.clone(), this.last.clone());
        let stop = this.stop.clone();
        std::thread::spawn(move || -> Result<()> {
            setns(&place, CloneFlags::CLONE_NEWNET)?;
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(Duration::from_millis(1)))?;
            let mut answer = [0; 8];
            while !stop.load(Ordering::Relaxed) {
                // A refusal is not what is waited for.
                socket.send(b"?").ok();
                if socket.recv(&mut answer).is_ok() {
                    let now = micros(began);
                    last.store(now, Ordering::Relaxed);
                    first
                        .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
                        .ok();
                    pause(Duration::from_micros(500));
                }
            }
            Ok(())
        });
        this
    }

    fn now(&self) -> u64 {
        micros(self.began)
    }

    fn is_silent(&self) -> bool {
        let since = self.now().saturating_sub(self.last.load(Ordering::Relaxed));
        u128::from(since) > SILENCE.as_micros()
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Gone when dropped.
struct Crowd<'a> {
    proxy: &'a Proxy,
    prefix: String,
}

impl<'a> Crowd<'a> {
    /// `home`: the namespace of the real pods, which some of the policies select as well.
    fn gather(proxy: &'a Proxy, home: &str, pods: usize, policies: usize) -> Result<Self> {
        let crowd = Self {
            proxy,
            prefix: format!("crowd-{}", std::process::id()),
        };
        for group in 0..GROUPS {
            let (name, team) = (crowd.group(group), format!("t{}", group % 10));
            let labels = json!({"metadata": {"name": name, "labels": {"team": team}}});
            call(proxy, "POST", "/api/v1/namespaces", &labels)?;
            call(
                proxy,
                "POST",
                "/api/v1/nodes",
                &json!({"metadata": {"name": name}}),
            )?;
            let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
            until(SOON, "the default ServiceAccount", || {
                Ok(proxy.get(&account)?.status == 200)
            })?;
        }
        in_parallel(pods, |index| crowd.create_pod(index))?;
        in_parallel(policies, |index| {
            let namespace = match index % 10 {
                0 => home.to_owned(),
                _ => crowd.group(index % GROUPS),
            };
            let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies");
            call(proxy, "POST", &path, &policy(index)).map(drop)
        })?;
        Ok(crowd)
    }

    fn group(&self, number: usize) -> String {
        format!("{}-{number}", self.prefix)
    }

    fn create_pod(&self, index: usize) -> Result<()> {
        let (group, name) = (self.group(index % GROUPS), format!("pod-{index}"));
        let path = format!("/api/v1/namespaces/{group}/pods");
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": format!("a{}", index / GROUPS % 100)}},
            "spec": {
                "nodeName": group, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "none", "image": "none"}],
            },
        });
        call(self.proxy, "POST", &path, &pod)?;
        let ip = Ipv4Addr::new(10, 245, (index / 250) as u8, (index % 250 + 1) as u8);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        call(
            self.proxy,
            "PATCH",
            &format!("{path}/{name}/status"),
            &status,
        )
        .map(drop)
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        for group in 0..GROUPS {
            let name = self.group(group);
            for path in [
                format!("/api/v1/nodes/{name}"),
                format!("/api/v1/namespaces/{name}"),
            ] {
                call(self.proxy, "DELETE", &path, &Value::Null).ok();
            }
        }
    }
}

/// Each another one, with peers of every kind.
fn policy(index: usize) -> Value {
    let peers = match index % 3 {
        0 => json!([{"podSelector": {"matchLabels": {"app": format!("a{}", index % 100)}}}]),
        1 => json!([{"namespaceSelector": {"matchLabels": {"team": format!("t{}", index % 10)}}}]),
        _ => json!([{"ipBlock": {"cidr": format!("10.245.{}.0/24", index % 250)}}]),
    };
    let ports = json!([{"port": 1_000 + index, "endPort": 1_003 + index}]);
    let labels = match index % 10 {
        0 => json!({}),
        _ => json!({"matchLabels": {"app": format!("a{}", index % 100)}}),
    };
    json!({
        "metadata": {"name": format!("policy-{index}")},
        "spec": {"podSelector": labels, "policyTypes": ["Ingress"], "ingress": [{"from": peers, "ports": ports}]},
    })
}

fn in_parallel(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|first| scope.spawn(move || (first..count).step_by(WRITERS).try_for_each(work)))
            .collect();
        writers.into_iter().try_for_each(|writer| {
            writer
                .join()
                .map_err(|_| anyhow::anyhow!("a writer panicked"))?
        })
    })
}

fn call(proxy: &Proxy, method: &str, path: &str, body: &Value) -> Result<Value> {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let response = proxy.request(method, path, &[("Content-Type", kind)], body.as_bytes())?;
    let text = response.text();
    ensure!(
        (200..300).contains(&response.status),
        "{method} {path}: {text}"
    );
    response.json()
}
