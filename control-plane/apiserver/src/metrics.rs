//! Metrics, under Kubernetes' names.

mod plain;
mod process;
mod storage;

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use self::process::Process;
pub use self::storage::Metered;
use crate::Body;
use crate::cacher::Caches;
use crate::catalog::Endpoint;
use crate::discovery::Build;
use crate::request::RequestInfo;
use crate::server::ApiServer;
use crate::service::Noted;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    request_kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    priority_level: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    group: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabels {
    group: String,
    version: String,
    resource: String,
}

/// Upstream's buckets, in seconds.
const BUCKETS: [f64; 20] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 30.0,
];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<TargetLabels, Histogram, fn() -> Histogram>,
    long_running: Family<TargetLabels, Gauge>,
    inflight: Family<KindLabels, Gauge>,
    objects: Family<ResourceLabels, Gauge>,
    levels: [Family<LevelLabels, Gauge>; 3],
    revision: Gauge<u64, AtomicU64>,
    watch_events: Family<WatchLabels, Counter>,
    process: Process,
}

impl Metrics {
    pub(crate) fn new(build: &Build) -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and response code",
            Family::clone(&requests),
        );
        let durations: Family<TargetLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(histogram);
        registry.register_with_unit(
            "apiserver_request_duration",
            "Response latency by verb and resource",
            Unit::Seconds,
            Family::clone(&durations),
        );
        let long_running = Family::default();
        registry.register(
            "apiserver_longrunning_requests",
            "Active watches and connections by verb and resource",
            Family::clone(&long_running),
        );
        let inflight = Family::default();
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests being answered, by kind",
            Family::clone(&inflight),
        );
        let objects = Family::default();
        registry.register(
            "apiserver_resource_objects",
            "Stored objects by resource",
            Family::clone(&objects),
        );
        let levels: [Family<LevelLabels, Gauge>; 3] = Default::default();
        let names = [
            ("nominal_limit_seats", "Seats of a priority level's own"),
            (
                "current_executing_requests",
                "Requests of a priority level at work",
            ),
            (
                "current_inqueue_requests",
                "Requests of a priority level that wait",
            ),
        ];
        for ((name, help), family) in names.into_iter().zip(&levels) {
            registry.register(
                format!("apiserver_flowcontrol_{name}"),
                help,
                family.clone(),
            );
        }
        let revision = Gauge::default();
        registry.register(
            "apiserver_watch_cache_revision",
            "The store's revision up to which the watch caches are complete",
            revision.clone(),
        );
        let watch_events = Family::default();
        registry.register(
            "apiserver_watch_events",
            "Events sent to watchers",
            Family::clone(&watch_events),
        );
        let version = crate::discovery::version(build);
        let info: Vec<_> = [
            ("major", "major"),
            ("minor", "minor"),
            ("git_version", "gitVersion"),
            ("git_commit", "gitCommit"),
            ("git_tree_state", "gitTreeState"),
            ("build_date", "buildDate"),
            ("go_version", "goVersion"),
            ("compiler", "compiler"),
            ("platform", "platform"),
        ]
        .map(|(label, field)| {
            (
                label,
                version[field].as_str().unwrap_or_default().to_owned(),
            )
        })
        .into();
        let help = "What the program was built from";
        registry.register("kubernetes_build", help, Info::new(info));
        storage::register(&mut registry);
        let process = Process::register(&mut registry);
        Self {
            watch_events,
            process,
            registry,
            requests,
            durations,
            long_running,
            inflight,
            objects,
            levels,
            revision,
        }
    }

    /// The text of `/metrics`, as OpenMetrics or in Prometheus' older format.
    pub(crate) fn encode(&self, server: &ApiServer, open: bool) -> String {
        self.note_caches(&server.caches, server);
        self.note_levels(server);
        self.process.note();
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics could not be encoded");
        }
        if open {
            text
        } else {
            plain::of_open_metrics(&text)
        }
    }

    /// Counts what is sent to the watchers of a resource.
    pub(crate) fn watch_events(&self, endpoint: &Endpoint) -> Counter {
        let labels = WatchLabels {
            group: endpoint.group().to_owned(),
            version: endpoint.version().name.to_string(),
            resource: endpoint.plural().to_owned(),
        };
        self.watch_events.get_or_create(&labels).clone()
    }

    fn note_caches(&self, caches: &Caches, server: &ApiServer) {
        self.revision.set(caches.revision().0);
        for resource in server.catalog.load().resources() {
            if let Some(cacher) = caches.get(&resource.prefix) {
                let labels = ResourceLabels {
                    group: resource.group.to_string(),
                    resource: resource.plural.to_string(),
                };
                let count = i64::try_from(cacher.len()).unwrap_or(i64::MAX);
                self.objects.get_or_create(&labels).set(count);
            }
        }
    }

    fn note_levels(&self, server: &ApiServer) {
        self.levels.iter().for_each(Family::clear);
        for (priority_level, (own, used, waiting)) in server.flow_control.counts() {
            let labels = LevelLabels { priority_level };
            for (family, count) in self.levels.iter().zip([own, used, waiting]) {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                family.get_or_create(&labels).set(count);
            }
        }
    }

    /// Notes that a request has begun.
    pub(crate) fn begin(&self, info: &RequestInfo, method: &Method) -> Begun {
        let target = target(info, method);
        let long = info.verb == "watch" || is_connection(info);
        let gauge = if long {
            self.long_running.get_or_create(&target).clone()
        } else {
            let request_kind = if info.read_only() {
                "readOnly"
            } else {
                "mutating"
            };
            self.inflight
                .get_or_create(&KindLabels { request_kind })
                .clone()
        };
        gauge.inc();
        Begun {
            running: Running(gauge),
            requests: self.requests.clone(),
            duration: (!long).then(|| self.durations.get_or_create(&target).clone()),
            target,
        }
    }
}

