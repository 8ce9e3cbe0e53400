//! Devices that pods claim (dynamic resource allocation): before a pod starts, the driver of each claim's devices makes
//! them ready, and when no pod of the node uses the claim any more, it is told so.
//!
//! What was asked of drivers stands in each pod's folder ([`record`]), written before they are asked: an agent that was
//! killed in between finds what is to be undone. The drivers' answers are kept in memory only; asking again is harmless.

mod driver;
mod record;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use parking_lot::Mutex;
use tokio::sync::watch;
use windlass_proto::dra::Claim;

use crate::model::{PodId, spec};
use driver::Driver;
use record::Record;

/// A driver whose pod is just starting is waited for this long, before the start is tried again later.
const REGISTRATION: Duration = Duration::from_secs(3);

/// The drivers of this node's devices, and what they made ready.
#[derive(Default)]
pub(crate) struct Devices {
    drivers: watch::Sender<HashMap<String, Driver>>,
    /// By the pod's uid.
    prepared: Mutex<HashMap<String, Vec<Prepared>>>,
    turn: tokio::sync::Mutex<()>,
}

/// A device that is ready for the containers of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prepared {
    /// As the pod's spec calls the claim.
    entry: String,
    /// The claim's requests that it is for; none stands for all.
    requests: Vec<String>,
    cdi: Vec<String>,
}

impl Devices {
    pub(crate) fn register(&self, name: &str, socket: &Path) {
        let driver = Driver::new(socket);
        self.drivers.send_modify(|drivers| {
            drivers.insert(name.to_owned(), driver);
        });
    }

    pub(crate) fn deregister(&self, name: &str) {
        self.drivers.send_modify(|drivers| {
            drivers.remove(name);
        });
    }

    async fn driver(&self, name: &str) -> Result<Driver, String> {
        let mut drivers = self.drivers.subscribe();
        let there = drivers.wait_for(|drivers| drivers.contains_key(name));
        let found = match tokio::time::timeout(REGISTRATION, there).await {
            Ok(Ok(drivers)) => drivers.get(name).cloned(),
            _ => None,
        };
        found.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Makes everything ready that the pod claims. `folder` is the pod's own.
    pub(crate) async fn prepare(
        &self,
        client: &kube::Client,
        pod: &Pod,
        folder: &Path,
    ) -> Result<(), String> {
        let id = PodId::of(pod);
        if spec(pod).resource_claims.is_none() || self.prepared.lock().contains_key(&id.uid) {
            return Ok(());
        }
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &id.namespace);
        let mut ready = Vec::new();
        for (entry, name) in names(pod)? {
            let found = api.get(&name).await;
            let found = found.map_err(|error| format!("fetch ResourceClaim {name}: {error}"))?;
            let claim = Claim {
                namespace: id.namespace.clone(),
                uid: found.metadata.uid.clone().unwrap_or_default(),
                name: name.clone(),
            };
            for driver in drivers_of(&found, &id.uid)? {
                let asked = self.driver(&driver).await?;
                let _turn = self.turn.lock().await;
                Record::note(folder, &driver, &claim)?;
                for device in asked.prepare(claim.clone()).await? {
                    ready.push(Prepared {
                        entry: entry.clone(),
                        requests: device.request_names,
                        cdi: device.cdi_device_ids,
                    });
                }
            }
        }
        self.prepared.lock().insert(id.uid, ready);
        Ok(())
    }

    /// What the runtime is to give to a container.
    pub(crate) fn cdi_of(&self, uid: &str, container: &Container) -> Vec<String> {
        let prepared = self.prepared.lock();
        let ready = prepared.get(uid).map(Vec::as_slice).unwrap_or_default();
        cdi(ready, container)
    }

    /// Tells the drivers that the pod with this folder needs nothing any more; what another pod uses stays.
    pub(crate) async fn unprepare(&self, pods: &Path, uid: &str) -> Result<(), String> {
        let folder = pods.join(uid);
        let Some(record) = Record::load(&folder) else {
            return Ok(());
        };
        let _turn = self.turn.lock().await;
        for (driver, claim) in record.claims() {
            if Record::others(pods, uid).any(|other| other.names(&driver, &claim.uid)) {
                continue;
            }
            let driver = self.driver(&driver).await?;
            driver.unprepare(claim).await?;
        }
        self.prepared.lock().remove(uid);
        Record::remove(&folder)
    }
}

