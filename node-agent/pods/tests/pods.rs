//! Pods through a real containerd, from the object to the process and back to the status.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

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
use support::api::Api;
use support::containerd::{BUSYBOX, Containerd};
use tokio_util::sync::CancellationToken;
use windlass_pods::{Config, EndpointDrain, Parts, Pods, Recorder};
use windlass_volumes::NodeFacts;

#[derive(Default)]
struct Drained(Mutex<Vec<Vec<IpAddr>>>);

#[async_trait]
impl EndpointDrain for Drained {
    async fn wait_until_unreferenced(&self, ips: &[IpAddr], _: Instant) {
        self.0.lock().push(ips.to_vec());
    }
}

struct Node {
    api: Api,
    containerd: Containerd,
    pods: Option<(Pods, CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl Node {
    async fn start() -> Option<Self> {
        let containerd = Containerd::start().await?;
        let mut node = Self {
            api: Api::new(),
            containerd,
            pods: None,
        };
        node.start_agent();
        Some(node)
    }

    fn config(&self) -> Config {
        Config {
            node: NodeFacts {
                name: "n1".into(),
                ips: vec!["127.0.0.1".into()],
                allocatable: Default::default(),
            },
            memory_capacity: 8 << 30,
            state_dir: self.containerd.path().join("agent"),
            // Whoever shares a root takes the other's pods for unknown ones.
            cgroup_root: format!("/{}", self.containerd.name()),
            cgroup_mount: "/sys/fs/cgroup".into(),
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            log_max_bytes: 100 << 10,
            log_max_files: 3,
        }
    }

    fn start_agent(&mut self) {
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

    async fn stop_agent(&mut self) {
        let Some((_, stop, task)) = self.pods.take() else {
            return;
        };
        stop.cancel();
        task.await.unwrap();
    }

    fn create(&self, name: &str, mut spec: Value) {
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

    async fn wait(&self, name: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
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

    async fn gone(&self, name: &str) {
        self.wait(name, "goes", Value::is_null).await;
    }

    async fn delete(&self, name: &str) {
        if self.api.get("pods", name).is_some() {
            self.api.mark_deleted(name, 1);
            self.gone(name).await;
        }
    }

    fn events(&self, name: &str) -> Vec<String> {
        let events = self.api.list("events").into_iter();
        events
            .filter(|event| event["involvedObject"]["name"] == name)
            .map(|event| {
                let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
                format!("{} {}", text("reason"), text("message"))
            })
            .collect()
    }

    fn log(&self, pod: &Value, container: &str, attempt: u32) -> String {
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
    fn kill_container(&self, name: &str) {
        let pod = self.api.get("pods", name).unwrap();
        let id = state(&pod, "c")["containerID"].as_str().unwrap().to_owned();
        let id = id.trim_start_matches("containerd://");
        let tasks = self.containerd.ctr(&["tasks", "ls"]);
        let line = tasks.lines().find(|line| line.starts_with(id)).unwrap();
        let pid: i32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    async fn end(mut self) {
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

async fn eventually<F: Future<Output = bool>>(check: impl Fn() -> F) -> bool {
    for _ in 0..1500 {
        if check().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn state<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let found = statuses.and_then(|all| all.iter().find(|status| status["name"] == container));
    found.unwrap_or(&Value::Null)
}

fn sh(script: &str) -> Value {
    json!(["/bin/sh", "-c", script])
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_live_from_their_object_to_their_deletion() {
    let Some(mut node) = Node::start().await else {
        return;
    };

    // --- environment, volumes, last words, order of init containers ---
    node.api.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "conf", "namespace": "default"}, "data": {"color": "blue"}}),
    );
    node.create("full", json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 5,
        "volumes": [
            {"name": "work", "emptyDir": {}},
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ],
        "initContainers": [{
            "name": "init", "image": BUSYBOX, "command": sh("echo from-init > /work/file"),
            "volumeMounts": [{"name": "work", "mountPath": "/work"}],
        }],
        "containers": [{
            "name": "main",
            "command": sh("cat /work/file; cat /conf/color; echo; cat /token/token; echo; env; id -u; hostname; \
                           trap 'echo bye > /dev/termination-log; exit 0' TERM; \
                           while true; do sleep 0.1; done"),
            "env": [
                {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "color"}}},
                {"name": "GREETING", "value": "hello $(COLOR)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "securityContext": {"runAsUser": 1234},
            "readinessProbe": {"exec": {"command": ["/bin/test", "-e", "/work/file"]}, "periodSeconds": 1},
            "volumeMounts": [
                {"name": "work", "mountPath": "/work"},
                {"name": "conf", "mountPath": "/conf"},
                {"name": "token", "mountPath": "/token"},
            ],
        }],
    }));
    let begun = Instant::now();
    let pod = node.wait("full", "becomes ready", is_ready).await;
    eprintln!("ready after {:?}", begun.elapsed());
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    assert_eq!(
        pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    let everything = eventually(async || node.log(&pod, "main", 0).contains(" 1234\n")).await;
    let log = node.log(&pod, "main", 0);
    assert!(everything, "{log}");
    for line in [
        "from-init",
        "blue",
        "token-of-default",
        "GREETING=hello blue",
        "IP=127.0.0.1",
        "1234",
    ] {
        assert!(
            log.lines().any(|found| found.ends_with(line)),
            "{line} is not in\n{log}"
        );
    }

    // --- a changed ConfigMap reaches the running pod ---
    node.api.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "conf", "namespace": "default"}, "data": {"color": "green"}}),
    );
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let file = node
        .config()
        .state_dir
        .join("pods")
        .join(uid)
        .join("volumes/kubernetes.io~configmap/conf/color");
    assert!(eventually(async || fs::read_to_string(&file).unwrap_or_default() == "green").await);

    // --- the agent goes away and comes back: the pod runs on and is taken over ---
    let id = state(&pod, "main")["containerID"].clone();
    node.stop_agent().await;
    node.start_agent();
    let (pods, ..) = node.pods.as_ref().unwrap();
    let pods = pods.clone();
    assert!(
        eventually(async || pods
            .find("default", "full")
            .is_some_and(|view| view.container(None).is_some()))
        .await
    );
    let adopted = node.wait("full", "stays ready", is_ready).await;
    assert_eq!(state(&adopted, "main")["containerID"], id);
    assert_eq!(state(&adopted, "main")["restartCount"], 0);

    // --- graceful deletion: the signal arrives, the last words are read, nothing is left ---
    node.api.mark_deleted("full", 30);
    let begun = Instant::now();
    node.gone("full").await;
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "the container left on its own"
    );
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_end_are_restarted_as_their_policy_says() {
    let Some(node) = Node::start().await else {
        return;
    };
    node.create(
        "job",
        json!({"restartPolicy": "Never", "containers": [
            {"name": "ok", "command": sh("echo done > /dev/termination-log")},
            {"name": "bad", "command": sh("echo oops; exit 3"),
             "terminationMessagePolicy": "FallbackToLogsOnError"},
        ]}),
    );
    node.create(
        "loop",
        json!({"restartPolicy": "Always", "containers": [
            {"name": "c", "command": sh("exit 1")},
        ]}),
    );
    node.create(
        "absent",
        json!({"containers": [
            {"name": "c", "image": "localhost:1/none:1", "command": ["x"]},
        ]}),
    );
    node.create(
        "unset",
        json!({"containers": [{"name": "c", "command": sh("sleep 1000"), "env": [
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}},
        ]}]}),
    );
    node.create(
        "sick",
        json!({"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "command": sh("sleep 1000"), "livenessProbe": {
                "exec": {"command": ["/bin/false"]}, "periodSeconds": 1, "failureThreshold": 2}},
        ]}),
    );

    node.create(
        "chatty",
        json!({"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "command": sh("i=0; while true; do i=$((i+1)); echo line $i; done")},
        ]}),
    );

    let job = node
        .wait("job", "fails", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(
        state(&job, "ok")["state"]["terminated"]["message"],
        "done\n"
    );
    assert_eq!(state(&job, "bad")["state"]["terminated"]["exitCode"], 3);
    assert_eq!(
        state(&job, "bad")["state"]["terminated"]["message"],
        "oops\n"
    );

    let looping = |pod: &Value| state(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = node.wait("loop", "backs off", looping).await;
    assert_eq!(
        state(&pod, "c")["restartCount"],
        1,
        "the first restart is immediate"
    );
    assert_eq!(state(&pod, "c")["lastState"]["terminated"]["exitCode"], 1);
    let pod = node
        .wait("loop", "restarts after 10 s", |pod| {
            state(pod, "c")["restartCount"] == 2
        })
        .await;
    let ended = state(&pod, "c")["lastState"]["terminated"]["finishedAt"].clone();
    assert!(ended.is_string());

    let backs_off =
        |pod: &Value| state(pod, "c")["state"]["waiting"]["reason"] == "ImagePullBackOff";
    node.wait("absent", "backs off", backs_off).await;
    let told = node.events("absent");
    for event in [
        "Pulling",
        "Failed Failed to pull image",
        "Failed Error: ErrImagePull",
        "BackOff",
    ] {
        assert!(
            told.iter().any(|it| it.starts_with(event)),
            "{event}: {told:#?}"
        );
    }

    let refused =
        |pod: &Value| state(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError";
    let pod = node.wait("unset", "is refused", refused).await;
    assert_eq!(
        state(&pod, "c")["state"]["waiting"]["message"],
        "configmap \"late\" not found"
    );
    node.api.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "late", "namespace": "default"}, "data": {"k": "v"}}),
    );
    node.wait("unset", "starts when the object is there", is_ready)
        .await;

    let pod = node
        .wait("sick", "is restarted", |pod| {
            state(pod, "c")["restartCount"].as_i64() >= Some(1)
        })
        .await;
    assert_eq!(state(&pod, "c")["lastState"]["terminated"]["exitCode"], 137);
    let told = node.events("sick");
    assert!(
        told.iter()
            .any(|it| it.starts_with("Unhealthy Liveness probe failed")),
        "{told:#?}"
    );
    assert!(
        told.iter()
            .any(|it| it.contains("failed liveness probe, will be restarted")),
        "{told:#?}"
    );

    // --- a log that grows is put aside, and the oldest parts go ---
    let pod = node.api.get("pods", "chatty").unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let logs = node
        .config()
        .state_dir
        .join(format!("log/pods/default_chatty_{uid}/c"));
    let count = || fs::read_dir(&logs).map_or(0, Iterator::count);
    let rotated =
        eventually(async || count() == 3).await || eventually(async || count() == 3).await;
    assert!(rotated, "{} files in {}", count(), logs.display());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_shows_at_once_and_a_dead_runtime_or_api_is_survived() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.create(
        "web",
        json!({"restartPolicy": "Always", "containers": [
            {"name": "c", "command": sh("sleep 100000")},
        ]}),
    );
    node.wait("web", "becomes ready", is_ready).await;

    // --- an exit is in the status within moments ---
    let begun = Instant::now();
    node.kill_container("web");
    node.wait("web", "is not ready any more", |pod| !is_ready(pod))
        .await;
    let unready = begun.elapsed();
    let ended = |pod: &Value| {
        state(pod, "c")["state"]["terminated"].is_object() || state(pod, "c")["restartCount"] == 1
    };
    node.wait("web", "shows the exit", ended).await;
    let took = begun.elapsed();
    eprintln!("not ready after {unready:?}, exit shown after {took:?}");
    // Leftovers are looked for every ten seconds: sooner means that an event said it, on a busy machine as well.
    assert!(
        took < Duration::from_secs(5),
        "by an event, not by a list: {took:?}"
    );
    let pod = node
        .wait("web", "runs again", |pod| {
            state(pod, "c")["restartCount"] == 1 && is_ready(pod)
        })
        .await;
    let id = state(&pod, "c")["containerID"].clone();

    // --- containerd is killed: the container runs on, and what ends meanwhile is found ---
    node.containerd.kill();
    tokio::time::sleep(Duration::from_millis(700)).await;
    node.containerd.launch().await;
    node.create(
        "after",
        json!({"containers": [{"name": "c", "command": sh("sleep 100000")}]}),
    );
    node.wait("after", "becomes ready", is_ready).await;
    let pod = node.api.get("pods", "web").unwrap();
    assert_eq!(state(&pod, "c")["containerID"], id);
    assert!(is_ready(&pod));

    // --- and exits are heard again: by an event, or, where the runtime has lost it, by the next list ---
    node.kill_container("after");
    node.wait("after", "is not ready any more", |pod| !is_ready(pod))
        .await;

    // --- the API is away: exits are remembered and told when it is back ---
    node.api.set_down(true);
    node.kill_container("web");
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.api.set_down(false);
    node.wait("web", "tells the second end", |pod| {
        state(pod, "c")["lastState"]["terminated"]["exitCode"] == 137
    })
    .await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_hooks_and_unknown_pods_are_handled() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.create("side", json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 3,
        "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
        "initContainers": [{
            "name": "proxy", "image": BUSYBOX, "restartPolicy": "Always",
            "command": sh("touch /v/proxy; trap 'exit 0' TERM; while true; do sleep 0.1; done"),
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "startupProbe": {"exec": {"command": ["/bin/test", "-e", "/v/proxy"]}, "periodSeconds": 1},
        }],
        "containers": [{
            "name": "main", "command": sh("test -e /v/proxy && while ! test -e /v/hook; do sleep 0.1; done"),
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "lifecycle": {"postStart": {"exec": {"command": ["/bin/touch", "/v/hook"]}}},
        }],
    }));
    let pod = node
        .wait("side", "succeeds", |pod| {
            pod["status"]["phase"] == "Succeeded"
        })
        .await;
    assert!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"].is_object());

    // --- a pod that was removed while the agent was away is stopped and removed ---
    node.create(
        "lost",
        json!({"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "command": sh("sleep 100000")}]}),
    );
    node.wait("lost", "becomes ready", is_ready).await;
    node.stop_agent().await;
    node.api.remove("pods", "lost");
    node.start_agent();
    let runtime = node.containerd.runtime.clone();
    let gone = eventually(async || {
        let sandboxes = runtime
            .list_pod_sandboxes(&[("io.kubernetes.pod.name", "lost")])
            .await;
        sandboxes.unwrap().is_empty()
    });
    assert!(gone.await, "the unknown pod still runs");
    node.end().await;
}
