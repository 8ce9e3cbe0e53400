//! Who holds how much of the node, in numbers that were promised, not measured.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;
use windlass_machinery::quantity::Quantity;

use crate::memory::Verdict;
use crate::model::{Role, Slot, host_network, slots, spec};

/// Amounts by resource name; CPU in thousandths of a core, everything else in whole units.
type Requests = BTreeMap<String, i64>;

/// A port of the node: protocol, address, number.
type HostPort = (String, String, i32);

/// The node's resources and their holders.
pub(crate) struct Ledger {
    allocatable: Requests,
    held: Mutex<HashMap<String, Share>>,
    /// Rings when somebody gave something back.
    pub(crate) freed: Notify,
}

#[derive(Debug, Default)]
struct Share {
    requests: Requests,
    ports: Vec<HostPort>,
}

/// Why a running pod does not get more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The node could not give it with no other pod on it.
    Infeasible(String),
    /// Others hold it.
    Deferred(String),
}

impl Ledger {
    pub(crate) fn new(allocatable: &BTreeMap<String, Quantity>) -> Self {
        let allocatable = allocatable
            .iter()
            .map(|(name, amount)| (name.clone(), whole(name, amount)));
        Self {
            allocatable: allocatable.collect(),
            held: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// Notes what a pod holds that runs already.
    pub(crate) fn adopt(&self, uid: &str, pod: &Pod) {
        self.held.lock().insert(uid.to_owned(), Share::of(pod));
    }

    /// Gives a new pod its share, if there is enough of everything.
    pub(crate) fn admit(&self, uid: &str, pod: &Pod) -> Result<(), Verdict> {
        let share = Share::of(pod);
        let mut held = self.held.lock();
        let others = held.iter().filter(|(other, _)| *other != uid);
        let others: Vec<&Share> = others.map(|(_, share)| share).collect();
        if self
            .allocatable
            .get("pods")
            .is_some_and(|most| others.len() as i64 >= *most)
        {
            return Err(out_of("pods", 1, others.len() as i64, others.len() as i64));
        }
        if let Some((name, used)) = self.first_short(&share.requests, &others) {
            let capacity = self.allocatable.get(name).copied().unwrap_or(0);
            return Err(out_of(name, share.requests[name], used, capacity));
        }
        let taken = |port: &HostPort| {
            let mut theirs = others.iter().flat_map(|other| &other.ports);
            theirs.any(|other| conflict(port, other))
        };
        if share.ports.iter().any(taken) {
            let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested \
                       pod ports";
            return Err(Verdict::rejected("NodePorts", why));
        }
        held.insert(uid.to_owned(), share);
        Ok(())
    }

    /// Changes the share of a running pod to what `pod` asks for.
    pub(crate) fn resize(&self, uid: &str, pod: &Pod) -> Result<(), Refusal> {
        let share = Share::of(pod);
        let mut held = self.held.lock();
        if let Some((name, _)) = self.first_short(&share.requests, &[]) {
            let (asked, capacity) = (share.requests[name], self.allocatable[name]);
            return Err(Refusal::Infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}"
            )));
        }
        let others = held.iter().filter(|(other, _)| *other != uid);
        let others: Vec<&Share> = others.map(|(_, share)| share).collect();
        if let Some((name, used)) = self.first_short(&share.requests, &others) {
            let (asked, capacity) = (share.requests[name], self.allocatable[name]);
            return Err(Refusal::Deferred(format!(
                "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, \
                 capacity: {capacity}"
            )));
        }
        held.insert(uid.to_owned(), share);
        drop(held);
        self.freed.notify_waiters();
        Ok(())
    }

    /// The pod holds nothing any more.
    pub(crate) fn release(&self, uid: &str) {
        if self.held.lock().remove(uid).is_some() {
            self.freed.notify_waiters();
        }
    }

    /// The first resource of which `requests` asks for more than the others leave, and how
    /// much they hold. What the node does not count is not the node's to refuse.
    fn first_short<'a>(&self, requests: &'a Requests, others: &[&Share]) -> Option<(&'a str, i64)> {
        let positive = requests.iter().filter(|(_, amount)| **amount > 0);
        positive.into_iter().find_map(|(name, amount)| {
            let most = self.allocatable.get(name)?;
            let used: i64 = others
                .iter()
                .filter_map(|other| other.requests.get(name))
                .sum();
            (used.saturating_add(*amount) > *most).then_some((name.as_str(), used))
        })
    }
}

fn out_of(name: &str, asked: i64, used: i64, capacity: i64) -> Verdict {
    let message = format!(
        "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: \
         {capacity}"
    );
    Verdict::rejected(format!("OutOf{name}"), message)
}

/// Two ports of one number and protocol, unless each has an address of its own.
fn conflict(one: &HostPort, other: &HostPort) -> bool {
    let any = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
    one.0 == other.0 && one.2 == other.2 && (any(&one.1) || any(&other.1) || one.1 == other.1)
}

impl Share {
    fn of(pod: &Pod) -> Self {
        Self {
            requests: requests(pod),
            ports: host_ports(pod),
        }
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let on_host = host_network(pod);
    let ports = slots(pod).flat_map(|slot| slot.container.ports.clone().unwrap_or_default());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0);
            let number = number.or(on_host.then_some(port.container_port))?;
            let protocol = port.protocol.unwrap_or_else(|| "TCP".to_owned());
            Some((protocol, port.host_ip.unwrap_or_default(), number))
        })
        .collect()
}

