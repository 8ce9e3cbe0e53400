//! ClusterIPs and node ports: given out when a Service is written, taken back when it goes.
//!
//! What is in use is remembered here and rebuilt from the cache at start; the true copy is the Services
//! themselves. An [`Allocation`] holds what a write took, and gives it back unless the write succeeded. The
//! lower part of each range is left to explicit requests, so that automatic choices rarely collide with them
//! (KEP-3070, KEP-3668).

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::{Value, json};
use windlass_api::core::service::{
    needs_cluster_ip, needs_health_check_node_port, needs_node_ports,
};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use crate::cacher::{Cacher, Filter};
use crate::catalog::Endpoint;
use crate::server::ApiServer;

const HEADLESS: &str = "None";
/// Longer than a write takes, from its first step to the cache.
const RECENT: Duration = Duration::from_secs(70);
/// Upstream bounds its bitmaps to this many addresses.
const MAX_ADDRESSES: u128 = 1 << 16;

pub(crate) struct ServiceAddresses {
    ranges: Vec<AddressRange>,
    cidrs: Vec<String>,
    ports: RangeInclusive<u16>,
    used: Mutex<Used>,
}

/// Who holds what, as `namespace/name`.
#[derive(Default)]
struct Used {
    addresses: HashMap<IpAddr, String>,
    ports: HashMap<u16, String>,
    /// Given out here a moment ago: the cache may not show it yet.
    recent: VecDeque<(Instant, Item, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Address(IpAddr),
    Port(u16),
}

/// What one write has taken, and what it will give back once it has succeeded.
pub(crate) struct Allocation<'a> {
    addresses: &'a ServiceAddresses,
    taken: Vec<Item>,
    obsolete: Vec<Item>,
}

impl Allocation<'_> {
    /// The write succeeded.
    pub(crate) fn keep(mut self) {
        self.taken.clear();
        let obsolete = std::mem::take(&mut self.obsolete);
        self.addresses.release(&obsolete);
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        self.addresses.release(&taken);
    }
}

struct AddressRange {
    /// The network's own address.
    base: u128,
    /// Offsets `1..size` may be given out.
    size: u128,
    v6: bool,
}

impl AddressRange {
    fn new(net: &IpNet) -> Self {
        let (base, v6) = match net.network() {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), false),
            IpAddr::V6(ip) => (u128::from(ip), true),
        };
        let bits = net.max_prefix_len() - net.prefix_len();
        let whole = 1u128
            .checked_shl(u32::from(bits))
            .unwrap_or(u128::MAX)
            .min(MAX_ADDRESSES);
        // An IPv4 network's last address is its broadcast address.
        Self {
            base,
            size: if v6 { whole } else { whole.saturating_sub(1) },
            v6,
        }
    }

    fn at(&self, offset: u128) -> IpAddr {
        let number = self.base + offset;
        if self.v6 {
            Ipv6Addr::from(number).into()
        } else {
            Ipv4Addr::from(u32::try_from(number).unwrap_or_default()).into()
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let number = match address {
            IpAddr::V4(ip) if !self.v6 => u128::from(u32::from(ip)),
            IpAddr::V6(ip) if self.v6 => u128::from(ip),
            _ => return false,
        };
        number > self.base && number < self.base + self.size
    }

    /// The first offset that is chosen automatically.
    fn dynamic_start(&self) -> u128 {
        let reserved = (self.size / 16).clamp(16, 256);
        if self.size <= 32 { 1 } else { reserved }
    }

    fn family(&self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }
}

fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "IPv4" }
}

