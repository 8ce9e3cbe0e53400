//! The service proxy's metrics, by kube-proxy's names: dashboards and alerts for it work on.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use windlass_datapath::types::{Traffic, protocol};

use super::{observed::Observed, references::TrafficOf};
use crate::histogram::Histogram;

/// As kube-proxy's labels name them.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const POLICIES: [&str; 2] = ["internal", "external"];

#[derive(Default)]
pub(super) struct SyncMetrics(Mutex<State>);

struct State {
    sync: Histogram,
    full_sync: Histogram,
    partial_sync: Histogram,
    programming: Histogram,
    last_sync: f64,
    last_queued: f64,
    service_changes: u64,
    services_pending: u64,
    endpoint_changes: u64,
    endpoints_pending: u64,
    failures: u64,
    full_map: u64,
    /// By family and policy.
    no_local: BTreeMap<(&'static str, &'static str), usize>,
    /// Answers of `/healthz` and `/livez`, by their status.
    asked: BTreeMap<(&'static str, u16), u64>,
}

impl Default for State {
    fn default() -> Self {
        let sync = || Histogram::new((0..15).map(|power| 0.001 * f64::from(1 << power)));
        Self {
            sync: sync(),
            full_sync: sync(),
            partial_sync: sync(),
            // Upstream's buckets, for the SLI of the same name, and finer ones below its
            // first: a quarter of a second is long here.
            programming: Histogram::new(
                [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5]
                    .into_iter()
                    .chain((1..60).map(f64::from))
                    .chain((60..120).step_by(5).map(f64::from))
                    .chain((120..=300).step_by(30).map(f64::from)),
            ),
            last_sync: 0.0,
            last_queued: 0.0,
            service_changes: 0,
            services_pending: 0,
            endpoint_changes: 0,
            endpoints_pending: 0,
            failures: 0,
            full_map: 0,
            no_local: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }
}

impl SyncMetrics {
    pub(super) fn queued(&self, services: u64, endpoints: u64) {
        let mut state = self.0.lock();
        state.service_changes += services;
        state.services_pending += services;
        state.endpoint_changes += endpoints;
        state.endpoints_pending += endpoints;
        state.last_queued = now();
    }

    /// Everything is written. `triggers`: when what changed the endpoints had happened.
    pub(super) fn synced(&self, took: Duration, full: bool, triggers: &[Timestamp]) {
        let mut state = self.0.lock();
        state.sync.observe(took.as_secs_f64());
        match full {
            true => state.full_sync.observe(took.as_secs_f64()),
            false => state.partial_sync.observe(took.as_secs_f64()),
        }
        let now = now();
        for trigger in triggers {
            let happened = trigger.as_millisecond() as f64 / 1_000.0;
            state.programming.observe((now - happened).max(0.0));
        }
        state.last_sync = now;
        state.services_pending = 0;
        state.endpoints_pending = 0;
    }

    pub(super) fn failed(&self, map_full: bool) {
        let mut state = self.0.lock();
        state.failures += 1;
        state.full_map += u64::from(map_full);
    }

    pub(super) fn note(&self, observed: &Observed) {
        let mut no_local = BTreeMap::new();
        for family in FAMILIES {
            for policy in POLICIES {
                no_local.insert((family, policy), 0);
            }
        }
        for key in observed.without_local() {
            let family = FAMILIES[usize::from(!key.is_v4)];
            let policy = POLICIES[usize::from(observed.is_external(key))];
            *no_local.entry((family, policy)).or_default() += 1;
        }
        self.0.lock().no_local = no_local;
    }

    /// `/healthz` or `/livez` was answered.
    pub(super) fn asked(&self, path: &str, status: u16) {
        if let Some(name) = ["healthz", "livez"].iter().find(|it| path.ends_with(**it)) {
            *self.0.lock().asked.entry((name, status)).or_default() += 1;
        }
    }

