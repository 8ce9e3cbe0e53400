//! `/healthz`, `/livez`, `/readyz`: open to everybody, one line per check with `?verbose`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::{Response, StatusCode};
use parking_lot::Mutex;

use crate::context::Context;
use crate::request::RequestInfo;
use crate::server::ApiServer;
use crate::{Body, response};

/// A step of a server's start that others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The caches are filled and every part knows the others.
    Composed,
    SystemNamespaces,
    KubernetesService,
    ServiceAddresses,
    Identity,
    CustomResources,
    Aggregation,
    FlowControl,
    LegacyTokens,
    /// Roles, bindings and priority classes, made by whoever starts the server: without them only administrators are let in.
    DefaultObjects,
}

/// Which steps are done.
#[derive(Default)]
pub(crate) struct Steps(Mutex<Vec<Step>>);

impl ApiServer {
    /// A step of the start is done.
    pub fn finished(&self, step: Step) {
        self.steps.0.lock().push(step);
    }
}

const ENDPOINTS: [&str; 3] = ["healthz", "livez", "readyz"];

/// The steps of a start, under the names that upstream gives them, in its order. What is not one step here shares another's end.
const HOOKS: [(&str, Step); 28] = [
    ("start-apiserver-admission-initializer", Step::Composed),
    ("generic-apiserver-start-informers", Step::Composed),
    ("priority-and-fairness-config-consumer", Step::FlowControl),
    ("priority-and-fairness-filter", Step::FlowControl),
    ("storage-object-count-tracker-hook", Step::Composed),
    ("start-apiextensions-informers", Step::CustomResources),
    ("start-apiextensions-controllers", Step::CustomResources),
    ("crd-informer-synced", Step::CustomResources),
    ("start-system-namespaces-controller", Step::SystemNamespaces),
    (
        "start-cluster-authentication-info-controller",
        Step::Aggregation,
    ),
    (
        "start-kube-apiserver-identity-lease-controller",
        Step::Identity,
    ),
    (
        "start-kube-apiserver-identity-lease-garbage-collector",
        Step::Identity,
    ),
    ("start-legacy-token-tracking-controller", Step::LegacyTokens),
    (
        "start-service-ip-repair-controllers",
        Step::ServiceAddresses,
    ),
    ("rbac/bootstrap-roles", Step::DefaultObjects),
    (
        "scheduling/bootstrap-system-priority-classes",
        Step::DefaultObjects,
    ),
    ("priority-and-fairness-config-producer", Step::FlowControl),
    ("bootstrap-controller", Step::KubernetesService),
    (
        "start-kubernetes-service-cidr-controller",
        Step::ServiceAddresses,
    ),
    ("aggregator-reload-proxy-client-cert", Step::Aggregation),
    ("start-kube-aggregator-informers", Step::Aggregation),
    (
        "apiservice-status-local-available-controller",
        Step::Aggregation,
    ),
    (
        "apiservice-status-remote-available-controller",
        Step::Aggregation,
    ),
    ("apiservice-registration-controller", Step::Aggregation),
    ("apiservice-discovery-controller", Step::Aggregation),
    ("kube-apiserver-autoregistration", Step::Aggregation),
    ("apiservice-openapi-controller", Step::Aggregation),
    ("apiservice-openapiv3-controller", Step::Aggregation),
];

/// Whether the path may be asked for without permission.
pub(crate) fn is_public(info: &RequestInfo) -> bool {
    !info.is_resource && matches!(info.verb, "get" | "head") && endpoint(&info.path).is_some()
}

/// `readyz` of `/readyz` and of `/readyz/store`.
fn endpoint(path: &str) -> Option<&'static str> {
    let first = path.trim_start_matches('/').split('/').next()?;
    ENDPOINTS.into_iter().find(|name| *name == first)
}

