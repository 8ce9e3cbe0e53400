//! What users have running: some of it is hurt on purpose, some of it only stands by.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use windlass_tests::eventually::pause;
use windlass_tests::namespace::Namespace;

/// Never hurt itself: the witnesses' connections end there, and one of them begins there.
pub(super) const STEADY: &str = "steady";
pub(super) const CLIENT: &str = "client";
/// Hurt: pods, containers and shims of these.
pub(super) const WEB: &str = "web";
pub(super) const DATABASE: &str = "db";
/// Hurt too, and under a policy.
pub(super) const VAULT: &str = "vault";
/// Hurt too, with a volume.
pub(super) const JOURNAL: &str = "journal";
pub(super) const IDENTITIES: u32 = 2;
const COMPLETIONS: i64 = 6;
const INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Workload<'a> {
    pub(super) namespace: &'a Namespace,
    replicas: u32,
    /// Restarts that were to be: that we have brought about, or that a start which was cut short was. By the pod's uid.
    kills: BTreeMap<String, u64>,
}

impl<'a> Workload<'a> {
    pub(super) fn deploy(namespace: &'a Namespace) -> Result<Self> {
        namespace.apply(&manifest())?;
        Ok(Self {
            namespace,
            replicas: 3,
            kills: BTreeMap::new(),
        })
    }

    pub(super) fn scale(&mut self, replicas: u32) -> Result<()> {
        self.replicas = replicas;
        let replicas = format!("--replicas={replicas}");
        self.namespace
            .run(&["scale", "deployment", WEB, &replicas])?;
        Ok(())
    }

    /// The pod's container is about to be killed, and shall be started again exactly once for it.
    pub(super) fn expect_restart(&mut self, pod_uid: &str) {
        *self.kills.entry(pod_uid.to_owned()).or_default() += 1;
    }

    pub(super) fn wait_until_settled(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let differs = match self.differences() {
                Ok(None) => return Ok(()),
                Ok(Some(difference)) => difference,
                // The API server may be away.
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                let pods = self.namespace.run(&["get", "pods", "-o", "wide"]);
                let events = self
                    .namespace
                    .run(&["get", "events", "--sort-by=.lastTimestamp"]);
                bail!("not settled within {limit:?}: {differs}\n{pods:?}\n{events:?}");
            }
            pause(INTERVAL);
        }
    }

    pub(super) fn wait_until_the_job_is_done(&self, limit: Duration) -> Result<()> {
        let done = format!("--timeout={}s", limit.as_secs());
        let wait = ["wait", "job/count", "--for=condition=Complete", &done];
        self.namespace.run(&wait)?;
        let job = self.namespace.get(&["job", "count"])?;
        let pods = self.namespace.get(&["pods", "-l", "app=count"])?;
        let succeeded = items(&pods)?
            .filter(|pod| pod["status"]["phase"] == "Succeeded")
            .count();
        ensure!(
            job["status"]["succeeded"] == COMPLETIONS && succeeded as i64 == COMPLETIONS,
            "{COMPLETIONS} completions were asked for: {} counted, {succeeded} pods succeeded",
            job["status"]["succeeded"]
        );
        Ok(())
    }

    /// What is not as it shall be; nothing when all is.
    fn differences(&mut self) -> Result<Option<String>> {
        let pods = self.namespace.get(&["pods"])?;
        let mut addresses = BTreeMap::new();
        for (app, wanted) in [
            (STEADY, 2),
            (CLIENT, 1),
            (WEB, self.replicas),
            (VAULT, 2),
            (DATABASE, IDENTITIES),
            (JOURNAL, 1),
        ] {
            let mut ready = BTreeSet::new();
            for pod in items(&pods)?.filter(|pod| pod["metadata"]["labels"]["app"] == app) {
                let name = text(&pod["metadata"]["name"]);
                if !pod["metadata"]["deletionTimestamp"].is_null() {
                    return Ok(Some(format!("{name} is still being deleted")));
                }
                if !is_ready(pod) {
                    return Ok(Some(format!("{name} is not ready: {}", pod["status"])));
                }
                let ip = text(&pod["status"]["podIP"]);
                if let Some(other) = addresses.insert(ip.to_owned(), name) {
                    bail!("{name} and {other} both have {ip}");
                }
                if let Some(difference) = self.wrong_restarts(pod) {
                    return Ok(Some(difference));
                }
                ready.insert(ip.to_owned());
            }
            if ready.len() != wanted as usize {
                return Ok(Some(format!("{app}: {} pods, not {wanted}", ready.len())));
            }
            let slices = self.namespace.get(&[
                "endpointslices",
                "-l",
                &format!("kubernetes.io/service-name={app}"),
            ])?;
            let endpoints: BTreeSet<String> = items(&slices)?
                .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
                .filter(|endpoint| endpoint["conditions"]["ready"] == true)
                .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
                .collect();
            let has_service = ![CLIENT, JOURNAL].contains(&app);
            if has_service && endpoints != ready {
                let what = format!("{app}: endpoints {endpoints:?}, pods {ready:?}");
                return Ok(Some(what));
            }
        }
        Ok(None)
    }

    fn wrong_restarts(&mut self, pod: &Value) -> Option<String> {
        let name = text(&pod["metadata"]["name"]);
        let uid = text(&pod["metadata"]["uid"]).to_owned();
        let expected = self.kills.get(&uid).copied().unwrap_or_default();
        let container = &pod["status"]["containerStatuses"][0];
        let restarts = container["restartCount"].as_u64().unwrap_or_default();
        // A start that the death of the agent or the runtime cut short is one more, as it is with a kubelet: it failed,
        // or nothing ran that could have ended.
        let last = &container["lastState"]["terminated"];
        let cut_short = last.is_null() || last["reason"] == "StartError";
        if restarts < expected || (restarts > expected && !cut_short) {
            return Some(format!(
                "{name}: {restarts} restarts after {expected} kills, last: {last}"
            ));
        }
        // The next kill will hide why there is one more.
        self.kills.insert(uid, restarts);
        None
    }
}