/// `start..end` from a random place on, then round to the start, then `first..start`.
fn probe(first: u128, start: u128, end: u128) -> impl Iterator<Item = u128> {
    let width = end.saturating_sub(start).max(1);
    let from = start + u128::from(rand::random::<u64>()) % width;
    (from..end)
        .chain(start..from.min(end))
        .chain(first..start.min(end))
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

    /// Marks what the cached Services hold, and nothing else but what was given out here just now: for a server that
    /// shares its store with others, which give out and take back as well.
    fn relearn(&self, services: &Cacher) {
        let mut used = self.used.lock();
        let mut recent = std::mem::take(&mut used.recent);
        while recent.front().is_some_and(|(at, ..)| at.elapsed() > RECENT) {
            recent.pop_front();
        }
        let mut fresh = Used::default();
        if let Ok(everything) = Filter::new(&services.resource, None, None, None) {
            for entry in services.entries(&everything) {
                for item in entry.decode().iter().flat_map(items) {
                    fresh.take(item, entry.path());
                }
            }
        }
        for (_, item, owner) in &recent {
            fresh.take(*item, owner);
        }
        fresh.recent = recent;
        *used = fresh;
    }

    /// Gives a new Service what it needs; other kinds nothing.
    ///
    /// # Errors
    /// 422 when what it asks for is taken or outside of the ranges, 500 when nothing is left.
    pub(crate) fn on_create(
        &self,
        endpoint: &Endpoint,
        object: &mut Value,
    ) -> Result<Allocation<'_>, ApiError> {
        self.assign(endpoint, object, None)
    }

    /// The same for a changed Service, which keeps what it has.
    ///
    /// # Errors
    /// As [`on_create`](Self::on_create).
    pub(crate) fn on_update(
        &self,
        endpoint: &Endpoint,
        new: &mut Value,
        old: &Value,
    ) -> Result<Allocation<'_>, ApiError> {
        self.assign(endpoint, new, Some(old))
    }

    /// Takes back what a deleted Service held.
    pub(crate) fn on_delete(&self, endpoint: &Endpoint, old: &Value) {
        if is_service(endpoint) {
            self.release(&items(old));
        }
    }

    fn release(&self, items: &[Item]) {
        let mut used = self.used.lock();
        for item in items {
            match item {
                Item::Address(address) => drop(used.addresses.remove(address)),
                Item::Port(port) => drop(used.ports.remove(port)),
            }
            used.recent.retain(|(_, recent, _)| recent != item);
        }
    }

    fn assign(
        &self,
        endpoint: &Endpoint,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Allocation<'_>, ApiError> {
        let mut allocation = Allocation {
            addresses: self,
            taken: Vec::new(),
            obsolete: Vec::new(),
        };
        if !is_service(endpoint) {
            return Ok(allocation);
        }
        let owner = format!("{}/{}", meta::namespace(object), meta::name(object));
        let held = old.map(items).unwrap_or_default();
        let mut errors = Errors::new();
        let mut claim = Claim {
            addresses: self,
            owner: &owner,
            held: &held,
            taken: &mut allocation.taken,
        };
        self.fill_families(&mut object["spec"], &mut errors);
        if errors.is_empty() && needs_cluster_ip(&object["spec"]) {
            claim.addresses(&mut object["spec"], &mut errors)?;
        }
        if errors.is_empty() {
            claim.ports(&mut object["spec"], &mut errors)?;
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(
                "",
                "Service",
                meta::name(object),
                &errors,
            ));
        }
        let now = items(object);
        allocation.obsolete = held
            .into_iter()
            .filter(|item| !now.contains(item))
            .collect();
        Ok(allocation)
    }

    /// `ipFamilies` and `ipFamilyPolicy`, as `defaultOnWrite` of upstream's Service storage fills them in.
    fn fill_families(&self, spec: &mut Value, errors: &mut Errors) {
        let path = Path::new("spec");
        if spec["type"] == "ExternalName" {
            return;
        }
        let addresses = strings(&spec["clusterIPs"]);
        let headless = addresses.first().is_some_and(|ip| ip == HEADLESS);
        let selectorless = spec["selector"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty);
        let mut families = strings(&spec["ipFamilies"]);
        if families.is_empty() {
            let parsed = addresses.iter().filter_map(|text| text.parse().ok());
            families = parsed.map(|ip: IpAddr| family_of(ip).to_owned()).collect();
        }
        if families.is_empty() {
            families.push(self.ranges[0].family().to_owned());
        }
        if spec["ipFamilyPolicy"].as_str().is_none_or(str::is_empty) {
            let both = families.len() == 2 || (headless && selectorless);
            let policy = if both {
                "RequireDualStack"
            } else {
                "SingleStack"
            };
            spec["ipFamilyPolicy"] = policy.into();
        }
        let policy = spec["ipFamilyPolicy"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let headless_anything = headless && selectorless;
        for (index, family) in families.iter().enumerate() {
            let configured = self.ranges.iter().any(|range| range.family() == family);
            if !configured && !headless_anything {
                let field = path.child("ipFamilies").index(index);
                errors.invalid(&field, family.as_str(), "not configured on this cluster");
            }
        }
        if policy == "RequireDualStack" && self.ranges.len() < 2 && !headless_anything {
            let detail = "this cluster is not configured for dual-stack services";
            errors.invalid(&path.child("ipFamilyPolicy"), policy.as_str(), detail);
        }
        let wants_two =
            policy == "RequireDualStack" || (policy == "PreferDualStack" && self.ranges.len() == 2);
        if wants_two && families.len() == 1 {
            let other = if families[0] == "IPv4" {
                "IPv6"
            } else {
                "IPv4"
            };
            families.push(other.to_owned());
        }
        if policy == "SingleStack" {
            families.truncate(1);
        }
        spec["ipFamilies"] = json!(families);
    }
}

