//! `/metrics/resource`: the few numbers by which metrics-server and autoscalers decide, Prometheus text.

use std::fmt::Write;

use serde_json::Value;

use super::ContainerUsage;
use super::node::NodeUsage;

pub(super) fn render(
    node: &NodeUsage,
    containers: Option<&[ContainerUsage]>,
    pods: &[Value],
) -> String {
    let mut text = Text::default();
    let all = containers.unwrap_or_default();
    text.head(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time of a container in core-seconds",
    );
    for one in all {
        text.line(
            &labels(one),
            seconds(one.cpu_nanoseconds),
            milliseconds(one.at),
        );
    }
    text.head(
        "container_memory_working_set_bytes",
        "gauge",
        "Working set of a container in bytes",
    );
    for one in all {
        text.line(
            &labels(one),
            one.working_set_bytes as f64,
            milliseconds(one.at),
        );
    }
    text.head(
        "container_start_time_seconds",
        "gauge",
        "Start time of a container in unix seconds",
    );
    for one in all {
        if let Some(started) = started(one, pods) {
            text.line(&labels(one), started, milliseconds(one.at));
        }
    }
    text.head(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time of the node in core-seconds",
    );
    text.line("", seconds(node.cpu_nanoseconds), milliseconds(node.at));
    text.head(
        "node_memory_working_set_bytes",
        "gauge",
        "Working set of the node in bytes",
    );
    text.line("", node.working_set_bytes as f64, milliseconds(node.at));
    text.head(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time of a pod in core-seconds",
    );
    for of_pod in all.chunk_by(|a, b| a.uid == b.uid && a.pod == b.pod) {
        let used = of_pod.iter().map(|one| one.cpu_nanoseconds).sum();
        text.line(&pod_labels(&of_pod[0]), seconds(used), newest(of_pod));
    }
    text.head(
        "pod_memory_working_set_bytes",
        "gauge",
        "Working set of a pod in bytes",
    );
    for of_pod in all.chunk_by(|a, b| a.uid == b.uid && a.pod == b.pod) {
        let used: u64 = of_pod.iter().map(|one| one.working_set_bytes).sum();
        text.line(&pod_labels(&of_pod[0]), used as f64, newest(of_pod));
    }
    text.head(
        "resource_scrape_error",
        "gauge",
        "1 if the containers' usage could not be read",
    );
    let error = if containers.is_none() { 1.0 } else { 0.0 };
    text.line("", error, None);
    text.0
}

/// Prometheus text as it grows, and the metric whose lines follow.
#[derive(Default)]
pub(super) struct Text(String, &'static str);

impl Text {
    pub(super) fn into_text(self) -> String {
        self.0
    }

    pub(super) fn head(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn line(&mut self, labels: &str, value: f64, at: Option<i64>) {
        let name = self.1;
        let _ = match at {
            Some(at) => writeln!(self.0, "{name}{labels} {value} {at}"),
            None => writeln!(self.0, "{name}{labels} {value}"),
        };
    }
}

fn labels(one: &ContainerUsage) -> String {
    let (name, namespace, pod) = (escape(&one.name), escape(&one.namespace), escape(&one.pod));
    format!("{{container=\"{name}\",namespace=\"{namespace}\",pod=\"{pod}\"}}")
}

fn pod_labels(one: &ContainerUsage) -> String {
    format!(
        "{{namespace=\"{}\",pod=\"{}\"}}",
        escape(&one.namespace),
        escape(&one.pod)
    )
}

/// Names cannot hold these; a runtime could.
pub(super) fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

pub(super) fn milliseconds(at: i64) -> Option<i64> {
    (at > 0).then_some(at / 1_000_000)
}

fn newest(containers: &[ContainerUsage]) -> Option<i64> {
    containers
        .iter()
        .map(|one| one.at)
        .max()
        .and_then(milliseconds)
}

fn started(one: &ContainerUsage, pods: &[Value]) -> Option<f64> {
    let pod = pods
        .iter()
        .find(|pod| pod["metadata"]["uid"] == one.uid.as_str())?;
    let statuses = [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ];
    let mut statuses = statuses
        .iter()
        .filter_map(|kind| pod["status"][kind].as_array())
        .flatten();
    let status = statuses.find(|status| status["name"] == one.name.as_str())?;
    let started = status["state"]["running"]["startedAt"].as_str()?;
    Some(started.parse::<jiff::Timestamp>().ok()?.as_second() as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_text_has_upstreams_names_and_labels() {
        let usage = ContainerUsage {
            namespace: "default".into(),
            pod: "web-0".into(),
            uid: "u".into(),
            name: "web".into(),
            at: 1_767_323_045_000_000_000,
            cpu_nanoseconds: 1_500_000_000,
            working_set_bytes: 4_096,
            ..Default::default()
        };
        let pods = [
            json!({"metadata": {"uid": "u"}, "status": {"containerStatuses": [
            {"name": "web", "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}]}}),
        ];
        let text = render(&NodeUsage::default(), Some(&[usage]), &pods);
        let labels = r#"{container="web",namespace="default",pod="web-0"}"#;
        for line in [
            format!("container_cpu_usage_seconds_total{labels} 1.5 1767323045000"),
            format!("container_memory_working_set_bytes{labels} 4096 1767323045000"),
            format!("container_start_time_seconds{labels} 1767323045 1767323045000"),
            r#"pod_cpu_usage_seconds_total{namespace="default",pod="web-0"} 1.5 1767323045000"#
                .into(),
            "# TYPE node_memory_working_set_bytes gauge".into(),
            "resource_scrape_error 0".into(),
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert!(render(&NodeUsage::default(), None, &[]).ends_with("resource_scrape_error 1\n"));
    }
}
