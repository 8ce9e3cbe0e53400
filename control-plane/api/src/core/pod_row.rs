//! How a Pod is shown by `kubectl get`: READY, STATUS and RESTARTS sum up its containers.

use serde_json::Value;

use crate::table::{age, cells, has_condition, or, since};
use crate::tree::Tree;

/// READY, STATUS, RESTARTS, AGE, and for `-o wide` IP, NODE, NOMINATED NODE, READINESS GATES.
pub fn row(pod: &Value, now: i64) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, since(at, now))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = pod
        .list("status.podIPs")
        .first()
        .map_or("", |ip| ip.text("ip"));
    cells![
        format!("{}/{}", summary.ready, summary.total),
        summary.reason,
        restarts,
        age(pod, now),
        or(ip, "<none>"),
        or(pod.text("spec.nodeName"), "<none>"),
        or(pod.text("status.nominatedNodeName"), "<none>"),
        readiness_gates(pod),
    ]
}

#[derive(Default)]
struct Summary<'a> {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// RFC 3339 in UTC, so the greatest is the latest.
    last_restart: Option<&'a str>,
}

impl<'a> Summary<'a> {
    fn of(pod: &'a Value) -> Self {
        let phase = pod.text("status.phase");
        let is_sidecar = |name: &str| {
            pod.list("spec.initContainers")
                .iter()
                .any(|c| c.text("name") == name && c.text("restartPolicy") == "Always")
        };
        let sidecars = pod
            .list("spec.initContainers")
            .iter()
            .filter(|c| c.text("restartPolicy") == "Always");
        let mut summary = Self {
            reason: or(pod.text("status.reason"), phase).to_owned(),
            total: pod.list("spec.containers").len() + sidecars.count(),
            ..Self::default()
        };
        let gated = pod
            .list("status.conditions")
            .iter()
            .any(|c| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated");
        if gated {
            summary.reason = "SchedulingGated".to_owned();
        }

        // Restarts of sidecars count for as long as the pod lives, those of other init containers only while
        // it initialises.
        let mut of_sidecars = Self::default();
        let mut initializing = false;
        for (i, status) in pod.list("status.initContainerStatuses").iter().enumerate() {
            summary.count_restarts(status);
            let sidecar = is_sidecar(status.text("name"));
            if sidecar {
                of_sidecars.count_restarts(status);
            }
            let terminated = status.at("state.terminated");
            if !terminated.is_null() && terminated.int("exitCode").unwrap_or_default() == 0 {
                continue;
            }
            if sidecar && status.flag("started") {
                summary.ready += usize::from(status.flag("ready"));
                continue;
            }
            let waiting = status.text("state.waiting.reason");
            summary.reason = if !terminated.is_null() {
                format!("Init:{}", end_of(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", pod.list("spec.initContainers").len())
            };
            initializing = true;
            break;
        }

        if !initializing || has_condition(pod, "Initialized") {
            summary.restarts = of_sidecars.restarts;
            summary.last_restart = of_sidecars.last_restart;
            summary.add_containers(pod);
        }

        if pod.has("metadata.deletionTimestamp") {
            if pod.text("status.reason") == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(phase, "Failed" | "Succeeded") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    fn count_restarts(&mut self, status: &'a Value) {
        self.restarts += status.int("restartCount").unwrap_or_default();
        let finished = status.at("lastState.terminated.finishedAt").as_str();
        self.last_restart = self.last_restart.max(finished);
    }

    fn add_containers(&mut self, pod: &'a Value) {
        let mut running = false;
        // From the last to the first, so that the first one's trouble is what is shown.
        for status in pod.list("status.containerStatuses").iter().rev() {
            self.count_restarts(status);
            let (waiting, terminated) = (
                status.text("state.waiting.reason"),
                status.at("state.terminated"),
            );
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if !terminated.is_null() {
                self.reason = end_of(terminated);
            } else if status.flag("ready") && status.has("state.running") {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = has_condition(pod, "Ready");
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

/// Why a container ended: its reason, else its signal, else its exit code.
fn end_of(terminated: &Value) -> String {
    let reason = terminated.text("reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match terminated.int("signal").unwrap_or_default() {
        0 => format!(
            "ExitCode:{}",
            terminated.int("exitCode").unwrap_or_default()
        ),
        signal => format!("Signal:{signal}"),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod.list("spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let passed = gates
        .iter()
        .filter(|gate| has_condition(pod, gate.text("conditionType")))
        .count();
    format!("{passed}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Pod (spec and status), expected READY, STATUS, RESTARTS.
    #[test]
    fn rows_sum_up_the_containers() {
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let running = |ready: bool| json!({"ready": ready, "state": {"running": {}}});
        for (spec, status, expected) in [
            (
                two.clone(),
                json!({"phase": "Pending"}),
                ["0/2", "Pending", "0"],
            ),
            (
                two.clone(),
                json!({"phase": "Running", "containerStatuses": [running(true), running(false)]}),
                ["1/2", "Running", "0"],
            ),
            (
                two.clone(),
                json!({"phase": "Pending", "containerStatuses": [
                    {"state": {"waiting": {"reason": "ImagePullBackOff"}}},
                    {"state": {"waiting": {"reason": "ContainerCreating"}}},
                ]}),
                ["0/2", "ImagePullBackOff", "0"],
            ),
            (
                two.clone(),
                json!({"phase": "Running", "containerStatuses": [
                    {"restartCount": 3, "ready": true, "state": {"running": {}},
                     "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}},
                    {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "restartCount": 1},
                ]}),
                ["1/2", "OOMKilled", "4 (5m ago)"],
            ),
            (
                two.clone(),
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                       "containerStatuses": [
                    running(true),
                    {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                ]}),
                ["1/2", "Running", "0"],
            ),
            (
                two.clone(),
                json!({"phase": "Failed", "containerStatuses": [
                    {"state": {"terminated": {"exitCode": 2}}},
                ]}),
                ["0/2", "ExitCode:2", "0"],
            ),
            (
                json!({"containers": [{}], "initContainers": [{"name": "i"}, {"name": "j"}]}),
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "j", "state": {"running": {}}},
                ]}),
                ["0/1", "Init:1/2", "0"],
            ),
            (
                json!({"containers": [{}], "initContainers": [{"name": "i"}]}),
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                ]}),
                ["0/1", "Init:CrashLoopBackOff", "2"],
            ),
            (
                json!({"containers": [{}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]}),
                json!({"phase": "Running",
                       "initContainerStatuses": [
                           {"name": "s", "started": true, "ready": true, "state": {"running": {}}},
                       ],
                       "containerStatuses": [running(true)]}),
                ["2/2", "Running", "0"],
            ),
        ] {
            let pod = json!({"metadata": {}, "spec": spec, "status": status});
            let now =
                windlass_machinery::time::parse_seconds("2026-01-01T00:05:00Z").expect("a time");
            assert_eq!(row(&pod, now)[..3], expected.map(Value::from), "{pod:#}");
        }
    }

    #[test]
    fn a_deleted_pod_is_terminating() {
        let pod = json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running"},
        });
        assert_eq!(row(&pod, 0)[1], "Terminating");
    }
}
