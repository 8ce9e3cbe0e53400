//! What watches may tell in which order, and what is written for it.

use super::{super::news, *};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;

fn of_service(event: Event<Service>) -> Change {
    Change::Service(news::read(event, ServiceNews::of))
}

fn of_slice(event: Event<EndpointSlice>) -> Change {
    Change::Slice(news::read(event, |slice| SliceNews::of(slice, "node")))
}

fn service(name: &str, ip: &str) -> Service {
    serde_json::from_value(json!({
        "metadata": {"namespace": "d", "name": name},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]},
    }))
    .unwrap()
}

fn slice(name: &str, owner: &str, addresses: &[&str]) -> EndpointSlice {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "nodeName": "node"}))
        .collect();
    serde_json::from_value(json!({
        "addressType": "IPv4",
        "metadata": {"namespace": "d", "name": name, "labels": {"kubernetes.io/service-name": owner}},
        "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
    }))
    .unwrap()
}

struct Fixture {
    observed: Observed,
    tables: Tables,
}

impl Fixture {
    fn synced(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Self {
        let mut fixture = Self {
            observed: Observed::new(),
            tables: Tables::default(),
        };
        fixture.list(services, slices);
        fixture
    }

    fn list(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) {
        self.take(of_service(Event::Init));
        services
            .into_iter()
            .for_each(|it| self.take(of_service(Event::InitApply(it))));
        self.take(of_service(Event::InitDone));
        self.take(of_slice(Event::Init));
        slices
            .into_iter()
            .for_each(|it| self.take(of_slice(Event::InitApply(it))));
        self.take(of_slice(Event::InitDone));
    }

    fn take(&mut self, change: Change) {
        self.observed.take(change);
    }

    fn write(&mut self) -> Vec<ServiceWrite> {
        self.observed.plan(&mut self.tables, usize::MAX)
    }
}

fn is_ready(fixture: &Fixture, address: &str) -> bool {
    fixture.tables.is_ready_target(address.parse().unwrap())
}

#[test]
fn nothing_is_written_before_both_lists_are_complete() {
    let mut observed = Observed::new();
    observed.take(of_service(Event::Init));
    observed.take(of_service(Event::InitDone));
    assert!(!observed.is_synced());
    observed.take(of_slice(Event::Init));
    observed.take(of_slice(Event::InitDone));
    assert!(observed.is_synced());
}

#[test]
fn a_balancers_address_is_answered_by_nodes_that_can_serve_it() {
    let balanced = |policy: &str, class: Option<&str>| -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": "a"},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": class, "externalTrafficPolicy": policy,
                "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}},
        }))
        .unwrap()
    };
    // (node, ready, serving): terminating when it is not ready.
    let endpoints = |states: &[(&str, bool, bool)]| -> EndpointSlice {
        let endpoints: Vec<_> = states
            .iter()
            .zip(1..)
            .map(|((node, ready, serving), number)| {
                json!({
                    "addresses": [format!("10.0.0.{number}")], "nodeName": node,
                    "conditions": {"ready": ready, "serving": serving, "terminating": !ready},
                })
            })
            .collect();
        let mut slice = slice("1", "a", &[]);
        slice.endpoints = serde_json::from_value(json!(endpoints)).unwrap();
        slice
    };
    let own = Some("windlass.dev/pool");
    for (policy, class, states, expected) in [
        ("Cluster", None, vec![("other", true, true)], true),
        ("Cluster", own, vec![], true),
        (
            "Cluster",
            Some("example.com/lb"),
            vec![("node", true, true)],
            false,
        ),
        (
            "Local",
            own,
            vec![("node", true, true), ("other", true, true)],
            true,
        ),
        ("Local", own, vec![("other", true, true)], false),
        // While another node has a ready one, those that end here are no reason.
        (
            "Local",
            own,
            vec![("node", false, true), ("other", true, true)],
            false,
        ),
        (
            "Local",
            own,
            vec![("node", false, true), ("other", false, true)],
            true,
        ),
        ("Local", own, vec![("other", false, true)], false),
        ("Local", own, vec![("other", false, false)], true),
    ] {
        let mut fixture = Fixture::synced(vec![balanced(policy, class)], vec![endpoints(&states)]);
        fixture.write();
        let found: Vec<_> = fixture.observed.servable().collect();
        assert_eq!(
            found.len(),
            usize::from(expected),
            "{policy} {class:?} {states:?}"
        );
    }
}

