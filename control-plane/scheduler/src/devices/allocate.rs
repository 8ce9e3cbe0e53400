//! Which devices the claims of a pod get on a node: the first choice that gives every request its devices and keeps
//! every constraint. Requests depend on each other (a device is given once; constraints tie several together), so a
//! choice that leads nowhere is taken back and the next is tried.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceConstraint, DeviceRequest, DeviceSelector, DeviceToleration,
    ResourceClaim, ResourceSlice,
};
use windlass_machinery::quantity::Quantity;

use super::{
    DeviceId, Inventory, MOST,
    offers::{Offer, current, offers},
    outcome,
    rules::{attribute, concerns, repels},
    selector,
};
use crate::node::NodeInfo;

/// Choices that are tried for one pod on one node. Nobody else is scheduled meanwhile.
const PATIENCE: u32 = 50_000;
const CANNOT: &str = "cannot allocate all claims";

/// One way to satisfy a request.
pub(super) struct Way {
    /// As results name it: `request` or `request/subrequest`.
    name: String,
    pub(super) class: String,
    /// Indexes of the offers that its class and its own expressions select.
    candidates: Vec<usize>,
    /// None: all that there are.
    count: Option<usize>,
    admin: bool,
    pub(super) tolerations: Vec<DeviceToleration>,
}

/// A claim that is to be satisfied.
pub(super) struct Wish {
    pub(super) claim: Arc<ResourceClaim>,
    /// The ways of each request.
    requests: Vec<Vec<Way>>,
    constraints: Vec<DeviceConstraint>,
}

impl Wish {
    pub(super) fn way(&self, name: &str) -> Option<&Way> {
        self.requests.iter().flatten().find(|way| way.name == name)
    }
}

/// Gives every claim its devices on the node, in the order of the claims.
pub(super) fn allocate(
    inventory: &Inventory,
    claims: &[Arc<ResourceClaim>],
    node: &NodeInfo,
) -> Result<Vec<AllocationResult>, String> {
    let slices = current(&inventory.slices);
    let offers = offers(&slices, node);
    let mut choosing = Choosing::new(inventory, &slices, &offers);
    let mut wishes = Vec::new();
    for claim in claims {
        wishes.push(choosing.wish(claim)?);
    }
    match choosing.serve(&wishes, 0, 0) {
        true => Ok(wishes
            .iter()
            .enumerate()
            .map(|(number, wish)| outcome::of(inventory, wish, &choosing.given(number), node))
            .collect()),
        false => Err(CANNOT.to_owned()),
    }
}

/// A device that is given to a request, for now.
pub(super) struct Taken {
    /// The number of the claim.
    wish: usize,
    /// As the way is named.
    pub(super) name: String,
    offer: usize,
    pub(super) admin: bool,
}

struct Choosing<'a> {
    inventory: &'a Inventory,
    offers: &'a [Offer],
    seen: Vec<kube_cel::cel::Value>,
    used: HashSet<&'a DeviceId>,
    /// What is left of counters that devices of a pool share.
    counters: HashMap<CounterId, i128>,
    taken: Vec<Taken>,
    tried: u32,
}

/// Driver, pool, set, counter.
type CounterId = (String, String, String, String);

impl<'a> Choosing<'a> {
    fn new(inventory: &'a Inventory, slices: &[Arc<ResourceSlice>], offers: &'a [Offer]) -> Self {
        let seen = offers
            .iter()
            .map(|offer| selector::described(&offer.id.driver, offer.device()));
        let mut choosing = Self {
            inventory,
            offers,
            seen: seen.collect(),
            used: inventory.in_use.iter().collect(),
            counters: counters(slices),
            taken: Vec::new(),
            tried: 0,
        };
        for slice in slices {
            for device in slice.spec.devices.iter().flatten() {
                let id = DeviceId {
                    driver: slice.spec.driver.clone(),
                    pool: slice.spec.pool.name.clone(),
                    device: device.name.clone(),
                };
                if inventory.in_use.contains(&id) {
                    choosing.count(&id, device, -1);
                }
            }
        }
        choosing
    }

