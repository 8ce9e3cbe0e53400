//! The plans against a model of the kernel's tables: after every single write a packet
//! must find a backend where there is one, and in the end the tables must say exactly
//! what is desired.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use windlass_datapath::{
    ServiceWrite,
    types::{Addr, BackendValue, ServiceKey, backend_flags, protocol::TCP},
};

use super::{
    super::{
        compile::{DesiredPort, EndpointState, Policy, PortKey},
        kernel_model::Kernel,
        parse::ServiceName,
    },
    Tables, Writes,
};

fn key(name: &str) -> PortKey {
    PortKey {
        service: ServiceName::new("d", name),
        port: "".into(),
        protocol: TCP,
        is_v4: true,
        policy: Policy::Cluster,
    }
}

fn frontend(number: u8) -> ServiceKey {
    ServiceKey::new(Addr::v4([10, 96, 0, number]), 80, TCP)
}

fn backend(number: u8) -> BackendValue {
    BackendValue::new(Addr::v4([10, 0, 0, number]), 8080, TCP)
}

fn desired(name: &str, frontends: &[u8], endpoints: &[(u8, EndpointState)]) -> DesiredPort {
    DesiredPort {
        key: key(name),
        frontends: frontends
            .iter()
            .map(|number| (frontend(*number), 0))
            .collect(),
        endpoints: endpoints
            .iter()
            .map(|(number, state)| (backend(*number), *state))
            .collect(),
        ready_here: endpoints
            .iter()
            .filter(|(_, state)| *state == Ready)
            .map(|(number, _)| backend(*number).addr.to_ip())
            .collect(),
        affinity_seconds: 0,
        source_ranges: BTreeSet::new(),
        hashed: true,
    }
}

use EndpointState::{Draining, Fallback, Known, Ready};

#[test]
fn one_endpoint_more_or_less_is_a_handful_of_writes() {
    let mut tables = Tables::default();
    let hundred: Vec<_> = (0..100).map(|number| (number, Ready)).collect();
    tables.plan(&desired("web", &[1, 2], &hundred));
    let more: Vec<_> = (0..101).map(|number| (number, Ready)).collect();
    // The backend, its membership, its slot, and the count of either frontend.
    assert_eq!(tables.plan(&desired("web", &[1, 2], &more)).writes.len(), 5);
    let without_first: Vec<_> = (1..101).map(|number| (number, Ready)).collect();
    // The last takes the place; counts; the last slot, the membership, the backend.
    assert_eq!(
        tables
            .plan(&desired("web", &[1, 2], &without_first))
            .writes
            .len(),
        6
    );
    assert_eq!(
        tables.plan(&desired("web", &[1, 2], &without_first)).writes,
        []
    );
}

#[test]
fn a_backend_that_two_ports_share_goes_with_the_last() {
    let mut tables = Tables::default();
    tables.plan(&desired("a", &[1], &[(1, Ready)]));
    tables.plan(&desired("b", &[2], &[(1, Ready)]));
    let deletes = |writes: &[ServiceWrite]| {
        writes
            .iter()
            .any(|write| matches!(write, ServiceWrite::DeleteBackend { .. }))
    };
    assert!(!deletes(&tables.plan(&desired("a", &[1], &[])).writes));
    assert!(deletes(&tables.plan(&desired("b", &[2], &[])).writes));
}

#[test]
fn a_backend_whose_service_goes_is_kept_until_it_is_listed_again_or_forgotten() {
    let mut tables = Tables::default();
    tables.plan(&desired("a", &[1], &[(1, Ready), (2, Ready)]));
    let ids: Vec<u32> = tables.backends.iter().map(|(id, _)| id).collect();
    tables.plan_removal(&key("a"));
    let unlisted = |tables: &Tables| tables.unlisted().len();
    assert_eq!(unlisted(&tables), 2);
    tables.plan(&desired("b", &[1], &[(1, Ready)]));
    assert_eq!(unlisted(&tables), 1, "known by the same id again");
    assert_eq!(
        tables.forget_unlisted(ids).len(),
        1,
        "but not what is listed"
    );
    assert_eq!((unlisted(&tables), tables.backends.len()), (0, 1));
}

#[test]
fn an_endpoint_that_leaves_is_asked_for_where_somebody_knows() {
    let mut tables = Tables::default();
    tables.ask_for_pods();
    tables.plan(&desired("a", &[1], &[(1, Ready), (2, Ready)]));
    tables.plan(&desired("a", &[1], &[]));
    let address = |number| backend(number).addr.to_ip();
    assert_eq!(tables.forget_departed(|_| None), []);
    let gone = tables.forget_departed(|it| Some(it == address(1)));
    assert_eq!(gone.len(), 1);
    let left = tables.unlisted();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].1, address(1));
}