#[test]
fn a_list_after_a_lost_watch_costs_only_the_difference() {
    let services = || vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")];
    let mut fixture = Fixture::synced(
        services(),
        vec![
            slice("a-1", "a", &["10.0.0.1"]),
            slice("b-1", "b", &["10.0.0.2"]),
        ],
    );
    assert!(!fixture.write().is_empty());
    fixture.list(
        services(),
        vec![
            slice("a-1", "a", &["10.0.0.1"]),
            slice("b-1", "b", &["10.0.0.3"]),
        ],
    );
    assert_eq!(fixture.observed.dirty.len(), 1, "only b");
    fixture.write();
    assert!(is_ready(&fixture, "10.0.0.1") && is_ready(&fixture, "10.0.0.3"));
    assert!(!is_ready(&fixture, "10.0.0.2"));
    fixture.list(
        vec![service("b", "10.96.0.2")],
        vec![slice("b-1", "b", &["10.0.0.3"])],
    );
    fixture.write();
    assert!(
        !is_ready(&fixture, "10.0.0.1"),
        "what the new list lacks is gone"
    );
}

#[test]
fn a_slice_that_changes_hands_leaves_its_old_service() {
    let mut fixture = Fixture::synced(
        vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")],
        vec![slice("s", "a", &["10.0.0.1"])],
    );
    fixture.write();
    fixture.take(of_slice(Event::Apply(slice("s", "b", &["10.0.0.1"]))));
    assert_eq!(fixture.observed.dirty.len(), 2);
    fixture.write();
    fixture.take(of_service(Event::Delete(service("b", "10.96.0.2"))));
    fixture.write();
    assert!(!is_ready(&fixture, "10.0.0.1"), "a has it no more");
}

#[test]
fn a_deleted_slice_takes_its_endpoints_and_an_equal_event_costs_nothing() {
    let mut fixture = Fixture::synced(
        vec![service("a", "10.96.0.1")],
        vec![
            slice("1", "a", &["10.0.0.1"]),
            slice("2", "a", &["10.0.0.2"]),
        ],
    );
    fixture.write();
    fixture.take(of_slice(Event::Apply(slice("1", "a", &["10.0.0.1"]))));
    fixture.take(of_service(Event::Apply(service("a", "10.96.0.1"))));
    assert!(fixture.observed.is_settled());
    fixture.take(of_slice(Event::Delete(slice("2", "a", &[]))));
    fixture.write();
    assert!(is_ready(&fixture, "10.0.0.1") && !is_ready(&fixture, "10.0.0.2"));
}

#[test]
fn an_address_that_is_freed_goes_to_the_service_that_waited_for_it() {
    let mut fixture = Fixture::synced(
        vec![service("a", "10.96.0.1"), service("b", "10.96.0.1")],
        vec![
            slice("1", "a", &["10.0.0.1"]),
            slice("2", "b", &["10.0.0.2"]),
        ],
    );
    fixture.write();
    fixture.take(of_service(Event::Delete(service("a", "10.96.0.1"))));
    let writes = fixture.write();
    let positions = |wanted: fn(&ServiceWrite) -> bool| writes.iter().position(wanted);
    let deleted = positions(|write| matches!(write, ServiceWrite::DeleteService { .. }));
    let put = positions(|write| matches!(write, ServiceWrite::PutService { .. }));
    assert!(deleted.is_some() && deleted < put, "{writes:?}");
}
