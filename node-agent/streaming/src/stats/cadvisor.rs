//! `/metrics/cadvisor`: containers' usage under the names that dashboards have had for years.
//!
//! Upstream embeds cAdvisor for this; here the names are given to what the runtime counts, so
//! only metrics that the runtime has are served.

use super::ContainerUsage;
use super::network::{Interface, PodNetwork};
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

type NetworkColumn = (&'static str, &'static str, fn(&Interface) -> Option<u64>);

const NETWORK_COLUMNS: &[NetworkColumn] = &[
    (
        "container_network_receive_bytes_total",
        "Cumulative count of bytes received",
        |one| one.received,
    ),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |one| one.receive_errors,
    ),
    (
        "container_network_transmit_bytes_total",
        "Cumulative count of bytes transmitted",
        |one| one.sent,
    ),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |one| one.send_errors,
    ),
];

pub(super) fn render(containers: &[ContainerUsage], networks: &[PodNetwork]) -> String {
    let mut text = Text::default();
    for (name, kind, help, value) in COLUMNS {
        text.head(name, kind, help);
        for one in containers {
            if let Some(value) = value(one) {
                text.line(&labels(name, one), value, milliseconds(one.at));
            }
        }
    }
    for (name, help, value) in NETWORK_COLUMNS {
        text.head(name, "counter", help);
        for network in networks {
            for interface in &network.interfaces {
                let Some(value) = value(interface) else {
                    continue;
                };
                let labels = format!(
                    "{{interface=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
                    escape(&interface.name),
                    escape(&network.namespace),
                    escape(&network.pod)
                );
                text.line(&labels, value as f64, milliseconds(network.at));
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
        let network = PodNetwork {
            namespace: "default".into(),
            pod: "web-0".into(),
            uid: "u1".into(),
            at: 2_000_000,
            interfaces: vec![Interface {
                name: "eth0".into(),
                received: Some(9),
                ..Default::default()
            }],
        };
        let text = render(&[usage], &[network]);
        for line in [
            r#"container_cpu_usage_seconds_total{container="web",namespace="default",pod="web-0"} 2.5 2"#,
            r#"container_memory_failures_total{container="web",failure_type="pgmajfault",scope="container",namespace="default",pod="web-0"} 7 2"#,
            r#"container_network_receive_bytes_total{interface="eth0",namespace="default",pod="web-0"} 9 2"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("container_fs_usage_bytes{"),
            "not read, not told"
        );
    }
}