/// What the checks have found so far, as `/metrics/slis` tells it.
#[derive(Default)]
pub(crate) struct Record(Mutex<BTreeMap<(&'static str, String), Outcomes>>);

#[derive(Default)]
struct Outcomes {
    is_well: bool,
    well: u64,
    faulty: u64,
}

impl Record {
    fn note(&self, endpoint: &'static str, checks: &[Check]) {
        let mut record = self.0.lock();
        for check in checks {
            let outcomes = record
                .entry((endpoint, check.name.to_string()))
                .or_default();
            outcomes.is_well = check.fault.is_none();
            if outcomes.is_well {
                outcomes.well += 1;
            } else {
                outcomes.faulty += 1;
            }
        }
    }

    /// In Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        let record = self.0.lock();
        let mut text = "# HELP kubernetes_healthcheck What each check found last\n\
                        # TYPE kubernetes_healthcheck gauge\n"
            .to_owned();
        for ((endpoint, name), outcomes) in record.iter() {
            let value = u8::from(outcomes.is_well);
            text +=
                &format!("kubernetes_healthcheck{{name=\"{name}\",type=\"{endpoint}\"}} {value}\n");
        }
        text += "# HELP kubernetes_healthchecks_total What each check has found since the start\n\
                 # TYPE kubernetes_healthchecks_total counter\n";
        for ((endpoint, name), outcomes) in record.iter() {
            for (status, count) in [("error", outcomes.faulty), ("success", outcomes.well)] {
                if count > 0 {
                    text += &format!(
                        "kubernetes_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{endpoint}\"}} {count}\n"
                    );
                }
            }
        }
        text
    }
}

struct Check {
    name: Cow<'static, str>,
    /// Only for readiness: a server that stops is alive, but not ready.
    readiness: bool,
    fault: Option<String>,
}

async fn checks(server: &ApiServer) -> Vec<Check> {
    let store = server.caches.store().current_revision().await;
    let lag = match &store {
        Ok(_) => server
            .caches
            .wait_current()
            .await
            .err()
            .map(|e| e.to_string()),
        Err(_) => None,
    };
    let stopping = server.shutdown.is_cancelled();
    let mut checks = vec![
        Check {
            name: "ping".into(),
            readiness: false,
            fault: None,
        },
        Check {
            name: "log".into(),
            readiness: false,
            fault: None,
        },
        Check {
            name: "etcd".into(),
            readiness: false,
            fault: store.as_ref().err().map(ToString::to_string),
        },
        Check {
            name: "etcd-readiness".into(),
            readiness: true,
            fault: store.as_ref().err().map(ToString::to_string),
        },
        Check {
            name: "informer-sync".into(),
            readiness: true,
            fault: lag,
        },
    ];
    let done = server.steps.0.lock().clone();
    checks.extend(HOOKS.iter().map(|(name, step)| Check {
        name: format!("poststarthook/{name}").into(),
        readiness: false,
        fault: (!done.contains(step)).then(|| "not finished".to_owned()),
    }));
    checks.push(Check {
        name: "autoregister-completion".into(),
        readiness: false,
        fault: (!done.contains(&Step::Aggregation)).then(|| "not finished".to_owned()),
    });
    checks.push(Check {
        name: "shutdown".into(),
        readiness: true,
        fault: stopping.then(|| "process is shutting down".to_owned()),
    });
    checks
}

/// Answers one of the health paths; `None` for other paths.
pub(crate) async fn serve(context: &Context) -> Option<Response<Body>> {
    let path = &context.info.path;
    let name = endpoint(path)?;
    let single = path
        .trim_matches('/')
        .split_once('/')
        .map(|(_, check)| check.to_owned());
    let excluded: Vec<&str> = context.query.all("exclude").collect();
    let mut checks = checks(&context.server).await;
    checks.retain(|check| {
        (!check.readiness || name == "readyz")
            && !excluded.contains(&&*check.name)
            && single.as_deref().is_none_or(|single| single == check.name)
    });
    if single.is_some() && checks.is_empty() {
        return Some(response::text(
            StatusCode::NOT_FOUND,
            "404 page not found\n",
        ));
    }
    context.server.health.note(name, &checks);
    let failed: Vec<&Check> = checks
        .iter()
        .filter(|check| check.fault.is_some())
        .collect();
    for check in &failed {
        tracing::warn!(
            check = &*check.name,
            fault = check.fault,
            "health check failed"
        );
    }
    if failed.is_empty() && context.query.raw("verbose").is_none() {
        return Some(response::text(StatusCode::OK, "ok"));
    }
    let mut text = String::new();
    for check in &checks {
        let (sign, end) = match &check.fault {
            None => ('+', "ok".to_owned()),
            // Reasons are for the log: these paths are open to everybody.
            Some(_) => ('-', "failed: reason withheld".to_owned()),
        };
        text.push_str(&format!("[{sign}]{} {end}\n", check.name));
    }
    let (code, verdict) = if failed.is_empty() {
        (StatusCode::OK, "passed")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    };
    text.push_str(&format!("{name} check {verdict}\n"));
    Some(response::text(code, text))
}