/// The exit code of the container's life before this one.
pub(super) fn last_exit_code(pod: &Value) -> Option<i64> {
    pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"].as_i64()
}

pub(super) fn items(list: &Value) -> Result<impl Iterator<Item = &Value>> {
    Ok(list["items"].as_array().context("a list")?.iter())
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn manifest() -> String {
    let echo = r#"
      terminationGracePeriodSeconds: 5
      containers:
        - name: echo
          image: windlass.dev/echo:dev
          imagePullPolicy: IfNotPresent
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
"#;
    let deployment = |name: &str, replicas: u32| {
        format!(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:{echo}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: NodePort
  selector: {{app: {name}}}
  ports:
    - {{name: http, port: 80, targetPort: 8080}}
    - {{name: echo, port: 9000, targetPort: 9000}}
    - {{name: datagrams, port: 9000, targetPort: 9000, protocol: UDP}}
---"#
        )
    };
    let (steady, web) = (deployment(STEADY, 2), deployment(WEB, 3));
    let vault = deployment(VAULT, 2);
    format!(
        r#"{steady}{web}{vault}
apiVersion: v1
kind: Service
metadata: {{name: {DATABASE}}}
spec:
  clusterIP: None
  selector: {{app: {DATABASE}}}
  ports: [{{name: http, port: 8080}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {DATABASE}}}
spec:
  serviceName: {DATABASE}
  replicas: {IDENTITIES}
  selector: {{matchLabels: {{app: {DATABASE}}}}}
  template:
    metadata: {{labels: {{app: {DATABASE}}}}}
    spec:{echo}
---
apiVersion: v1
kind: Pod
metadata: {{name: {CLIENT}, labels: {{app: {CLIENT}}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: client
      image: windlass.dev/busybox:dev
      imagePullPolicy: IfNotPresent
      command: [sleep, "100000"]
---
apiVersion: batch/v1
kind: Job
metadata: {{name: count}}
spec:
  completions: {COMPLETIONS}
  completionMode: Indexed
  parallelism: 2
  backoffLimit: 50
  template:
    metadata: {{labels: {{app: count}}}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers:
        - name: count
          image: windlass.dev/busybox:dev
          imagePullPolicy: IfNotPresent
          command: [sleep, "4"]
"#
    )
}
