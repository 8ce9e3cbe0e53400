//! What a node counts, in Prometheus' text: `/metrics/resource`, which kubelets serve for metrics-server.

use std::collections::HashMap;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Container {
    pub namespace: String,
    pub pod: String,
    pub name: String,
}

/// Counters at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Point {
    /// Unix time, in milliseconds.
    pub at: i64,
    pub cpu_seconds: f64,
    pub memory_bytes: f64,
    /// When what is counted began; Unix time, in milliseconds.
    pub started: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Reading {
    pub node: Option<Point>,
    pub containers: HashMap<Container, Point>,
}

impl Reading {
    /// Reads what it knows, and leaves out the rest.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut reading = Self::default();
        for line in String::from_utf8_lossy(text).lines() {
            reading.take(line);
        }
        reading
    }

    /// A line: `name{label="value",…} value milliseconds`.
    fn take(&mut self, line: &str) -> Option<()> {
        let (name, rest) = line.split_at(line.find(['{', ' '])?);
        let (labels, values) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest),
        };
        let (of, what) = name.split_once('_')?;
        let mut values = values.split_ascii_whitespace();
        let value: f64 = values.next()?.parse().ok()?;
        let at = values.next().and_then(|at| at.parse().ok());
        let point = match of {
            "node" => self.node.get_or_insert_default(),
            "container" => {
                let label = |name: &str| {
                    let found = labels.split(',').find_map(|label| {
                        label
                            .strip_prefix(name)?
                            .strip_prefix("=\"")?
                            .strip_suffix('"')
                    });
                    found.map(str::to_owned)
                };
                let container = Container {
                    namespace: label("namespace")?,
                    pod: label("pod")?,
                    name: label("container")?,
                };
                self.containers.entry(container).or_default()
            }
            _ => return None,
        };
        match what {
            "cpu_usage_seconds_total" => {
                point.cpu_seconds = value;
                point.at = at?;
            }
            "memory_working_set_bytes" => point.memory_bytes = value,
            "start_time_seconds" => point.started = Some((value * 1e3) as i64),
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_kubelets_write_them() {
        let text = "\
# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container=\"dns\",namespace=\"kube-system\",pod=\"coredns-1\"} 4.710169 1624028483000
container_memory_working_set_bytes{container=\"dns\",namespace=\"kube-system\",pod=\"coredns-1\"} 1.253376e+07 1624028483000
container_start_time_seconds{container=\"dns\",namespace=\"kube-system\",pod=\"coredns-1\"} 1.6240e+09 1624028483000
node_cpu_usage_seconds_total 357.3 1624028480000
node_memory_working_set_bytes 4.2e+08 1624028480000
pod_cpu_usage_seconds_total{namespace=\"kube-system\",pod=\"coredns-1\"} 4.8 1624028483000
container_cpu_usage_seconds_total{container=\"torn\",namesp
resource_scrape_error 0
";
        let reading = Reading::parse(text.as_bytes());
        let node = reading.node.expect("the node");
        assert_eq!(
            (node.at, node.cpu_seconds, node.memory_bytes),
            (1_624_028_480_000, 357.3, 4.2e8)
        );
        let dns = Container {
            namespace: "kube-system".into(),
            pod: "coredns-1".into(),
            name: "dns".into(),
        };
        let expected = Point {
            at: 1_624_028_483_000,
            cpu_seconds: 4.710169,
            memory_bytes: 12_533_760.0,
            started: Some(1_624_000_000_000),
        };
        assert_eq!(reading.containers, HashMap::from([(dns, expected)]));
    }
}
