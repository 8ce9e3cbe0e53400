//! What policies cost: a packet, at any number of them, and a change, in a large cluster.
//!
//! `cargo xtask test datapath -- --ignored policy_cost --nocapture`

use std::{
    borrow::Cow,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use k8s_openapi::serde_json::{self, Value, json};
use windlass_datapath::Capacities;
use windlass_network::policy::{
    changes::Changes,
    cluster::{Cluster, LocalPod, PodKey, PodSpec},
    labels::Labels,
    spec::{PolicyName, PolicySpec},
    tables::Tables,
};

use crate::{
    wire::{ipv4, tcp_v4},
    world::World,
};

const REPEAT: u32 = 100_000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const GRE: u8 = 47;

fn parse(index: usize, namespace: &str, spec: &Value) -> (PolicyName, PolicySpec) {
    let policy = json!({"metadata": {"namespace": namespace}, "spec": spec});
    let policy = serde_json::from_value(policy).expect("a NetworkPolicy");
    let name = PolicyName {
        namespace: Some(namespace.to_owned()),
        name: format!("p{index}"),
    };
    (name, PolicySpec::parse(&policy).expect("a spec"))
}

/// One of many policies, each different.
fn spec(index: usize, pods: &Value) -> Value {
    let peers = match index % 3 {
        0 => json!([{"podSelector": {"matchLabels": {"app": format!("a{}", index % 100)}}}]),
        1 => json!([{"namespaceSelector": {"matchLabels": {"team": format!("t{}", index % 10)}}}]),
        _ => json!([{"ipBlock": {"cidr": format!("10.{}.{}.0/24", index / 250, index % 250)}}]),
    };
    let ports = json!([{"port": 1_000 + index, "endPort": 1_003 + index}]);
    json!({
        "podSelector": pods,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": ports}],
        "egress": [{"to": peers, "ports": ports}],
    })
}

#[test]
#[ignore = "a measurement: meaningful on a quiet machine only"]
fn policy_cost_of_a_packet() {
    let world = World::with_capacities(2, Capacities::default());
    let (a, b) = (&world.pods[0], &world.pods[1]);
    let ifindex = world.node.ifindex("wlpod0");
    let mut tables = Tables::default();
    for count in [0, 1, 10, 100, 1_000] {
        // All of them select both pods; a last one allows what is measured.
        let all = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {}}]}],
            "egress": [{"to": [{"namespaceSelector": {}}]}]});
        let policies = (0..count).map(|index| match index {
            0 => parse(index, "x", &all),
            _ => parse(index, "x", &spec(index, &json!({}))),
        });
        let local = [a, b].map(|pod| LocalPod {
            key: PodKey {
                namespace: "x".into(),
                name: pod.ns.name.clone(),
            },
            addresses: vec![pod.v4.into()],
            spec: PodSpec {
                labels: [("app".to_owned(), pod.ns.name.clone())].into(),
                ..PodSpec::default()
            },
        });
        let cluster = Cluster {
            policies: Cow::Owned(policies.collect()),
            namespaces: Cow::Owned([("x".to_owned(), Labels::new())].into()),
            local: local.into(),
            ..Cluster::default()
        };
        let writes = tables.plan(&cluster).writes;
        let datapath = world.datapath();
        datapath
            .policy()
            .apply(&writes)
            .expect("writing the policies");
        let time = |packet: &[u8]| {
            let runs = (0..5).map(|_| datapath.time_run("from_pod", packet, ifindex, REPEAT));
            let times: Vec<Duration> = runs.map(|time| time.expect("a run")).collect();
            times.into_iter().min().unwrap_or_default()
        };
        // Judged anew each time, at both ends: nothing tracks it.
        let first = time(&ipv4(a.v4, b.v4, GRE, 0, &[0; 40]));
        let open = tcp_v4(a.v4, b.v4, (40_000, 80), SYN, 0);
        datapath
            .test_run("from_pod", &open, ifindex)
            .expect("a run");
        let known = time(&tcp_v4(a.v4, b.v4, (40_000, 80), ACK, 0));
        println!("{count:>5} policies: judged {first:?}, of a known connection {known:?}");
    }
}

#[test]
#[ignore = "a measurement: meaningful on a quiet machine only"]
fn policy_cost_of_a_change() {
    const PODS: usize = 10_000;
    const LOCAL: usize = 110;
    const NAMESPACES: usize = 50;
    let address = |index: usize| IpAddr::from(Ipv4Addr::from(0x0af4_0000 + index as u32));
    let key = |index: usize| PodKey {
        namespace: format!("n{}", index % NAMESPACES),
        name: format!("pod{index}"),
    };
    let pod = |index: usize| PodSpec {
        uid: index.to_string(),
        labels: [("app".to_owned(), format!("a{}", index / NAMESPACES % 10))].into(),
        addresses: vec![address(index)],
        ..PodSpec::default()
    };
    let mut pods: HashMap<PodKey, PodSpec> = (0..PODS).map(|it| (key(it), pod(it))).collect();
    let namespaces: HashMap<String, Labels> = (0..NAMESPACES)
        .map(|it| {
            (
                format!("n{it}"),
                [("team".to_owned(), format!("t{}", it % 10))].into(),
            )
        })
        .collect();
    let mut policies: HashMap<PolicyName, PolicySpec> = (0..1_000)
        .map(|index| {
            let of = json!({"matchLabels": {"app": format!("a{}", index / NAMESPACES % 10)}});
            parse(
                index,
                &format!("n{}", index % NAMESPACES),
                &spec(index, &of),
            )
        })
        .collect();
    let mut tables = Tables::default();
    let mut step =
        |what: &str, pods: &HashMap<_, _>, policies: &HashMap<_, _>, changes: Changes| {
            let cluster = Cluster {
                policies: Cow::Borrowed(policies),
                namespaces: Cow::Borrowed(&namespaces),
                pods: Cow::Borrowed(pods),
                local: (0..LOCAL)
                    .map(|index| LocalPod {
                        key: key(index),
                        addresses: vec![address(index)],
                        spec: pod(index),
                    })
                    .collect(),
                pod_networks: ["10.244.0.0/16".parse().expect("a network")].into(),
                ..Cluster::default()
            };
            let started = Instant::now();
            let writes = tables.plan_changes(&cluster, &changes).writes;
            let planned = started.elapsed();
            // The small maps of a test would not take the first of these.
            println!("{what}: {} writes, planned in {planned:?}", writes.len());
        };
    step("everything", &pods, &policies, Changes::everything());
    step("nothing", &pods, &policies, Changes::default());
    for index in PODS..PODS + 3 {
        pods.insert(key(index), pod(index));
        let changes = Changes {
            pods: [key(index)].into_iter().collect(),
            ..Changes::default()
        };
        step("a pod more", &pods, &policies, changes);
    }
    for index in 1_000..1_003 {
        let of = json!({"matchLabels": {"app": "a0"}});
        let (name, policy) = parse(index, "n0", &spec(index, &of));
        policies.insert(name.clone(), policy);
        let changes = Changes {
            policies: [name].into_iter().collect(),
            ..Changes::default()
        };
        step("a policy more", &pods, &policies, changes);
    }
}
