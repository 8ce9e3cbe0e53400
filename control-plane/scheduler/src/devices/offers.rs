//! What a node is offered: the devices of all pools that reach it.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::NodeSelector,
    resource::v1::{Device, ResourceSlice},
};
use windlass_informers::placement::term_matches;

use crate::node::NodeInfo;

/// A device, in the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DeviceId {
    pub(crate) driver: String,
    pub(crate) pool: String,
    pub(crate) device: String,
}

/// A device that reaches a node.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) id: DeviceId,
    pub(super) slice: Arc<ResourceSlice>,
    index: usize,
}

impl Offer {
    pub(super) fn device(&self) -> &Device {
        let devices = self.slice.spec.devices.as_deref().unwrap_or_default();
        &devices[self.index]
    }

    /// The nodes that reach it, as far as it says.
    pub(super) fn node_name(&self) -> Option<&str> {
        match self.slice.spec.per_device_node_selection {
            Some(true) => self.device().node_name.as_deref(),
            _ => self.slice.spec.node_name.as_deref(),
        }
        .filter(|name| !name.is_empty())
    }

    pub(super) fn node_selector(&self) -> Option<&NodeSelector> {
        match self.slice.spec.per_device_node_selection {
            Some(true) => self.device().node_selector.as_ref(),
            _ => self.slice.spec.node_selector.as_ref(),
        }
    }

    fn reaches(&self, node: &NodeInfo) -> bool {
        if let Some(name) = self.node_name() {
            return name == node.name;
        }
        if let Some(selector) = self.node_selector() {
            let mut terms = selector.node_selector_terms.iter();
            return terms.any(|term| term_matches(term, &node.name, node.labels()));
        }
        match self.slice.spec.per_device_node_selection {
            Some(true) => self.device().all_nodes == Some(true),
            _ => self.slice.spec.all_nodes == Some(true),
        }
    }
}

/// The newest slices of each pool, of pools that are whole: one that is being published anew may still lack devices
/// that are in use elsewhere.
pub(super) fn current(slices: &[Arc<ResourceSlice>]) -> Vec<Arc<ResourceSlice>> {
    let mut pools: HashMap<(&str, &str), Vec<&Arc<ResourceSlice>>> = HashMap::new();
    for slice in slices {
        let spec = &slice.spec;
        let pool = pools.entry((&spec.driver, &spec.pool.name)).or_default();
        let newest = pool.first().map(|known| known.spec.pool.generation);
        if newest.is_some_and(|newest| newest > spec.pool.generation) {
            continue;
        }
        if newest.is_some_and(|newest| newest < spec.pool.generation) {
            pool.clear();
        }
        pool.push(slice);
    }
    let whole = |pool: &Vec<&Arc<ResourceSlice>>| {
        let promised = pool
            .first()
            .map_or(0, |slice| slice.spec.pool.resource_slice_count);
        usize::try_from(promised).is_ok_and(|promised| promised <= pool.len())
    };
    let mut found: Vec<_> = pools
        .into_values()
        .filter(whole)
        .flatten()
        .cloned()
        .collect();
    found.sort_by(|a, b| {
        let order = |slice: &ResourceSlice| {
            let spec = &slice.spec;
            (
                spec.driver.clone(),
                spec.pool.name.clone(),
                slice.metadata.name.clone(),
            )
        };
        order(a).cmp(&order(b))
    });
    found
}

/// All devices that reach a node.
pub(super) fn offers(slices: &[Arc<ResourceSlice>], node: &NodeInfo) -> Vec<Offer> {
    let mut found = Vec::new();
    for slice in slices {
        let devices = slice.spec.devices.as_deref().unwrap_or_default();
        let of_slice = devices.iter().enumerate().map(|(index, device)| Offer {
            id: DeviceId {
                driver: slice.spec.driver.clone(),
                pool: slice.spec.pool.name.clone(),
                device: device.name.clone(),
            },
            slice: Arc::clone(slice),
            index,
        });
        found.extend(of_slice.filter(|offer| offer.reaches(node)));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::tests::node;

    fn slice(
        name: &str,
        generation: i64,
        count: i64,
        more: serde_json::Value,
    ) -> Arc<ResourceSlice> {
        let mut spec = json!({"driver": "d", "devices": [{"name": name}],
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": count}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let slice = json!({"metadata": {"name": name}, "spec": spec});
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn names(slices: &[Arc<ResourceSlice>], on: &NodeInfo) -> Vec<String> {
        let found = offers(&current(slices), on).into_iter();
        found.map(|offer| offer.id.device).collect()
    }

    #[test]
    fn the_newest_whole_generation_of_a_pool_counts() {
        let here = node("n", json!({}), json!({}), &[]);
        let all = json!({"allNodes": true});
        let old = slice("old", 1, 1, all.clone());
        let new = slice("new", 2, 2, all.clone());
        assert_eq!(names(std::slice::from_ref(&old), &here), ["old"]);
        assert!(
            names(&[old.clone(), new.clone()], &here).is_empty(),
            "one is still to come"
        );
        let rest = slice("rest", 2, 2, all);
        assert_eq!(names(&[new, old, rest], &here), ["new", "rest"]);
    }

    #[test]
    fn devices_reach_the_nodes_that_they_name_or_select() {
        let here = node("n", json!({"zone": "a"}), json!({}), &[]);
        let there = node("m", json!({}), json!({}), &[]);
        let local = [slice("x", 1, 1, json!({"nodeName": "n"}))];
        assert_eq!(
            (names(&local, &here).len(), names(&local, &there).len()),
            (1, 0)
        );
        let selector = json!({"nodeSelectorTerms": [{"matchExpressions":
            [{"key": "zone", "operator": "In", "values": ["a"]}]}]});
        let zonal = [slice("x", 1, 1, json!({"nodeSelector": selector}))];
        assert_eq!(
            (names(&zonal, &here).len(), names(&zonal, &there).len()),
            (1, 0)
        );
        let each = json!({"perDeviceNodeSelection": true, "devices": [
            {"name": "a", "nodeName": "n"}, {"name": "b", "nodeName": "m"}, {"name": "c", "allNodes": true}]});
        let mixed = [slice("x", 1, 1, each)];
        assert_eq!(names(&mixed, &here), ["a", "c"]);
    }
}