#[test]
fn of_two_services_with_one_frontend_the_first_keeps_it_until_it_goes() {
    let mut tables = Tables::default();
    tables.plan(&desired("a", &[1], &[(1, Ready)]));
    let plan = tables.plan(&desired("b", &[1, 2], &[(2, Ready)]));
    assert_eq!(plan.contested, [frontend(1)]);
    tables.plan_removal(&key("a"));
    let plan = tables.plan(&desired("b", &[1, 2], &[(2, Ready)]));
    assert_eq!(plan.contested, []);
    assert_eq!(plan.writes.len(), 1, "only the frontend: {:?}", plan.writes);
}

#[test]
fn a_target_is_ready_by_its_state_and_not_as_a_fallback() {
    let mut tables = Tables::default();
    tables.plan(&desired("a", &[1], &[(1, Ready), (2, Draining)]));
    tables.plan(&desired("b", &[2], &[(3, Fallback), (4, Known)]));
    let ready: Vec<_> = (1..=4)
        .filter(|number| tables.is_ready_target([10, 0, 0, *number].into()))
        .collect();
    assert_eq!(ready, [1]);
    tables.plan(&desired("a", &[1], &[(2, Fallback)]));
    assert!(!tables.is_ready_target([10, 0, 0, 1].into()));
}

#[test]
fn ids_are_not_given_twice_even_when_their_owner_went_before_the_restart() {
    let mut tables = Tables::default();
    tables.plan(&desired("a", &[1], &[(1, Ready)]));
    let mut kernel = Kernel {
        cursor: tables.cursor(),
        ..Kernel::default()
    };
    let (service, backend) = kernel.cursor;
    tables = Tables::recover(&kernel.snapshot());
    let plan = tables.plan(&desired("b", &[1], &[(2, Ready)]));
    plan.writes.iter().for_each(|write| kernel.apply(write));
    assert!(kernel.backends.contains_key(&backend));
    assert_eq!(kernel.services[&frontend(1)].id, service);
}

#[test]
fn an_address_that_changes_its_set_within_a_service_is_never_without_one() {
    let mut tables = Tables::default();
    let mut kernel = Kernel::default();
    let local = |frontends: &[u8]| {
        let mut port = desired("a", frontends, &[(2, Ready)]);
        port.key.policy = Policy::Local;
        port
    };
    let steps = [
        vec![local(&[1]), desired("a", &[2], &[(1, Ready), (2, Ready)])],
        vec![desired("a", &[1, 2], &[(1, Ready), (2, Ready)]), local(&[])],
        vec![local(&[1, 2]), desired("a", &[], &[(1, Ready)])],
    ];
    for (step, ports) in steps.into_iter().enumerate() {
        for port in ports {
            let plan = tables.plan(&port);
            assert_eq!(plan.contested, []);
            for write in plan.writes {
                kernel.apply(&write);
                kernel.check();
                let served =
                    step == 0 || (1..=2).all(|it| kernel.services.contains_key(&frontend(it)));
                assert!(served, "step {step}: a frontend is gone after {write:?}");
            }
        }
    }
}

#[test]
fn addresses_that_two_sets_of_a_service_exchange_are_never_without_one() {
    let both = [(1, Ready), (2, Ready)];
    let set = |policy, frontends: &[u8]| {
        let mut port = desired("a", frontends, &both);
        port.key.policy = policy;
        port
    };
    let mut tables = Tables::default();
    let mut kernel = Kernel::default();
    for round in 0..4 {
        let (here, there) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        let mut writes = Writes::default();
        tables.begin();
        for port in [set(Policy::Cluster, &[here]), set(Policy::Local, &[there])] {
            assert_eq!(tables.plan_port(&port, &mut writes), []);
        }
        assert!(!writes.frees_a_frontend(), "round {round}");
        for write in writes.in_order() {
            kernel.apply(&write);
            kernel.check();
            let served = round == 0
                || [1, 2]
                    .map(frontend)
                    .iter()
                    .all(|it| kernel.services.contains_key(it));
            assert!(served, "round {round}: a frontend is gone after {write:?}");
        }
    }
}