impl ApiServer {
    /// Before a Service is given something: learns what other servers over the same store have given out.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub(crate) async fn learn_addresses(&self, endpoint: &Endpoint) -> Result<(), ApiError> {
        if is_service(endpoint) && self.caches.store().is_shared() {
            self.caches.wait_current().await?;
            if let Some(services) = self.cacher("", "services") {
                self.addresses.relearn(&services);
            }
        }
        Ok(())
    }
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

    fn give(&mut self, item: Item, owner: &str) {
        self.take(item, owner);
        self.recent
            .push_back((Instant::now(), item, owner.to_owned()));
        while self
            .recent
            .front()
            .is_some_and(|(at, ..)| at.elapsed() > RECENT)
        {
            self.recent.pop_front();
        }
    }

    fn is_free(&self, item: Item) -> bool {
        match item {
            Item::Address(address) => !self.addresses.contains_key(&address),
            Item::Port(port) => !self.ports.contains_key(&port),
        }
    }
}

/// One write's demands.
struct Claim<'c> {
    addresses: &'c ServiceAddresses,
    owner: &'c str,
    /// What the Service has from before.
    held: &'c [Item],
    taken: &'c mut Vec<Item>,
}

impl Claim<'_> {
    /// Takes a certain item; answers whether it could be had.
    fn exactly(&mut self, item: Item) -> bool {
        if self.held.contains(&item) || self.taken.contains(&item) {
            return true;
        }
        let mut used = self.addresses.used.lock();
        if !used.is_free(item) {
            return false;
        }
        used.give(item, self.owner);
        self.taken.push(item);
        true
    }

    /// Takes the first free of `candidates`.
    fn any(&mut self, candidates: impl Iterator<Item = Item>) -> Option<Item> {
        let mut used = self.addresses.used.lock();
        let free = candidates.into_iter().find(|item| used.is_free(*item))?;
        used.give(free, self.owner);
        self.taken.push(free);
        Some(free)
    }

    fn addresses(&mut self, spec: &mut Value, errors: &mut Errors) -> Result<(), ApiError> {
        let path = Path::new("spec").child("clusterIPs");
        let mut list = strings(&spec["clusterIPs"]);
        if list.is_empty()
            && let Some(single) = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty())
        {
            list.push(single.to_owned());
        }
        if list.first().is_some_and(|ip| ip == HEADLESS) {
            return Ok(());
        }
        let families = strings(&spec["ipFamilies"]);
        list.truncate(families.len());
        for (index, family) in families.iter().enumerate() {
            let Some(range) = self.addresses.ranges.iter().find(|r| r.family() == family) else {
                continue;
            };
            let Some(text) = list.get(index) else {
                let dynamic = range.dynamic_start();
                let offsets = probe(1, dynamic, range.size);
                let Some(Item::Address(address)) =
                    self.any(offsets.map(|offset| Item::Address(range.at(offset))))
                else {
                    return Err(ApiError::internal(format!(
                        "failed to allocate a serviceIP: range is full ({family})"
                    )));
                };
                list.push(address.to_string());
                continue;
            };
            let refuse = |errors: &mut Errors, why: &str| {
                let detail = format!("failed to allocate IP {text}: {why}");
                errors.invalid(&path, json!([text]), detail);
            };
            let Ok(address) = text.parse::<IpAddr>() else {
                continue;
            };
            let item = Item::Address(address);
            if !range.contains(address) && !self.held.contains(&item) {
                refuse(errors, "the provided IP is not in the valid range");
            } else if !self.exactly(item) {
                refuse(errors, "provided IP is already allocated");
            }
        }
        spec["clusterIP"] = list.first().cloned().unwrap_or_default().into();
        spec["clusterIPs"] = json!(list);
        Ok(())
    }

    fn ports(&mut self, spec: &mut Value, errors: &mut Errors) -> Result<(), ApiError> {
        if needs_node_ports(spec) {
            let mut ports = spec["ports"].as_array().cloned().unwrap_or_default();
            // A number may serve several protocols of the same port.
            let mut by_port: HashMap<i64, u16> = HashMap::new();
            for port in &ports {
                if let (Some(number), Some(node_port)) =
                    (port["port"].as_i64(), port_of(&port["nodePort"]))
                {
                    by_port.entry(number).or_insert(node_port);
                }
            }
            for (index, port) in ports.iter_mut().enumerate() {
                let number = port["port"].as_i64().unwrap_or(0);
                let path = Path::new("spec")
                    .child("ports")
                    .index(index)
                    .child("nodePort");
                let wanted = port_of(&port["nodePort"]).or_else(|| by_port.get(&number).copied());
                let given = self.port(wanted, &path, errors)?;
                if let Some(given) = given {
                    by_port.insert(number, given);
                    port["nodePort"] = given.into();
                }
            }
            spec["ports"] = ports.into();
        }
        if needs_health_check_node_port(spec) {
            let path = Path::new("spec").child("healthCheckNodePort");
            let wanted = port_of(&spec["healthCheckNodePort"]);
            if let Some(given) = self.port(wanted, &path, errors)? {
                spec["healthCheckNodePort"] = given.into();
            }
        }
        Ok(())
    }

    fn port(
        &mut self,
        wanted: Option<u16>,
        path: &Path,
        errors: &mut Errors,
    ) -> Result<Option<u16>, ApiError> {
        let range = self.addresses.ports.clone();
        let Some(wanted) = wanted else {
            let (first, end) = (u128::from(*range.start()), u128::from(*range.end()) + 1);
            let size = end - first;
            let reserved = if size <= 32 {
                0
            } else {
                (size / 32).clamp(16, 128)
            };
            let offsets = probe(first, first + reserved, end);
            let numbers = offsets.filter_map(|n| u16::try_from(n).ok());
            return match self.any(numbers.map(Item::Port)) {
                Some(Item::Port(port)) => Ok(Some(port)),
                _ => Err(ApiError::internal(
                    "failed to allocate a nodePort: range is full",
                )),
            };
        };
        let item = Item::Port(wanted);
        if !range.contains(&wanted) && !self.held.contains(&item) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            errors.invalid(path, wanted, detail);
        } else if !self.exactly(item) {
            errors.invalid(path, wanted, "provided port is already allocated");
        } else {
            return Ok(Some(wanted));
        }
        Ok(None)
    }
}

fn is_service(endpoint: &Endpoint) -> bool {
    endpoint.group().is_empty() && endpoint.plural() == "services"
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
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