    /// In Prometheus' text format.
    pub(super) fn text(&self) -> String {
        let state = self.0.lock();
        let mut text = String::new();
        let out = &mut text;
        for (name, help, histogram) in [
            (
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                &state.sync,
            ),
            (
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                &state.full_sync,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                &state.partial_sync,
            ),
            (
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                &state.programming,
            ),
        ] {
            head(out, name, "histogram", help);
            histogram.write(out, &format!("kubeproxy_{name}"));
        }
        let pending = "Pending proxy rules changes";
        let total = "Cumulative proxy rules changes";
        for (name, kind, help, value) in [
            (
                "sync_proxy_rules_last_timestamp_seconds",
                "gauge",
                "The last time proxy rules were successfully synced",
                state.last_sync,
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "gauge",
                "The last time a sync of proxy rules was queued",
                state.last_queued,
            ),
            (
                "sync_proxy_rules_service_changes_pending",
                "gauge",
                pending,
                state.services_pending as f64,
            ),
            (
                "sync_proxy_rules_service_changes_total",
                "counter",
                total,
                state.service_changes as f64,
            ),
            (
                "sync_proxy_rules_endpoint_changes_pending",
                "gauge",
                pending,
                state.endpoints_pending as f64,
            ),
            (
                "sync_proxy_rules_endpoint_changes_total",
                "counter",
                total,
                state.endpoint_changes as f64,
            ),
            (
                "sync_proxy_rules_write_failures_total",
                "counter",
                "Writes of the service tables that failed",
                state.failures as f64,
            ),
            (
                "sync_proxy_rules_map_full_total",
                "counter",
                "Writes of the service tables that found no room",
                state.full_map as f64,
            ),
        ] {
            head(out, name, kind, help);
            let _ = writeln!(out, "kubeproxy_{name} {value}");
        }
        let name = "sync_proxy_rules_no_local_endpoints_total";
        let help = "Number of services with a Local traffic policy and no endpoints";
        head(out, name, "gauge", help);
        for ((family, policy), count) in &state.no_local {
            let _ = writeln!(
                out,
                "kubeproxy_{name}{{ip_family=\"{family}\",traffic_policy=\"{policy}\"}} {count}"
            );
        }
        for path in ["healthz", "livez"] {
            let name = format!("proxy_{path}_total");
            let help = format!("Cumulative proxy {path} HTTP status");
            head(out, &name, "counter", &help);
            for ((_, code), count) in state.asked.iter().filter(|((of, _), _)| *of == path) {
                let _ = writeln!(out, "kubeproxy_{name}{{code=\"{code}\"}} {count}");
            }
        }
        text
    }
}

/// How full the kernel's maps are: name, elements, room.
pub(super) fn write_maps(out: &mut String, maps: &[(&str, usize, usize)]) {
    let name = "windlass_datapath_map_entries";
    let help = "Elements of a map of the datapath; connections as of their last collection";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (map, used, _) in maps {
        let _ = writeln!(out, "{name}{{map=\"{map}\"}} {used}");
    }
    let name = "windlass_datapath_map_capacity";
    let help = "Elements that a map of the datapath has room for";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (map, _, capacity) in maps {
        let _ = writeln!(out, "{name}{{map=\"{map}\"}} {capacity}");
    }
}

/// What went through each Service.
pub(super) fn write_traffic(out: &mut String, traffic: &BTreeMap<TrafficOf, Traffic>) {
    type Amount = fn(&Traffic) -> u64;
    let families: [(&str, &str, Amount); 3] = [
        (
            "connections",
            "Connections to a Service that were given a backend on this node",
            |traffic| traffic.connections,
        ),
        (
            "request_bytes",
            "Bytes of translated packets to a Service, and of what TCP connections of socket hooks have sent when they end",
            |traffic| traffic.request_bytes,
        ),
        (
            "response_bytes",
            "Bytes of translated packets from a Service, and of what TCP connections of socket hooks have received when they end",
            |traffic| traffic.reply_bytes,
        ),
    ];
    for (name, help, of) in families {
        let name = format!("windlass_service_{name}_total");
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        for (whose, traffic) in traffic {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(whose), of(traffic));
        }
    }
}

/// How many connections each Service has open.
pub(super) fn write_open(out: &mut String, open: &BTreeMap<TrafficOf, u32>) {
    let name = "windlass_service_open_connections";
    let help =
        "Connections to a Service that were open when they were last looked at, every ten seconds";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (whose, count) in open {
        let _ = writeln!(out, "{name}{{{}}} {count}", labels(whose));
    }
}

fn labels((service, port, protocol): &TrafficOf) -> String {
    let (namespace, name) = (&service.namespace, &service.name);
    let protocol = match *protocol {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        _ => "SCTP",
    };
    format!("namespace=\"{namespace}\",service=\"{name}\",port=\"{port}\",protocol=\"{protocol}\"")
}

/// Writing into a String cannot fail.
fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        out,
        "# HELP kubeproxy_{name} {help}\n# TYPE kubeproxy_{name} {kind}"
    );
}

fn now() -> f64 {
    Timestamp::now().as_millisecond() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_map_says_how_full_it_is() {
        let mut text = String::new();
        write_maps(&mut text, &[("SLOTS", 3, 8)]);
        assert!(text.contains("windlass_datapath_map_entries{map=\"SLOTS\"} 3\n"));
        assert!(text.contains("windlass_datapath_map_capacity{map=\"SLOTS\"} 8\n"));
    }

    #[test]
    fn each_service_says_what_went_through_it() {
        use crate::services::parse::ServiceName;
        let mut text = String::new();
        let traffic = Traffic {
            connections: 2,
            request_bytes: 30,
            reply_bytes: 400,
        };
        let of = (ServiceName::new("d", "web"), "http".into(), protocol::TCP);
        write_traffic(&mut text, &[(of.clone(), traffic)].into());
        write_open(&mut text, &[(of, 5)].into());
        let labels = "{namespace=\"d\",service=\"web\",port=\"http\",protocol=\"TCP\"}";
        for line in [
            format!("windlass_service_connections_total{labels} 2"),
            format!("windlass_service_request_bytes_total{labels} 30"),
            format!("windlass_service_response_bytes_total{labels} 400"),
            format!("windlass_service_open_connections{labels} 5"),
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn answers_about_health_are_counted_by_their_status() {
        let metrics = SyncMetrics::default();
        for (path, status) in [
            ("/healthz", 200),
            ("/healthz", 200),
            ("/healthz", 503),
            ("/livez", 200),
        ] {
            metrics.asked(path, status);
        }
        metrics.note(&Observed::new());
        let text = metrics.text();
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"200\"} 2",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_text_counts_what_happened_under_upstreams_names() {
        let metrics = SyncMetrics::default();
        metrics.queued(2, 3);
        let text = metrics.text();
        assert!(
            text.contains("kubeproxy_sync_proxy_rules_endpoint_changes_pending 3\n"),
            "{text}"
        );
        let trigger = Timestamp::now() - jiff::SignedDuration::from_secs(7);
        metrics.synced(Duration::from_millis(3), false, &[trigger]);
        let text = metrics.text();
        for line in [
            "kubeproxy_sync_proxy_rules_service_changes_total 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"6\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"8\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }
}