#[test]
fn source_ranges_are_there_before_who_asks_for_them_and_go_after() {
    let mut tables = Tables::default();
    let mut port = desired("a", &[1], &[(1, Ready)]);
    port.source_ranges = [
        "198.51.100.0/24".parse().unwrap(),
        "10.0.0.0/8".parse().unwrap(),
    ]
    .into();
    let position = |writes: &[ServiceWrite], wanted: fn(&ServiceWrite) -> bool| {
        writes
            .iter()
            .position(wanted)
            .unwrap_or_else(|| panic!("not in {writes:?}"))
    };
    let writes = tables.plan(&port).writes;
    let put = position(&writes, |write| {
        matches!(write, ServiceWrite::PutRange { .. })
    });
    assert!(
        put < position(&writes, |write| matches!(
            write,
            ServiceWrite::PutService { .. }
        ))
    );
    let mut kernel = Kernel::default();
    writes.iter().for_each(|write| kernel.apply(write));
    assert_eq!(kernel.ranges.len(), 2);
    let mut tables = Tables::recover(&kernel.snapshot());
    port.source_ranges.pop_first();
    for write in tables.plan(&port).writes {
        kernel.apply(&write);
    }
    assert_eq!(
        kernel.ranges.len(),
        1,
        "what a restarted agent finds it also removes"
    );
    tables
        .plan_removal(&port.key)
        .iter()
        .for_each(|write| kernel.apply(write));
    assert!(kernel.ranges.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Set(DesiredPort),
    Remove(PortKey),
    /// The agent dies after so many writes of the next step.
    DieAfter(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![
        Just(Ready),
        Just(Ready),
        Just(Draining),
        Just(Known),
        Just(Fallback)
    ];
    let endpoints = proptest::collection::vec((0u8..8, state), 0..7);
    // Each service has frontends of its own; contested ones have a test of theirs.
    let set = (0u8..3, 1u8..4, endpoints).prop_map(|(service, frontends, endpoints)| {
        let frontends: Vec<_> = (0..frontends).map(|number| service * 10 + number).collect();
        Step::Set(desired(&format!("s{service}"), &frontends, &endpoints))
    });
    prop_oneof![
        6 => set,
        1 => (0u8..3).prop_map(|service| Step::Remove(key(&format!("s{service}")))),
        1 => (0usize..12).prop_map(Step::DieAfter),
    ]
}

proptest! {
    #[test]
    fn any_sequence_ends_in_what_is_desired_and_never_passes_a_broken_state(
        steps in proptest::collection::vec(any_step(), 1..24)
    ) {
        let mut kernel = Kernel::default();
        let mut tables = Tables::recover(&kernel.snapshot());
        let mut model: BTreeMap<PortKey, DesiredPort> = BTreeMap::new();
        let mut dies_after = None;
        for step in steps {
            let writes = match step {
                Step::Set(port) => {
                    let plan = tables.plan(&port);
                    model.insert(port.key.clone(), port);
                    plan.writes
                }
                Step::Remove(key) => {
                    model.remove(&key);
                    tables.plan_removal(&key)
                }
                Step::DieAfter(writes) => {
                    dies_after = Some(writes);
                    continue;
                }
            };
            kernel.cursor = tables.cursor();
            let count = dies_after.unwrap_or(usize::MAX);
            for write in writes.iter().take(count) {
                kernel.apply(write);
                kernel.check();
            }
            if dies_after.take().is_some() {
                let old_ids: HashMap<_, _> = kernel.services.iter().map(|(k, v)| (*k, v.id)).collect();
                tables = Tables::recover(&kernel.snapshot());
                let mut writes: Vec<_> =
                    model.values().flat_map(|port| tables.plan(port).writes).collect();
                writes.extend(tables.plan_removal_of_unclaimed());
                kernel.cursor = tables.cursor();
                for write in &writes {
                    kernel.apply(write);
                    kernel.check();
                }
                for (key, id) in old_ids {
                    let now = kernel.services.get(&key).map(|service| service.id);
                    prop_assert!(now.is_none() || now == Some(id), "an id changed by a restart");
                }
            }
            let mut expected = BTreeMap::new();
            for port in model.values() {
                let with = |states: &[EndpointState]| {
                    port.endpoints
                        .iter()
                        .filter(|(_, state)| states.contains(state))
                        .map(|(backend, _)| *backend)
                        .collect::<BTreeSet<_>>()
                };
                for key in port.frontends.keys() {
                    expected.insert(*key, (with(&[Ready, Fallback]), with(&[Draining])));
                }
            }
            prop_assert_eq!(kernel.meaning(), expected);
            let listed: BTreeSet<_> =
                model.values().flat_map(|port| port.endpoints.keys().copied()).collect();
            let held = |flags: u8| kernel.backends.iter().filter(move |(_, it)| it.flags == flags);
            let held_listed: BTreeSet<_> = held(0).map(|(_, backend)| *backend).collect();
            prop_assert_eq!(held_listed, listed, "backends live as long as a slice lists them");
            let unlisted: BTreeSet<_> = tables.unlisted().into_iter().map(|(id, _)| id).collect();
            let held: BTreeSet<_> = held(backend_flags::UNLISTED).map(|(id, _)| *id).collect();
            prop_assert_eq!(held, unlisted, "and some longer");
        }
    }
}
