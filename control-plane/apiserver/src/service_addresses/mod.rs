//! ClusterIPs and node ports: given out when a Service is written, taken back when it goes.
//!
//! What is in use is remembered here and rebuilt from the cache at start. The true copy of addresses is their IPAddress
//! objects (KEP-1880): one is created before its Service is written, and since the store creates a key only once, servers
//! that share a store never give an address twice. Node ports have records of their own for the same reason ([`node_port`]);
//! their true copy are the Services. An [`Allocation`] holds what a write took, and gives it back unless the write succeeded. The lower part of each range is left to explicit
//! requests, so that automatic choices rarely collide with them (KEP-3070, KEP-3668).

mod claim;
mod ip_address;
mod node_port;
mod range;

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::Value;
use windlass_api::core::service::{
    needs_cluster_ip, needs_health_check_node_port, needs_node_ports,
};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::Errors;

use self::claim::Claim;
use self::range::AddressRange;
use crate::cacher::{Cacher, Filter};
use crate::catalog::Endpoint;
use crate::json::strings;
use crate::server::ApiServer;

const HEADLESS: &str = "None";
/// How often another free address is tried when a server beside this one was faster.
const ATTEMPTS: usize = 16;

pub(crate) struct ServiceAddresses {
    /// Those that the server was started with, the primary family first.
    ranges: Vec<AddressRange>,
    /// Those of further ServiceCIDRs that are ready.
    further: Mutex<Vec<AddressRange>>,
    cidrs: Vec<String>,
    ports: RangeInclusive<u16>,
    used: Mutex<Used>,
}

/// Who holds what, as `namespace/name`.
#[derive(Default)]
struct Used {
    addresses: HashMap<IpAddr, String>,
    ports: HashMap<u16, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Address(IpAddr),
    Port(u16),
}

/// What one write has taken, and what it will give back once it has succeeded.
pub(crate) struct Allocation {
    server: Arc<ApiServer>,
    owner: String,
    taken: Vec<Item>,
    /// Whether something in the store tells of them.
    claimed: bool,
    obsolete: Vec<Item>,
}

impl Allocation {
    /// The write succeeded.
    pub(crate) async fn keep(mut self) {
        self.taken.clear();
        self.claimed = false;
        let obsolete = std::mem::take(&mut self.obsolete);
        let owner = std::mem::take(&mut self.owner);
        self.server.give_back(&owner, &obsolete).await;
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if !self.claimed {
            self.server.addresses.release(&taken);
            return;
        }
        let (server, owner) = (self.server.clone(), std::mem::take(&mut self.owner));
        tokio::spawn(async move { server.give_back(&owner, &taken).await });
    }
}

impl ServiceAddresses {
    /// # Errors
    /// Without a range, or with two of one family.
    pub(crate) fn new(ranges: Vec<IpNet>, ports: RangeInclusive<u16>) -> anyhow::Result<Self> {
        let cidrs = ranges.iter().map(|net| net.trunc().to_string()).collect();
        let ranges: Vec<_> = ranges.iter().map(AddressRange::new).collect();
        anyhow::ensure!(!ranges.is_empty(), "a service cluster IP range is needed");
        anyhow::ensure!(
            ranges.len() < 3 && (ranges.len() == 1 || ranges[0].v6 != ranges[1].v6),
            "at most one service cluster IP range per IP family"
        );
        anyhow::ensure!(
            ranges.iter().all(|r| r.size > 1),
            "a service cluster IP range is too small"
        );
        Ok(Self {
            ranges,
            further: Mutex::default(),
            cidrs,
            ports,
            used: Mutex::default(),
        })
    }

    /// The ranges as they were given, the primary family first.
    pub(crate) fn cidrs(&self) -> &[String] {
        &self.cidrs
    }

    /// The address of the `kubernetes` Service.
    pub(crate) fn first(&self) -> IpAddr {
        self.ranges[0].at(1)
    }

