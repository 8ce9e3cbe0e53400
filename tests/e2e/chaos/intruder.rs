//! One whom no policy lets in, and who tries all the time: at every address that the API tells, as soon as it does.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use windlass_tests::eventually::{pause, until};
use windlass_tests::http;
use windlass_tests::namespace::Namespace;
use windlass_tests::proxy::Proxy;

use super::witnesses::within;
use super::workload::VAULT;

const PORT: u16 = 8080;
const INTERVAL: Duration = Duration::from_millis(20);
/// A packet that is dropped is not answered; one that is let in is, at once.
const ANSWER: Duration = Duration::from_millis(100);
const IN_FORCE_WITHIN: Duration = Duration::from_secs(20);

type Addresses = Arc<Mutex<Vec<IpAddr>>>;

pub(super) struct Intruder {
    looking: JoinHandle<Result<()>>,
    trying: JoinHandle<Result<u64>>,
}

impl Intruder {
    /// From a pod's network namespace. Before the policy is there it is let in: else it would prove nothing.
    pub(super) fn start(
        place: &File,
        namespace: &Namespace,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let selector = format!("app={VAULT}");
        let told = namespace.get(&["pods", "-l", &selector])?;
        let addresses = addresses(&told);
        ensure!(!addresses.is_empty(), "nobody to reach");
        let open = try_all(place, addresses.clone())?;
        ensure!(open.is_some(), "without a policy it is kept out");
        namespace.apply(POLICY)?;
        until(IN_FORCE_WITHIN, "the policy to be in force", || {
            Ok(try_all(place, addresses.clone())?.is_none())
        })?;

        let known: Addresses = Arc::new(Mutex::new(addresses));
        let path = format!(
            "/api/v1/namespaces/{}/pods?labelSelector=app%3D{VAULT}",
            namespace.name()
        );
        let (found, until_stop) = (known.clone(), stop.clone());
        let looking = std::thread::spawn(move || look(&path, &found, &until_stop));
        let until_stop = stop.clone();
        let trying = within(place.try_clone()?, move || {
            let mut tries = 0;
            while !until_stop.load(Ordering::Relaxed) {
                let now = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tries += now.len() as u64;
                if let Some(name) = let_in(&now) {
                    bail!("{name} let it in");
                }
                pause(INTERVAL);
            }
            Ok(tries)
        });
        Ok(Self { looking, trying })
    }

    /// How often it tried.
    pub(super) fn stop(self) -> Result<u64> {
        let panicked = |_| anyhow::anyhow!("the intruder panicked");
        self.looking.join().map_err(panicked)??;
        self.trying.join().map_err(panicked)?
    }
}

fn try_all(place: &File, addresses: Vec<IpAddr>) -> Result<Option<String>> {
    within(place.try_clone()?, move || Ok(let_in(&addresses)))
        .join()
        .map_err(|_| anyhow::anyhow!("the intruder panicked"))?
}

/// The first who answers and is one of those that it may not reach: addresses are given to others in time.
fn let_in(addresses: &[IpAddr]) -> Option<String> {
    addresses.iter().find_map(|address| {
        let target = SocketAddr::new(*address, PORT);
        TcpStream::connect_timeout(&target, ANSWER).ok()?;
        let name = http::get_text(target, "/").ok()?;
        name.starts_with(VAULT).then_some(name)
    })
}

fn look(path: &str, found: &Addresses, stop: &AtomicBool) -> Result<()> {
    let proxy = Proxy::start()?;
    while !stop.load(Ordering::Relaxed) {
        let answer = proxy.get(path).ok().filter(|answer| answer.status == 200);
        if let Some(answer) = answer {
            let list = answer.json().context("the list of pods")?;
            *found.lock().unwrap_or_else(PoisonError::into_inner) = addresses(&list);
        }
        pause(INTERVAL);
    }
    Ok(())
}

fn addresses(pods: &Value) -> Vec<IpAddr> {
    let pods = pods["items"].as_array().into_iter().flatten();
    pods.filter_map(|pod| pod["status"]["podIP"].as_str()?.parse().ok())
        .collect()
}

const POLICY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: vault}
spec:
  podSelector: {matchLabels: {app: vault}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]
"#;