fn is_connection(info: &RequestInfo) -> bool {
    matches!(
        info.subresource.as_str(),
        "exec" | "attach" | "portforward" | "proxy" | "log"
    )
}

fn target(info: &RequestInfo, method: &Method) -> TargetLabels {
    let scope = match (
        info.is_resource,
        info.name.is_empty(),
        info.namespace.is_empty(),
    ) {
        (false, ..) => "",
        (_, false, _) => "resource",
        (_, true, false) => "namespace",
        (_, true, true) => "cluster",
    };
    let verb = match info.verb {
        "create" => "POST".to_owned(),
        "update" => "PUT".to_owned(),
        _ if is_connection(info) => "CONNECT".to_owned(),
        _ if !info.is_resource => method.as_str().to_owned(),
        verb => verb.to_ascii_uppercase(),
    };
    // Paths that are not served must not make series without end.
    let known = info.is_resource;
    let text = |text: &String| if known { text.clone() } else { String::new() };
    TargetLabels {
        verb,
        group: text(&info.group),
        version: text(&info.version),
        resource: text(&info.resource),
        subresource: text(&info.subresource),
        scope: scope.to_owned(),
    }
}

/// Counts down when it goes, however the request ends.
struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request that has begun.
pub(crate) struct Begun {
    running: Running,
    requests: Family<RequestLabels, Counter>,
    duration: Option<Histogram>,
    target: TargetLabels,
}

impl Begun {
    /// Notes the answer; the request is running until its body has been sent.
    pub(crate) fn finish(self, code: StatusCode, started: Instant, body: Body) -> Body {
        let Self {
            running,
            requests,
            duration,
            mut target,
        } = self;
        if code == StatusCode::NOT_FOUND || code == StatusCode::FORBIDDEN {
            // Names that clients invent must not make series without end.
            target.subresource.truncate(64);
            target.resource.truncate(64);
        }
        let labels = RequestLabels {
            verb: target.verb,
            group: target.group,
            version: target.version,
            resource: target.resource,
            subresource: target.subresource,
            scope: target.scope,
            code: code.as_u16(),
        };
        requests.get_or_create(&labels).inc();
        let done = move || {
            if let Some(duration) = duration {
                duration.observe(started.elapsed().as_secs_f64());
            }
            drop(running);
        };
        use http_body_util::BodyExt;
        Noted::new(body, done).boxed_unsync()
    }
}
