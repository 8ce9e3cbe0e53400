//! The cluster that a node's policy tables are made for: the client, the server, many pods that nobody asks, and policies,
//! each different from the others.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use windlass_datapath::PolicyWrite;
use windlass_network::policy::{
    changes::Changes,
    cluster::{Cluster, LocalPod, PodKey, PodSpec},
    labels::Labels,
    spec::{PolicyName, PolicySpec},
    tables::Tables,
};

pub const CLIENT: &str = "client";
pub const SERVER: &str = "server";
const NAMESPACE: &str = "n0";
const NAMESPACES: usize = 50;
/// The policy that a change gives and takes.
const ADMITS: &str = "admits";

pub struct PolicyTables {
    tables: Tables,
    policies: HashMap<PolicyName, PolicySpec>,
    namespaces: HashMap<String, Labels>,
    pods: HashMap<PodKey, PodSpec>,
    local: Vec<LocalPod>,
    pod_networks: BTreeSet<IpNet>,
}

impl PolicyTables {
    /// `asked` are the client and the server, by their names, `local` says which of them are on this node.
    pub fn new(asked: &[(String, Ipv4Addr)], local: &[String], pods: usize) -> Result<Self> {
        let pod = |name: &str, address: Ipv4Addr, app: String| PodSpec {
            uid: name.to_owned(),
            labels: [("app".to_owned(), app)].into(),
            addresses: vec![IpAddr::V4(address)],
            ..PodSpec::default()
        };
        let others = (0..pods).map(|index| {
            let key = PodKey {
                namespace: format!("n{}", index % NAMESPACES),
                name: format!("pod{index}"),
            };
            let address = Ipv4Addr::from_bits(0x0af5_0000 + index as u32);
            let spec = pod(&key.name, address, format!("a{}", index / NAMESPACES % 10));
            (key, spec)
        });
        let asked: Vec<(PodKey, PodSpec)> = asked
            .iter()
            .map(|(name, address)| (key(name), pod(name, *address, name.clone())))
            .collect();
        let local = asked.iter().filter(|(key, _)| local.contains(&key.name));
        let local = local.map(|(key, spec)| LocalPod {
            key: key.clone(),
            addresses: spec.addresses.clone(),
            spec: spec.clone(),
        });
        let pod_networks = "10.244.0.0/15".parse().context("the pods' networks")?;
        Ok(Self {
            tables: Tables::default(),
            policies: HashMap::new(),
            namespaces: (0..NAMESPACES)
                .map(|index| {
                    let team = ("team".to_owned(), format!("t{}", index % 10));
                    (format!("n{index}"), [team].into())
                })
                .collect(),
            local: local.collect(),
            pods: others.chain(asked.iter().cloned()).collect(),
            pod_networks: [pod_networks].into(),
        })
    }

    /// So many policies on both pods, the first of which lets everybody in and out.
    pub fn with_policies(&mut self, count: usize) -> Result<Vec<PolicyWrite>> {
        let both = json!({});
        self.policies = (0..count)
            .map(|index| match index {
                0 => parse("0", &everybody(&both)),
                _ => parse(&index.to_string(), &one_of_many(index, &both)),
            })
            .collect::<Result<_>>()?;
        Ok(self.writes(&Changes::everything()))
    }

    /// So many policies on the server, none of which lets the client in.
    pub fn closed(&mut self, count: usize) -> Result<Vec<PolicyWrite>> {
        let server = json!({ "matchLabels": { "app": SERVER } });
        self.policies = (1..=count)
            .map(|index| parse(&index.to_string(), &one_of_many(index, &server)))
            .collect::<Result<_>>()?;
        Ok(self.writes(&Changes::everything()))
    }

    /// One policy more, which lets the client in.
    pub fn admit(&mut self) -> Result<Vec<PolicyWrite>> {
        let server = json!({ "matchLabels": { "app": SERVER } });
        let (name, policy) = parse(ADMITS, &everybody(&server))?;
        self.policies.insert(name.clone(), policy);
        let changes = Changes {
            policies: [name].into_iter().collect(),
            ..Changes::default()
        };
        Ok(self.writes(&changes))
    }

    fn writes(&mut self, changes: &Changes) -> Vec<PolicyWrite> {
        let cluster = Cluster {
            policies: Cow::Borrowed(&self.policies),
            namespaces: Cow::Borrowed(&self.namespaces),
            pods: Cow::Borrowed(&self.pods),
            local: self.local.clone(),
            pod_networks: self.pod_networks.clone(),
            ..Cluster::default()
        };
        self.tables.plan_changes(&cluster, changes).writes
    }
}

fn key(name: &str) -> PodKey {
    PodKey {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
    }
}

fn parse(name: &str, spec: &Value) -> Result<(PolicyName, PolicySpec)> {
    let policy = json!({ "metadata": { "namespace": NAMESPACE }, "spec": spec });
    let policy: NetworkPolicy = serde_json::from_value(policy).context("a NetworkPolicy")?;
    let name = PolicyName {
        namespace: Some(NAMESPACE.to_owned()),
        name: name.to_owned(),
    };
    Ok((name, PolicySpec::parse(&policy).context("a policy's spec")?))
}

fn everybody(pods: &Value) -> Value {
    json!({
        "podSelector": pods,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "namespaceSelector": {} }] }],
        "egress": [{ "to": [{ "namespaceSelector": {} }] }],
    })
}

fn one_of_many(index: usize, pods: &Value) -> Value {
    let peers = match index % 3 {
        0 => json!([{ "podSelector": { "matchLabels": { "app": format!("a{}", index % 10) } } }]),
        1 => {
            json!([{ "namespaceSelector": { "matchLabels": { "team": format!("t{}", index % 10) } } }])
        }
        _ => json!([{ "ipBlock": { "cidr": format!("10.{}.{}.0/24", index / 250, index % 250) } }]),
    };
    // Never the port that is asked.
    let ports = json!([{ "port": 10_000 + index, "endPort": 10_003 + index }]);
    json!({
        "podSelector": pods,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": peers, "ports": ports }],
        "egress": [{ "to": peers, "ports": ports }],
    })
}