    /// Marks what the cached Services hold.
    pub(crate) fn rebuild(&self, services: &Cacher) {
        let Ok(everything) = Filter::new(&services.resource, None, None, None) else {
            return;
        };
        for entry in services.entries(&everything) {
            if let Ok(service) = entry.decode() {
                let mut used = self.used.lock();
                for item in items(&service) {
                    used.take(item, entry.path());
                }
            }
        }
    }

    /// Marks what the cached Services hold and nothing else: for a server that shares its store with others, which give
    /// out and take back as well. What the cache does not show yet, the store knows.
    fn relearn(&self, services: &Cacher) {
        let mut fresh = Used::default();
        if let Ok(everything) = Filter::new(&services.resource, None, None, None) {
            for entry in services.entries(&everything) {
                for item in entry.decode().iter().flat_map(items) {
                    fresh.take(item, entry.path());
                }
            }
        }
        *self.used.lock() = fresh;
    }

    fn release(&self, items: &[Item]) {
        let mut used = self.used.lock();
        for item in items {
            match item {
                Item::Address(address) => drop(used.addresses.remove(address)),
                Item::Port(port) => drop(used.ports.remove(port)),
            }
        }
    }

    /// Everything that addresses of a family may come from.
    fn of_family(&self, family: &str) -> Vec<AddressRange> {
        let further = self.further.lock();
        let all = self.ranges.iter().chain(further.iter());
        all.filter(|range| range.family() == family)
            .cloned()
            .collect()
    }

    /// Fills in what a Service needs and does not have; answers with what was taken, and what is needed no more.
    fn assign(
        &self,
        owner: &str,
        object: &mut Value,
        old: Option<&Value>,
        avoid: &[Item],
    ) -> Result<(Vec<Item>, Vec<Item>), ApiError> {
        let held = old.map(items).unwrap_or_default();
        let mut taken = Vec::new();
        let claim = Claim {
            addresses: self,
            owner,
            held: &held,
            avoid,
            taken: &mut taken,
        };
        if let Err(error) = self.fill(claim, object) {
            self.release(&taken);
            return Err(error);
        }
        let now = items(object);
        let obsolete = held.into_iter().filter(|item| !now.contains(item));
        let obsolete = obsolete.collect();
        Ok((taken, obsolete))
    }

    fn fill(&self, mut claim: Claim<'_>, object: &mut Value) -> Result<(), ApiError> {
        let mut errors = Errors::new();
        let spec = &mut object["spec"];
        self.fill_families(spec, &mut errors);
        if errors.is_empty() && needs_cluster_ip(spec) {
            claim.addresses(spec, &mut errors)?;
        }
        if errors.is_empty() {
            claim.ports(spec, &mut errors)?;
        }
        if errors.is_empty() {
            return Ok(());
        }
        let name = meta::name(object);
        Err(ApiError::invalid("", "Service", name, &errors))
    }
}