/// The pod's entries with the names of their claims.
fn names(pod: &Pod) -> Result<Vec<(String, String)>, String> {
    let status = pod.status.as_ref();
    let made = status.and_then(|status| status.resource_claim_statuses.as_ref());
    let mut names = Vec::new();
    for entry in spec(pod).resource_claims.iter().flatten() {
        if let Some(name) = &entry.resource_claim_name {
            names.push((entry.name.clone(), name.clone()));
            continue;
        }
        let mut made = made.into_iter().flatten();
        match made.find(|known| known.name == entry.name) {
            None => return Err(format!("ResourceClaim of {} not created yet", entry.name)),
            // The claim's controller found that none is needed.
            Some(known) => names.extend(
                known
                    .resource_claim_name
                    .clone()
                    .map(|name| (entry.name.clone(), name)),
            ),
        }
    }
    Ok(names)
}

/// The drivers of a claim's devices, if the claim has some and the pod may use them.
fn drivers_of(claim: &ResourceClaim, pod_uid: &str) -> Result<BTreeSet<String>, String> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    let Some(allocation) = status.allocation else {
        return Err(format!("ResourceClaim {name} not allocated yet"));
    };
    let mut users = status.reserved_for.iter().flatten();
    if !users.any(|user| user.uid == pod_uid) {
        return Err(format!("pod is not allowed to use ResourceClaim {name}"));
    }
    let results = allocation.devices.and_then(|devices| devices.results);
    let results = results.into_iter().flatten();
    Ok(results.map(|result| result.driver).collect())
}

fn cdi(ready: &[Prepared], container: &Container) -> Vec<String> {
    let resources = container.resources.as_ref();
    let wanted = resources.and_then(|resources| resources.claims.as_ref());
    let mut ids = Vec::new();
    for claim in wanted.into_iter().flatten() {
        let request = claim.request.as_deref().unwrap_or_default();
        let suits = |device: &&Prepared| {
            let of_request =
                |name: &String| name == request || name.split('/').next() == Some(request);
            device.entry == claim.name
                && (request.is_empty()
                    || device.requests.is_empty()
                    || device.requests.iter().any(of_request))
        };
        for id in ready.iter().filter(suits).flat_map(|device| &device.cdi) {
            if !ids.contains(id) {
                ids.push(id.clone());
            }
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_gets_the_devices_of_the_requests_that_it_names() {
        let device = |entry: &str, requests: &[&str], id: &str| Prepared {
            entry: entry.into(),
            requests: requests.iter().map(|&it| it.into()).collect(),
            cdi: vec![id.into()],
        };
        let ready = [
            device("gpus", &["large"], "vendor/gpu=0"),
            device("gpus", &["small/cheap"], "vendor/gpu=1"),
            device("gpus", &[], "vendor/all=0"),
            device("nics", &["a"], "vendor/nic=0"),
        ];
        let of = |claims: serde_json::Value| {
            let container = json!({"name": "c", "resources": {"claims": claims}});
            cdi(&ready, &serde_json::from_value(container).unwrap()).join(" ")
        };
        assert_eq!(
            of(json!([{"name": "gpus"}])),
            "vendor/gpu=0 vendor/gpu=1 vendor/all=0"
        );
        assert_eq!(
            of(json!([{"name": "gpus", "request": "small"}, {"name": "nics"}])),
            "vendor/gpu=1 vendor/all=0 vendor/nic=0"
        );
        assert_eq!(of(json!([])), "");
    }

    #[test]
    fn a_claim_is_used_when_it_has_devices_and_is_kept_for_the_pod() {
        let judge = |status: serde_json::Value| {
            let claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": status});
            drivers_of(&serde_json::from_value(claim).unwrap(), "uid-1")
        };
        let allocation = json!({"devices": {"results": [
            {"request": "a", "driver": "d1", "pool": "p", "device": "x"},
            {"request": "b", "driver": "d1", "pool": "p", "device": "y"}]}});
        let user = json!([{"resource": "pods", "name": "p", "uid": "uid-1"}]);
        let drivers = judge(json!({"allocation": allocation, "reservedFor": user})).unwrap();
        assert_eq!(drivers.into_iter().collect::<Vec<_>>(), ["d1"]);
        assert!(judge(json!({"allocation": allocation})).is_err());
        assert!(judge(json!({"reservedFor": user})).is_err());
    }
}
