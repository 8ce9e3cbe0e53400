//! Probes: is a container started, ready, alive?
//!
//! One task per container runs its startup probe first and then the two others side by
//! side; what it finds goes to the pod's worker. The task ends with its container.

mod exec;
mod grpc;
mod http;
mod results;
mod tcp;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use windlass_cri::Runtime;

pub(crate) use http::{Request, get};
pub(crate) use results::Results;

use crate::model::PodId;

/// A process that was just started often listens some milliseconds later: for this long
/// it is asked again at once instead of a whole period later.
const EARLY: Duration = Duration::from_secs(2);
const EARLY_FIRST: Duration = Duration::from_millis(20);
const EARLY_MOST: Duration = Duration::from_millis(200);

/// What a probe found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeNews {
    /// The container's name.
    pub(crate) name: String,
    /// The container.
    pub(crate) container_id: String,
    /// What.
    pub(crate) finding: Finding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The startup probe succeeded.
    Started,
    /// The readiness probe's verdict changed.
    Ready(bool),
    /// One probe failed; for the event.
    Failed { kind: Kind, message: String },
    /// One probe could not be made, so that nothing is known; for the event.
    Errored { kind: Kind, message: String },
    /// One probe succeeded in a way that its author has hardly meant; for the event.
    Warned { kind: Kind, message: String },
    /// The liveness or startup probe failed too often: the container must go.
    Condemned { kind: Kind, grace: Option<i64> },
}

/// Why an attempt was no success; for users' eyes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Problem {
    /// The container is not well.
    Failed(String),
    /// It could not be asked: a runtime that is away must not end the containers.
    Unknown(String),
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// Where and how a container can be reached.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Runtime,
    pub(crate) pod: PodId,
    pub(crate) container: Container,
    pub(crate) container_id: String,
    /// The pod's address, the node's for pods on its network.
    pub(crate) ip: Option<IpAddr>,
    /// How long the container has been running.
    pub(crate) age: Duration,
    /// Whether it is known to be started, from before the agent's own restart.
    pub(crate) started: bool,
    pub(crate) results: Arc<Results>,
}

/// The running probes of one container; dropping it stops them.
pub(crate) struct Running {
    task: AbortHandle,
    /// Whether it may still be condemned; dropping it ends the startup and liveness probe.
    condemns: Option<oneshot::Sender<Infallible>>,
}

