//! `/metrics/cadvisor`: containers' usage under the names that dashboards have had for years.
//!
//! Upstream embeds cAdvisor for this; here the names are given to what the runtime counts, so
//! only metrics that the runtime has are served.

use super::ContainerUsage;
use super::resource::{Text, escape, milliseconds};

type Column = (
    &'static str,
    &'static str,
    &'static str,
    fn(&ContainerUsage) -> Option<f64>,
);

const COLUMNS: &[Column] = &[
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        |one| Some(one.cpu_nanoseconds as f64 / 1e9),
    ),
    (
        "container_fs_usage_bytes",
        "gauge",
        "Number of bytes that are consumed by the container on this filesystem.",
        |one| one.writable_bytes.map(|bytes| bytes as f64),
    ),
    (
        "container_memory_failures_total",
        "counter",
        "Cumulative count of memory allocation failures.",
        |one| Some(one.major_page_faults as f64),
    ),
    (
        "container_memory_rss",
        "gauge",
        "Size of RSS in bytes.",
        |one| Some(one.rss_bytes as f64),
    ),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed.",
        |one| Some(one.usage_bytes as f64),
    ),
    (
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set in bytes.",
        |one| Some(one.working_set_bytes as f64),
    ),
];

pub(super) fn render(containers: &[ContainerUsage]) -> String {
    let mut text = Text::default();
    for (name, kind, help, value) in COLUMNS {
        text.head(name, kind, help);
        for one in containers {
            if let Some(value) = value(one) {
                text.line(&labels(name, one), value, milliseconds(one.at));
            }
        }
    }
    text.into_text()
}

fn labels(metric: &str, one: &ContainerUsage) -> String {
    let failures = match metric {
        "container_memory_failures_total" => r#",failure_type="pgmajfault",scope="container""#,
        _ => "",
    };
    format!(
        "{{container=\"{}\"{failures},namespace=\"{}\",pod=\"{}\"}}",
        escape(&one.name),
        escape(&one.namespace),
        escape(&one.pod)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashboards_find_what_they_look_for() {
        let usage = ContainerUsage {
            namespace: "default".into(),
            pod: "web-0".into(),
            name: "web".into(),
            at: 2_000_000,
            cpu_nanoseconds: 2_500_000_000,
            major_page_faults: 7,
            ..Default::default()
        };
        let text = render(&[usage]);
        for line in [
            r#"container_cpu_usage_seconds_total{container="web",namespace="default",pod="web-0"} 2.5 2"#,
            r#"container_memory_failures_total{container="web",failure_type="pgmajfault",scope="container",namespace="default",pod="web-0"} 7 2"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("container_fs_usage_bytes{"),
            "not read, not told"
        );
    }
}