impl ApiServer {
    /// Gives a Service what it needs, a changed one what it does not have yet; other kinds nothing.
    ///
    /// # Errors
    /// 422 when what it asks for is taken or outside of the ranges, 500 when nothing is left.
    pub(crate) async fn allocate(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Allocation, ApiError> {
        let mut allocation = Allocation {
            server: self.clone(),
            owner: owner_of(object),
            taken: Vec::new(),
            claimed: false,
            obsolete: Vec::new(),
        };
        if !is_service(endpoint) {
            return Ok(allocation);
        }
        self.learn_addresses().await?;
        let mut avoid = Vec::new();
        for _ in 0..ATTEMPTS {
            let mut filled = object.clone();
            let (taken, obsolete) =
                self.addresses
                    .assign(&allocation.owner, &mut filled, old, &avoid)?;
            allocation.taken.extend(taken);
            let lost = match dry_run {
                true => None,
                false => self.claim(&mut allocation).await?,
            };
            let Some(lost) = lost else {
                allocation.obsolete = obsolete;
                *object = filled;
                return Ok(allocation);
            };
            // What else was taken is given back with it, and asked for again.
            let taken = std::mem::take(&mut allocation.taken);
            allocation.claimed = false;
            self.give_back(&allocation.owner, &taken).await;
            avoid.push(lost);
        }
        Err(ApiError::internal(
            "failed to allocate a serviceIP: others were always faster",
        ))
    }

    /// Takes back what a deleted Service held.
    pub(crate) async fn take_back(self: &Arc<Self>, endpoint: &Endpoint, old: &Value) {
        if is_service(endpoint) {
            self.give_back(&owner_of(old), &items(old)).await;
        }
    }

    /// Before a Service is given something: learns of further ranges, and what other servers over the same store have
    /// given out.
    async fn learn_addresses(&self) -> Result<(), ApiError> {
        self.caches.wait_current().await?;
        if self.caches.store().is_shared()
            && let Some(services) = self.cacher("", "services")
        {
            self.addresses.relearn(&services);
        }
        if let Some(ranges) = self.cacher("networking.k8s.io", "servicecidrs") {
            *self.addresses.further.lock() = further_ranges(&ranges, self.addresses.cidrs());
        }
        Ok(())
    }
}

/// The ranges of ServiceCIDRs that addresses may come from, but for those that are known.
fn further_ranges(cidrs: &Cacher, known: &[String]) -> Vec<AddressRange> {
    let Ok(everything) = Filter::new(&cidrs.resource, None, None, None) else {
        return Vec::new();
    };
    let objects = cidrs.entries(&everything).into_iter();
    let usable = objects.filter_map(|entry| entry.decode().ok()).filter(|o| {
        let conditions = o["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|c| c["type"] == "Ready" && c["status"] == "True");
        !meta::is_deleting(o) && ready.next().is_some()
    });
    let texts = usable.flat_map(|object| strings(&object["spec"]["cidrs"]));
    texts
        .filter(|text| !known.contains(text))
        .filter_map(|text| text.parse().ok())
        .map(|net: IpNet| AddressRange::new(&net))
        .collect()
}

fn owner_of(service: &Value) -> String {
    format!("{}/{}", meta::namespace(service), meta::name(service))
}

impl Used {
    /// Answers whether the item was free or already the owner's.
    fn take(&mut self, item: Item, owner: &str) -> bool {
        let holder = match item {
            Item::Address(address) => self
                .addresses
                .entry(address)
                .or_insert_with(|| owner.to_owned()),
            Item::Port(port) => self.ports.entry(port).or_insert_with(|| owner.to_owned()),
        };
        holder == owner
    }

    fn is_free(&self, item: Item) -> bool {
        match item {
            Item::Address(address) => !self.addresses.contains_key(&address),
            Item::Port(port) => !self.ports.contains_key(&port),
        }
    }
}

fn is_service(endpoint: &Endpoint) -> bool {
    endpoint.group().is_empty() && endpoint.plural() == "services"
}

fn port_of(value: &Value) -> Option<u16> {
    value
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
}

/// What a Service holds.
fn items(service: &Value) -> Vec<Item> {
    let spec = &service["spec"];
    let mut items = Vec::new();
    if needs_cluster_ip(spec) {
        let parsed = strings(&spec["clusterIPs"])
            .into_iter()
            .filter_map(|ip| ip.parse().ok());
        items.extend(parsed.map(Item::Address));
    }
    if needs_node_ports(spec) {
        let ports = spec["ports"].as_array().into_iter().flatten();
        items.extend(
            ports
                .filter_map(|port| port_of(&port["nodePort"]))
                .map(Item::Port),
        );
    }
    if needs_health_check_node_port(spec) {
        items.extend(port_of(&spec["healthCheckNodePort"]).map(Item::Port));
    }
    items
}