/// What a pod asks for as a whole: its containers together, or an init container where that
/// needs more, and the overhead of its runtime class.
fn requests(pod: &Pod) -> Requests {
    let (mut mains, mut sidecars, mut most_init) =
        (Requests::new(), Requests::new(), Requests::new());
    for slot in slots(pod) {
        let own = of_container(&slot);
        match slot.role {
            Role::Main => add(&mut mains, &own),
            Role::Sidecar => {
                add(&mut sidecars, &own);
                raise(&mut most_init, &sidecars);
            }
            _ => {
                let mut beside = sidecars.clone();
                add(&mut beside, &own);
                raise(&mut most_init, &beside);
            }
        }
    }
    add(&mut mains, &sidecars);
    raise(&mut mains, &most_init);
    // What the pod says for itself as a whole goes before the sum (KEP-2837).
    let pod_wide = spec(pod).resources.as_ref();
    let pod_wide = pod_wide.and_then(|resources| {
        let requests = resources.requests.as_ref();
        requests.or(resources.limits.as_ref())
    });
    for (name, amount) in pod_wide.into_iter().flatten() {
        if let Ok(amount) = Quantity::parse(&amount.0) {
            mains.insert(name.clone(), whole(name, &amount));
        }
    }
    for (name, amount) in spec(pod).overhead.iter().flatten() {
        if let Ok(amount) = Quantity::parse(&amount.0) {
            *mains.entry(name.clone()).or_default() += whole(name, &amount);
        }
    }
    mains
}

fn of_container(slot: &Slot<'_>) -> Requests {
    let resources = slot.container.resources.as_ref();
    let requests = resources.and_then(|it| it.requests.as_ref());
    let parsed = requests.into_iter().flatten().filter_map(|(name, amount)| {
        let amount = Quantity::parse(&amount.0).ok()?;
        Some((name.clone(), whole(name, &amount)))
    });
    parsed.collect()
}

fn add(to: &mut Requests, more: &Requests) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(to: &mut Requests, other: &Requests) {
    for (name, amount) in other {
        let known = to.entry(name.clone()).or_default();
        *known = (*known).max(*amount);
    }
}

fn whole(name: &str, amount: &Quantity) -> i64 {
    match name {
        "cpu" => amount.milli_value(),
        _ => amount.value(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ledger() -> Ledger {
        let amounts = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")];
        let amounts = amounts.map(|(name, text)| (name.to_owned(), text.parse().unwrap()));
        Ledger::new(&amounts.into())
    }

    fn pod(cpu: &str, port: Option<Value>) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [{
            "name": "c", "resources": {"requests": {"cpu": cpu, "example.org/thing": "1"}},
            "ports": port.into_iter().collect::<Vec<_>>(),
        }]}}))
        .unwrap()
    }

    #[test]
    fn what_is_promised_to_one_is_not_promised_to_another() {
        let ledger = ledger();
        assert_eq!(ledger.admit("a", &pod("1500m", None)), Ok(()));
        let refused = ledger.admit("b", &pod("1", None)).unwrap_err();
        assert_eq!(refused.reason, "OutOfcpu");
        assert_eq!(
            refused.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, \
             capacity: 2000"
        );
        ledger.release("a");
        assert_eq!(ledger.admit("b", &pod("1", None)), Ok(()));
        assert_eq!(ledger.resize("b", &pod("2", None)), Ok(()));
        assert!(matches!(
            ledger.resize("b", &pod("3", None)),
            Err(Refusal::Infeasible(_))
        ));
        ledger.adopt("a", &pod("100m", None));
        assert!(matches!(
            ledger.resize("b", &pod("2", None)),
            Err(Refusal::Deferred(_))
        ));
        assert_eq!(ledger.resize("b", &pod("1900m", None)), Ok(()));
    }

    #[test]
    fn a_port_of_the_node_belongs_to_one_pod() {
        let ledger = ledger();
        let port = |ip: &str, protocol: &str| {
            let port =
                json!({"containerPort": 1, "hostPort": 80, "hostIP": ip, "protocol": protocol});
            pod("0", Some(port))
        };
        assert_eq!(ledger.admit("a", &port("127.0.0.1", "TCP")), Ok(()));
        assert_eq!(ledger.admit("b", &port("127.0.0.2", "TCP")), Ok(()));
        let taken = ledger.admit("c", &port("0.0.0.0", "TCP")).unwrap_err();
        assert_eq!(taken.reason, "NodePorts");
        assert_eq!(ledger.admit("c", &port("", "UDP")), Ok(()));
        assert_eq!(
            ledger.admit("d", &pod("0", None)).unwrap_err().reason,
            "OutOfpods"
        );
    }

    #[test]
    fn init_containers_count_where_they_need_more() {
        let container = |name: &str, cpu: &str, sidecar: bool| {
            json!({"name": name, "restartPolicy": sidecar.then_some("Always"),
                   "resources": {"requests": {"cpu": cpu}}})
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "overhead": {"cpu": "50m"},
            "initContainers": [container("s", "100m", true), container("i", "1", false)],
            "containers": [container("a", "200m", false), container("b", "300m", false)],
        }}))
        .unwrap();
        assert_eq!(requests(&pod)["cpu"], 1150);
    }
}