impl Running {
    /// Asks from now on only for readiness: a container that is being stopped is not
    /// condemned, but who balances over it wants to know whether it still serves (KEP-1669).
    pub(crate) fn only_readiness(&mut self) {
        self.condemns = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts the container's probes, if it has any.
pub(crate) fn start(target: Target, news: mpsc::Sender<ProbeNews>) -> Option<Running> {
    let container = &target.container;
    let (startup, readiness, liveness) = (
        container.startup_probe.clone(),
        container.readiness_probe.clone(),
        container.liveness_probe.clone(),
    );
    if startup.is_none() && readiness.is_none() && liveness.is_none() {
        return None;
    }
    let (condemns, mut spared) = oneshot::channel();
    let task = tokio::spawn(async move {
        if let Some(probe) = startup.filter(|_| !target.started) {
            tokio::select! {
                () = repeat(Kind::Startup, &probe, &target, &news) => {}
                _ = &mut spared => return,
            }
        }
        let run = async |kind, probe: Option<Probe>| {
            if let Some(probe) = probe {
                repeat(kind, &probe, &target, &news).await;
            }
        };
        tokio::join!(run(Kind::Readiness, readiness), async {
            tokio::select! {
                () = run(Kind::Liveness, liveness) => {}
                _ = spared => {}
            }
        });
    });
    Some(Running {
        task: task.abort_handle(),
        condemns: Some(condemns),
    })
}

/// Counts results until they are a verdict.
#[derive(Debug, Default)]
struct Tally {
    successes: i32,
    failures: i32,
    verdict: Option<bool>,
}

impl Tally {
    /// Takes one result; the new verdict if it changed with it.
    fn take(&mut self, success: bool, probe: &Probe) -> Option<bool> {
        let (count, needed) = if success {
            self.failures = 0;
            self.successes += 1;
            (self.successes, probe.success_threshold.unwrap_or(1))
        } else {
            self.successes = 0;
            self.failures += 1;
            (self.failures, probe.failure_threshold.unwrap_or(3))
        };
        let reached = count >= needed.max(1) && self.verdict != Some(success);
        reached.then(|| {
            self.verdict = Some(success);
            success
        })
    }
}

/// Probes until nothing more can come of it: the startup probe until it succeeded, the
/// liveness and startup probe until the container is condemned.
async fn repeat(kind: Kind, probe: &Probe, target: &Target, news: &mpsc::Sender<ProbeNews>) {
    let delay = seconds(probe.initial_delay_seconds, 0).saturating_sub(target.age);
    tokio::time::sleep(delay).await;
    let mut early = listens_early(kind, probe, target).await;
    let mut ticks = tokio::time::interval(seconds(probe.period_seconds, 10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tally = Tally::default();
    let tell = async |finding| {
        let name = target.container.name.clone();
        let container_id = target.container_id.clone();
        news.send(ProbeNews {
            name,
            container_id,
            finding,
        })
        .await
        .is_ok()
    };
    loop {
        ticks.tick().await;
        let result = match std::mem::take(&mut early) {
            true => Ok(None),
            false => counted(kind, probe, target).await,
        };
        let remark = match &result {
            Ok(None) => None,
            Ok(Some(message)) => Some(Finding::Warned {
                kind,
                message: message.clone(),
            }),
            Err(Problem::Failed(message)) => Some(Finding::Failed {
                kind,
                message: message.clone(),
            }),
            Err(Problem::Unknown(message)) => Some(Finding::Errored {
                kind,
                message: message.clone(),
            }),
        };
        if let Some(remark) = remark
            && !tell(remark).await
        {
            return;
        }
        if matches!(result, Err(Problem::Unknown(_))) {
            continue;
        }
        let heard = match (kind, tally.take(result.is_ok(), probe)) {
            (_, None) => true,
            (Kind::Readiness, Some(ready)) => tell(Finding::Ready(ready)).await,
            (Kind::Startup, Some(true)) => {
                tell(Finding::Started).await;
                return;
            }
            (Kind::Liveness, Some(true)) => true,
            (Kind::Startup | Kind::Liveness, Some(false)) => {
                let grace = probe.termination_grace_period_seconds;
                tell(Finding::Condemned { kind, grace }).await;
                return;
            }
        };
        if !heard {
            return;
        }
    }
}

/// Asks a young container in quick succession until it answers or is not young any more.
/// Failures do not count: they only say that it is still starting. Not for liveness, which
/// waits its turn, nor for commands, which may cost the container something.
async fn listens_early(kind: Kind, probe: &Probe, target: &Target) -> bool {
    let delayed = probe.initial_delay_seconds.unwrap_or(0) > 0;
    if kind == Kind::Liveness || probe.exec.is_some() || delayed || target.age > EARLY {
        return false;
    }
    let end = Instant::now() + EARLY.min(seconds(probe.period_seconds, 10));
    let mut pause = EARLY_FIRST;
    loop {
        if once(probe, target).await.is_ok() {
            return true;
        }
        if Instant::now() + pause >= end {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(EARLY_MOST);
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let given = value.and_then(|value| u64::try_from(value).ok());
    match given {
        Some(0) | None => Duration::from_secs(default),
        Some(seconds) => Duration::from_secs(seconds),
    }
}

async fn counted(kind: Kind, probe: &Probe, target: &Target) -> Result<Option<String>, Problem> {
    let begun = Instant::now();
    let result = once(probe, target).await;
    let (pod, container) = (&target.pod, &target.container.name);
    let took = begun.elapsed();
    if !matches!(result, Err(Problem::Unknown(_))) {
        let results = &target.results;
        results.count(pod, container, kind, result.is_ok(), took);
    }
    result
}

/// One attempt; the error, or the warning with a success, is what users read.
async fn once(probe: &Probe, target: &Target) -> Result<Option<String>, Problem> {
    let timeout = seconds(probe.timeout_seconds, 1);
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        let done = exec::probe(&target.runtime, &target.container_id, &command, timeout).await;
        return done.map(|()| None);
    }
    let attempt = async {
        if let Some(action) = &probe.http_get {
            let request = Request::of(action, &target.container, target.ip);
            let request = request.map_err(Problem::Unknown)?;
            return Ok(http::probe(&request).await?);
        }
        if let Some(action) = &probe.tcp_socket {
            let port = port(&action.port, &target.container).map_err(Problem::Unknown)?;
            tcp::probe(host(action.host.as_deref(), target.ip)?, port).await?;
            return Ok(None);
        }
        if let Some(action) = &probe.grpc {
            let port = u16::try_from(action.port).map_err(|_| "invalid port".to_owned())?;
            let ip = target
                .ip
                .ok_or_else(|| "the pod has no address".to_owned())?;
            let service = action.service.as_deref().unwrap_or_default();
            grpc::probe(ip, port, service).await?;
            return Ok(None);
        }
        Err(Problem::Unknown("the probe has no action".to_owned()))
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {}s", timeout.as_secs()).into()),
    }
}

/// The given host, or the pod's address.
fn host(given: Option<&str>, ip: Option<IpAddr>) -> Result<String, String> {
    match given.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.to_owned()),
        None => ip
            .map(|ip| ip.to_string())
            .ok_or_else(|| "the pod has no address".to_owned()),
    }
}

/// A number, or the number of the container's port of that name.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
        }
    };
    let number = number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => format!("couldn't find port {name:?} in the container"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_verdict_needs_as_many_results_in_a_row_as_its_threshold() {
        let probe: Probe =
            serde_json::from_value(json!({"failureThreshold": 3, "successThreshold": 2})).unwrap();
        let mut tally = Tally::default();
        let results = [
            true, true, true, false, false, true, false, false, false, false, true, true,
        ];
        let verdicts: Vec<_> = results.iter().map(|ok| tally.take(*ok, &probe)).collect();
        let (yes, no, none) = (Some(true), Some(false), None);
        assert_eq!(
            verdicts,
            [
                none, yes, none, none, none, none, none, none, no, none, none, yes
            ]
        );
    }

    fn target(container: Container) -> Target {
        Target {
            runtime: Runtime::new("/nonexistent".parse().unwrap()),
            pod: PodId {
                namespace: "ns".into(),
                name: "p".into(),
                uid: "u".into(),
            },
            container,
            container_id: "id".into(),
            ip: "127.0.0.1".parse().ok(),
            age: Duration::ZERO,
            started: false,
            results: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_container_is_not_condemned_for_what_could_not_be_asked() {
        let mut probes = vec![json!({"exec": {"command": ["true"]}})];
        probes.push(json!({"tcpSocket": {"port": "none"}}));
        for mut probe in probes {
            (probe["failureThreshold"], probe["periodSeconds"]) = (json!(1), json!(1));
            let container = json!({"name": "c", "livenessProbe": probe});
            let target = target(serde_json::from_value(container).unwrap());
            let results = target.results.clone();
            let (sender, mut news) = mpsc::channel(16);
            let _running = start(target, sender).unwrap();
            // The runtime is away, the port is nowhere: each time anew, and no more than that.
            for _ in 0..2 {
                let finding = news.recv().await.unwrap().finding;
                let unknown = matches!(
                    finding,
                    Finding::Errored {
                        kind: Kind::Liveness,
                        ..
                    }
                );
                assert!(unknown, "{finding:?}");
            }
            let text = results.text(&["u".to_owned()].into());
            assert!(!text.contains("result="), "{text}");
        }
    }

    #[tokio::test]
    async fn a_container_that_listens_a_moment_later_is_ready_a_moment_later() {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 30},
            "livenessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 30},
        }))
        .unwrap();
        let (sender, mut news) = mpsc::channel(16);
        let begun = Instant::now();
        let _running = start(target(container), sender).unwrap();
        // Liveness fails once and is not repeated; readiness says nothing until it is so.
        let first = news.recv().await.unwrap();
        assert!(matches!(
            first.finding,
            Finding::Failed {
                kind: Kind::Liveness,
                ..
            }
        ));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
            .await
            .unwrap();
        assert_eq!(news.recv().await.unwrap().finding, Finding::Ready(true));
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "not a period later"
        );
    }

    #[test]
    fn ports_have_numbers_or_names() {
        let container: Container = serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}),
        )
        .unwrap();
        let of = |given: IntOrString| port(&given, &container);
        assert_eq!(of(IntOrString::Int(80)), Ok(80));
        assert_eq!(of(IntOrString::String("web".into())), Ok(8080));
        assert_eq!(of(IntOrString::String("9090".into())), Ok(9090));
        assert!(of(IntOrString::String("none".into())).is_err());
        assert!(of(IntOrString::Int(0)).is_err());
        assert!(of(IntOrString::Int(70_000)).is_err());
    }
}
