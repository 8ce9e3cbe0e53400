//! What one write of a Service demands: addresses and node ports, and the fields that tell of them.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use windlass_api::core::service::{needs_health_check_node_port, needs_node_ports};
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use super::range::{AddressRange, family_of, probe};
use super::{HEADLESS, Item, ServiceAddresses, port_of};
use crate::json::strings;

impl ServiceAddresses {
    /// `ipFamilies` and `ipFamilyPolicy`, as `defaultOnWrite` of upstream's Service storage fills them in.
    pub(super) fn fill_families(&self, spec: &mut Value, errors: &mut Errors) {
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

/// One write's demands.
pub(super) struct Claim<'c> {
    pub(super) addresses: &'c ServiceAddresses,
    pub(super) owner: &'c str,
    /// What the Service has from before.
    pub(super) held: &'c [Item],
    /// What others have according to the store, whatever is known here.
    pub(super) avoid: &'c [Item],
    pub(super) taken: &'c mut Vec<Item>,
}

impl Claim<'_> {
    /// Takes a certain item; answers whether it could be had.
    fn exactly(&mut self, item: Item) -> bool {
        if self.held.contains(&item) || self.taken.contains(&item) {
            return true;
        }
        let mut used = self.addresses.used.lock();
        if self.avoids(item) || !used.is_free(item) {
            return false;
        }
        used.take(item, self.owner);
        self.taken.push(item);
        true
    }

    fn avoids(&self, item: Item) -> bool {
        self.avoid.contains(&item)
    }

    /// Takes the first free of `candidates`.
    fn any(&mut self, candidates: impl Iterator<Item = Item>) -> Option<Item> {
        let mut used = self.addresses.used.lock();
        let mut candidates = candidates.into_iter();
        let free = candidates.find(|item| !self.avoids(*item) && used.is_free(*item))?;
        used.take(free, self.owner);
        self.taken.push(free);
        Some(free)
    }

    fn one_of(&mut self, range: &AddressRange) -> Option<IpAddr> {
        let offsets = probe(1, range.dynamic_start(), range.size);
        match self.any(offsets.map(|offset| Item::Address(range.at(offset)))) {
            Some(Item::Address(address)) => Some(address),
            _ => None,
        }
    }

    pub(super) fn addresses(
        &mut self,
        spec: &mut Value,
        errors: &mut Errors,
    ) -> Result<(), ApiError> {
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
            let ranges = self.addresses.of_family(family);
            if ranges.is_empty() {
                continue;
            }
            let Some(text) = list.get(index) else {
                let found = ranges.iter().find_map(|range| self.one_of(range));
                let Some(address) = found else {
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
            if !ranges.iter().any(|range| range.contains(address)) && !self.held.contains(&item) {
                let why = "the provided network does not match the current range";
                refuse(errors, why);
            } else if !self.exactly(item) {
                refuse(errors, "provided IP is already allocated");
            }
        }
        spec["clusterIP"] = list.first().cloned().unwrap_or_default().into();
        spec["clusterIPs"] = json!(list);
        Ok(())
    }

    pub(super) fn ports(&mut self, spec: &mut Value, errors: &mut Errors) -> Result<(), ApiError> {
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
