//! The agent's decisions about one Service, without its watches: objects as the API has them, compiled and
//! written as the agent does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};
use windlass_datapath::{GoneBackends, ServiceWrite};
use windlass_network::services::{
    ServiceName, ServiceSpec, SliceSpec, compile::compile, tables::Tables,
};

use crate::world::{VIP_V4, VIP_V6, World};

pub const NODE: &str = "this-node";
pub const NODE_PORT: u16 = 30_080;
pub const BALANCED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const BALANCED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// A host behind the uplink that is another node of the cluster.
pub const OTHER: [u8; 4] = [192, 0, 2, 3];

pub struct Agent<'a> {
    world: &'a World,
    tables: Tables,
    /// Where the endpoints listen.
    pub target: u16,
}

impl<'a> Agent<'a> {
    /// Goes on from what the kernel holds.
    pub fn new(world: &'a World) -> Self {
        let snapshot = world.datapath().services().snapshot().expect("reading");
        Self {
            world,
            tables: Tables::recover(&snapshot),
            target: 8080,
        }
    }

    /// Brings the datapath to what the Service `web` and its slices, one of each family, say, and ends what has lost
    /// its backend.
    pub fn apply(&mut self, spec: Value, endpoints: &[Value]) -> Vec<ServiceWrite> {
        self.apply_to("web", spec, endpoints)
    }

    /// The same of another Service. One that a proxy has nothing to do for is as good as none.
    pub fn apply_to(&mut self, name: &str, spec: Value, endpoints: &[Value]) -> Vec<ServiceWrite> {
        let families = spec["clusterIPs"].as_array().map_or(0, Vec::len);
        let ingress = [json!({"ip": BALANCED_V4}), json!({"ip": BALANCED_V6})];
        let balanced = match spec["type"] == "LoadBalancer" {
            true => &ingress[..families],
            false => &[],
        };
        let service = serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": name}, "spec": spec,
            "status": {"loadBalancer": {"ingress": balanced}},
        }));
        let name = ServiceName::new("d", name);
        let spec = ServiceSpec::parse(&service.expect("a Service"));
        let ports = spec.map_or_else(Vec::new, |spec| {
            let slices = [true, false].map(|is_v4| slice(is_v4, &spec, self.target, endpoints));
            compile(&name, &spec, &slices.each_ref(), None)
        });
        let mut writes = Vec::new();
        for port in &ports {
            writes.extend(self.tables.plan(port).writes);
        }
        for key in self.tables.ports_of(&name) {
            if !ports.iter().any(|port| port.key == key) {
                writes.extend(self.tables.plan_removal(&key));
            }
        }
        writes.extend(self.tables.plan_removal_of_unclaimed());
        self.write(&writes);
        writes
    }

    /// The Service `web` is deleted.
    pub fn remove(&mut self) {
        self.apply_to(
            "web",
            json!({"type": "ExternalName", "externalName": "example.org"}),
            &[],
        );
    }

    /// It is told which addresses pods have.
    pub fn told_of_pods(&mut self, living: &[IpAddr]) {
        let writes = self
            .tables
            .forget_departed(|address| Some(living.contains(&address)));
        self.write(&writes);
    }

    /// How many backends no Service lists.
    pub fn unlisted(&self) -> usize {
        self.tables.unlisted().len()
    }

    fn write(&self, writes: &[ServiceWrite]) {
        let datapath = self.world.datapath();
        datapath.services().apply(writes).expect("writing");
        let mut gone = GoneBackends::default();
        gone.note(writes);
        if !gone.is_empty() {
            let closed = self.world.node.run(|| datapath.close_sockets(&gone));
            closed.expect("closing sockets");
            datapath.collect_garbage().expect("collecting");
        }
    }
}

fn slice(is_v4: bool, spec: &ServiceSpec, target: u16, endpoints: &[Value]) -> SliceSpec {
    let of_family = |endpoint: &&Value| {
        let address = endpoint["addresses"][0].as_str().expect("an address");
        address.contains(':') != is_v4
    };
    let protocol = |number| if number == 17 { "UDP" } else { "TCP" };
    let ports = spec.ports.iter().map(
        |port| json!({"name": port.name, "protocol": protocol(port.protocol), "port": target}),
    );
    let slice = serde_json::from_value(json!({
        "addressType": if is_v4 { "IPv4" } else { "IPv6" },
        "metadata": {"namespace": "d", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.iter().filter(of_family).collect::<Vec<_>>(),
    }));
    SliceSpec::parse(&slice.expect("a slice"), NODE)
}

/// A balanced Service of one TCP port and one family.
pub fn spec(policy: &str) -> Value {
    json!({
        "type": "LoadBalancer", "clusterIP": VIP_V4, "clusterIPs": [VIP_V4],
        "externalTrafficPolicy": policy, "ports": [{"port": 80, "nodePort": NODE_PORT}],
    })
}

/// The same of both families, by TCP and by UDP.
pub fn dual_spec(policy: &str) -> Value {
    json!({
        "type": "LoadBalancer", "clusterIP": VIP_V4, "clusterIPs": [VIP_V4, VIP_V6],
        "externalTrafficPolicy": policy, "ports": [
            {"name": "tcp", "port": 80, "nodePort": NODE_PORT},
            {"name": "udp", "port": 80, "nodePort": NODE_PORT, "protocol": "UDP"},
        ],
    })
}

pub fn endpoint(address: impl Into<IpAddr>, node: &str) -> Value {
    json!({"addresses": [address.into().to_string()], "nodeName": node})
}