    fn wish(&self, claim: &Arc<ResourceClaim>) -> Result<Wish, String> {
        let devices = claim.spec.devices.clone().unwrap_or_default();
        let mut requests = Vec::new();
        for request in devices.requests.iter().flatten() {
            requests.push(self.ways(request)?);
        }
        Ok(Wish {
            claim: Arc::clone(claim),
            requests,
            constraints: devices.constraints.unwrap_or_default(),
        })
    }

    fn ways(&self, request: &DeviceRequest) -> Result<Vec<Way>, String> {
        let way = |name: String,
                   class: &str,
                   selectors: Option<&Vec<DeviceSelector>>,
                   mode: Option<&str>,
                   count: Option<i64>,
                   admin: bool,
                   tolerations: Option<&Vec<DeviceToleration>>| {
            let candidates = self.candidates(&name, class, selectors)?;
            let count = usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX);
            Ok::<_, String>(Way {
                name,
                class: class.to_owned(),
                candidates,
                count: (mode != Some("All")).then_some(count),
                admin,
                tolerations: tolerations.cloned().unwrap_or_default(),
            })
        };
        if let Some(exactly) = &request.exactly {
            return Ok(vec![way(
                request.name.clone(),
                &exactly.device_class_name,
                exactly.selectors.as_ref(),
                exactly.allocation_mode.as_deref(),
                exactly.count,
                exactly.admin_access == Some(true),
                exactly.tolerations.as_ref(),
            )?]);
        }
        let ranked = request.first_available.iter().flatten();
        ranked
            .map(|sub| {
                way(
                    format!("{}/{}", request.name, sub.name),
                    &sub.device_class_name,
                    sub.selectors.as_ref(),
                    sub.allocation_mode.as_deref(),
                    sub.count,
                    false,
                    sub.tolerations.as_ref(),
                )
            })
            .collect()
    }

    /// The offers that a class and a request's own expressions select.
    fn candidates(
        &self,
        request: &str,
        class: &str,
        selectors: Option<&Vec<DeviceSelector>>,
    ) -> Result<Vec<usize>, String> {
        let Some(found) = self.inventory.classes.get(class) else {
            return Err(format!(
                "request {request}: device class {class} does not exist"
            ));
        };
        let of_class = found.spec.selectors.iter().flatten();
        let all = of_class.chain(selectors.into_iter().flatten());
        let expressions: Vec<&str> = all
            .filter_map(|selector| Some(selector.cel.as_ref()?.expression.as_str()))
            .collect();
        let mut chosen = Vec::new();
        for (index, seen) in self.seen.iter().enumerate() {
            let mut verdict = true;
            for expression in &expressions {
                verdict = selector::matches(expression, seen)
                    .map_err(|error| format!("request {request}: selector: {error}"))?;
                if !verdict {
                    break;
                }
            }
            if verdict {
                chosen.push(index);
            }
        }
        Ok(chosen)
    }

    /// Satisfies the requests from this one on.
    fn serve(&mut self, wishes: &[Wish], wish: usize, request: usize) -> bool {
        let Some(current) = wishes.get(wish) else {
            return true;
        };
        let Some(ways) = current.requests.get(request) else {
            return self.serve(wishes, wish + 1, 0);
        };
        ways.iter().any(|way| match way.count {
            Some(count) => self.choose(wishes, wish, request, way, 0, count),
            None => self.take_all(wishes, wish, request, way),
        })
    }

    /// Takes so many more of the candidates, from this one on, and goes on.
    fn choose(
        &mut self,
        wishes: &[Wish],
        wish: usize,
        request: usize,
        way: &Way,
        from: usize,
        count: usize,
    ) -> bool {
        if count == 0 {
            return self.serve(wishes, wish, request + 1);
        }
        for at in from..way.candidates.len() {
            self.tried += 1;
            if self.tried > PATIENCE {
                return false;
            }
            if self.take(wishes, wish, way, way.candidates[at]) {
                if self.choose(wishes, wish, request, way, at + 1, count - 1) {
                    return true;
                }
                self.give_back();
            }
        }
        false
    }

    fn take_all(&mut self, wishes: &[Wish], wish: usize, request: usize, way: &Way) -> bool {
        let before = self.taken.len();
        let all = way
            .candidates
            .iter()
            .all(|&offer| self.take(wishes, wish, way, offer));
        if all && !way.candidates.is_empty() && self.serve(wishes, wish, request + 1) {
            return true;
        }
        while self.taken.len() > before {
            self.give_back();
        }
        false
    }

    /// Takes a device, if it is free and suits what was taken so far.
    fn take(&mut self, wishes: &[Wish], wish: usize, way: &Way, offer: usize) -> bool {
        let offers = self.offers;
        let found = &offers[offer];
        let device = found.device();
        let of_claim = self.taken.iter().filter(|taken| taken.wish == wish).count();
        let tainted = device
            .taints
            .iter()
            .flatten()
            .any(|taint| repels(taint, &way.tolerations));
        if of_claim >= MOST || tainted || !self.keeps(&wishes[wish], wish, way, found) {
            return false;
        }
        if !way.admin {
            if self.used.contains(&found.id) || !self.count(&found.id, device, -1) {
                return false;
            }
            self.used.insert(&found.id);
        }
        self.taken.push(Taken {
            wish,
            name: way.name.clone(),
            offer,
            admin: way.admin,
        });
        true
    }

    fn give_back(&mut self) {
        let Some(taken) = self.taken.pop() else {
            return;
        };
        let offers = self.offers;
        let found = &offers[taken.offer];
        if !taken.admin {
            self.used.remove(&found.id);
            self.count(&found.id, found.device(), 1);
        }
    }

    /// Takes what a device consumes off the counters, or puts it back; whether there was enough.
    fn count(&mut self, id: &DeviceId, device: &Device, sign: i128) -> bool {
        let mut needs = Vec::new();
        for consumption in device.consumes_counters.iter().flatten() {
            for (name, counter) in &consumption.counters {
                let amount = Quantity::parse(&counter.value.0).map_or(0, |amount| amount.value());
                let set = consumption.counter_set.clone();
                let key = (id.driver.clone(), id.pool.clone(), set, name.clone());
                needs.push((key, i128::from(amount) * sign));
            }
        }
        let in_use = self.inventory.in_use.contains(id);
        let enough = needs.iter().all(|(key, change)| {
            let left = self.counters.get(key).copied().unwrap_or(0);
            left + change >= 0
        });
        // What is in use was counted by whoever gave it.
        if !enough && !in_use {
            return false;
        }
        for (key, change) in needs {
            *self.counters.entry(key).or_insert(0) += change;
        }
        true
    }

    /// Whether the claim's constraints allow the device beside what the claim has so far.
    fn keeps(&self, wish: &Wish, number: usize, way: &Way, found: &Offer) -> bool {
        wish.constraints.iter().all(|constraint| {
            if !concerns(constraint, &way.name) {
                return true;
            }
            let others = self
                .taken
                .iter()
                .filter(|taken| taken.wish == number && concerns(constraint, &taken.name));
            let mut others = others.map(|taken| &self.offers[taken.offer]);
            if let Some(name) = &constraint.match_attribute {
                let own = attribute(found, name);
                return own.is_some() && others.all(|other| attribute(other, name) == own);
            }
            if let Some(name) = &constraint.distinct_attribute {
                let own = attribute(found, name);
                return own.is_some() && others.all(|other| attribute(other, name) != own);
            }
            // A constraint that is not known cannot be kept.
            false
        })
    }

    fn given(&self, wish: usize) -> Vec<(&Taken, &Offer)> {
        let own = self.taken.iter().filter(|taken| taken.wish == wish);
        own.map(|taken| (taken, &self.offers[taken.offer]))
            .collect()
    }
}

fn counters(slices: &[Arc<ResourceSlice>]) -> HashMap<CounterId, i128> {
    let mut counters = HashMap::new();
    for slice in slices {
        for set in slice.spec.shared_counters.iter().flatten() {
            for (name, counter) in &set.counters {
                let amount = Quantity::parse(&counter.value.0).map_or(0, |amount| amount.value());
                let pool = slice.spec.pool.name.clone();
                let key = (
                    slice.spec.driver.clone(),
                    pool,
                    set.name.clone(),
                    name.clone(),
                );
                counters.insert(key, i128::from(amount));
            }
        }
    }
    counters
}

#[cfg(test)]
mod tests;
