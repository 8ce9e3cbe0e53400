//! A node of the test's own: an API, a containerd, and the pods role between them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use windlass_pods::{Config, EndpointDrain, Parts, Pods, Recorder};
use windlass_volumes::NodeFacts;

use crate::support::api::Api;
use crate::support::containerd::{BUSYBOX, Containerd};

#[derive(Default)]
struct Drained(Mutex<Vec<Vec<IpAddr>>>);

#[async_trait]
impl EndpointDrain for Drained {
    async fn wait_until_unreferenced(&self, ips: &[IpAddr], _: Instant) {
        self.0.lock().push(ips.to_vec());
    }
}

pub(crate) struct Node {
    pub(crate) api: Api,
    pub(crate) containerd: Containerd,
    pub(crate) pods: Option<(Pods, CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl Node {
    pub(crate) async fn start() -> Option<Self> {
        let containerd = Containerd::start().await?;
        let mut node = Self {
            api: Api::new(),
            containerd,
            pods: None,
        };
        node.start_agent();
        Some(node)
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            node: NodeFacts {
                name: "n1".into(),
                ips: vec!["127.0.0.1".into()],
                allocatable: [("cpu".to_owned(), "2".parse().unwrap())].into(),
            },
            memory_capacity: 8 << 30,
            huge_pages: Default::default(),
            state_dir: self.containerd.path().join("agent"),
            root_dir: self.containerd.path().join("agent"),
            // Whoever shares a root takes the other's pods for unknown ones.
            cgroup_root: format!("/{}", self.containerd.name()),
            cgroup_mount: "/sys/fs/cgroup".into(),
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            allowed_unsafe_sysctls: Vec::new(),
            manifests: Some(self.containerd.path().join("agent/manifests")),
            eviction: Default::default(),
            image_gc: (85, 80),
            log_max_bytes: 100 << 10,
            log_max_files: 3,
        }
    }

    pub(crate) fn start_agent(&mut self) {
        let client = self.api.client();
        let (services, writer) = reflector::store::<Service>();
        let stream = watcher::watcher(kube::Api::all(client.clone()), watcher::Config::default());
        let pods = Pods::new(Parts {
            config: self.config(),
            runtime: self.containerd.runtime.clone(),
            runtime_name: "containerd".into(),
            recorder: Recorder::new(client.clone(), "n1".into()),
            client,
            services,
            drain: Arc::new(Drained::default()),
        })
        .unwrap();
        let stop = CancellationToken::new();
        let (running, stopped) = (pods.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let reflect = futures::StreamExt::for_each(
                reflector::reflector(writer, stream).default_backoff(),
                |_| std::future::ready(()),
            );
            tokio::select! {
                () = running.run(stopped) => {}
                () = reflect => {}
            }
        });
        self.pods = Some((pods, stop, task));
    }

    pub(crate) async fn stop_agent(&mut self) {
        let Some((_, stop, task)) = self.pods.take() else {
            return;
        };
        stop.cancel();
        task.await.unwrap();
    }

    /// A claim, bound to a volume with this spec.
    pub(crate) fn bind(&self, claim: &str, mut volume: Value) {
        let uid = format!("uid-of-{claim}");
        volume["claimRef"] = json!({"name": claim, "namespace": "default", "uid": uid});
        self.api.put(
            "persistentvolumes",
            json!({"apiVersion": "v1", "kind": "PersistentVolume",
                   "metadata": {"name": format!("pv-{claim}")}, "spec": volume}),
        );
        self.api.put(
            "persistentvolumeclaims",
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                   "metadata": {"name": claim, "namespace": "default", "uid": uid},
                   "spec": {"volumeName": format!("pv-{claim}")},
                   "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}),
        );
    }

    pub(crate) fn create(&self, name: &str, mut spec: Value) {
        spec["hostNetwork"] = json!(true);
        spec["nodeName"] = json!("n1");
        for container in spec["containers"].as_array_mut().unwrap() {
            container["image"] = container["image"].as_str().unwrap_or(BUSYBOX).into();
        }
        let uid = format!("{name}-{}", jiff::Timestamp::now().as_nanosecond());
        self.api.put(
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "uid": uid, "generation": 1},
                "spec": spec, "status": {"phase": "Pending"},
            }),
        );
    }

    pub(crate) async fn wait(
        &self,
        name: &str,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let pod = self.api.get("pods", name).unwrap_or_default();
            if fits(&pod) {
                return pod;
            }
            if Instant::now() > end {
                let events: Vec<String> = self.events(name);
                panic!(
                    "{name} never {what}: {:#}\n{events:#?}\n{}",
                    pod["status"],
                    self.containerd.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn gone(&self, name: &str) {
        self.wait(name, "goes", Value::is_null).await;
    }

    pub(crate) async fn delete(&self, name: &str) {
        if self.api.get("pods", name).is_some() {
            self.api.mark_deleted(name, 1);
            self.gone(name).await;
        }
    }

    pub(crate) fn events(&self, name: &str) -> Vec<String> {
        let events = self.api.list("events").into_iter();
        events
            .filter(|event| event["involvedObject"]["name"] == name)
            .map(|event| {
                let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
                format!("{} {}", text("reason"), text("message"))
            })
            .collect()
    }

    pub(crate) fn log(&self, pod: &Value, container: &str, attempt: u32) -> String {
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let name = pod["metadata"]["name"].as_str().unwrap();
        let folder = self
            .config()
            .state_dir
            .join("log/pods")
            .join(format!("default_{name}_{uid}"));
        fs::read_to_string(folder.join(container).join(format!("{attempt}.log")))
            .unwrap_or_default()
    }

    /// Kills the first process of the pod's container `c`.
    pub(crate) fn kill_container(&self, name: &str) {
        let pod = self.api.get("pods", name).unwrap();
        let id = state(&pod, "c")["containerID"].as_str().unwrap().to_owned();
        let id = id.trim_start_matches("containerd://");
        let tasks = self.containerd.ctr(&["tasks", "ls"]);
        let line = tasks.lines().find(|line| line.starts_with(id)).unwrap();
        let pid: i32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    pub(crate) async fn end(mut self) {
        for pod in self.api.list("pods") {
            self.delete(pod["metadata"]["name"].as_str().unwrap()).await;
        }
        let runtime = self.containerd.runtime.clone();
        let left =
            eventually(async || runtime.list_pod_sandboxes(&[]).await.unwrap().is_empty()).await;
        assert!(left, "sandboxes are left");
        assert_eq!(
            fs::read_dir(self.config().state_dir.join("pods"))
                .unwrap()
                .count(),
            0
        );
        self.stop_agent().await;
        let root = self.config().cgroup_root;
        windlass_pods::Cgroups::detect("/sys/fs/cgroup".as_ref(), &root)
            .unwrap()
            .remove_root()
            .await
            .unwrap();
    }
}

pub(crate) async fn eventually<F: Future<Output = bool>>(check: impl Fn() -> F) -> bool {
    for _ in 0..1500 {
        if check().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

pub(crate) fn state<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let found = statuses.and_then(|all| all.iter().find(|status| status["name"] == container));
    found.unwrap_or(&Value::Null)
}

pub(crate) fn sh(script: &str) -> Value {
    json!(["/bin/sh", "-c", script])
}
