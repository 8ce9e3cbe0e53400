//! Which EndpointSlices to create, change and delete so that they hold exactly the wanted endpoints, with
//! as few writes as possible: every write is sent to every node.
//!
//! Endpoints stay in the slice that they are in. New ones fill slices that change anyway, then one that
//! has room for all of the rest, then new slices; slices are never rebalanced for neatness.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

/// Upstream's `--max-endpoints-per-slice`.
pub(crate) const MAX_ENDPOINTS: usize = 100;

/// The wanted endpoints of one address type that share their ports, by an identity that outlives
/// changes of the endpoint (the pod's uid).
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
}

/// The writes that bring slices to what is wanted.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) create: Vec<(Vec<EndpointPort>, Vec<Endpoint>)>,
    /// The slice as it is, and its new endpoints (and ports).
    pub(crate) update: Vec<(usize, Vec<EndpointPort>, Vec<Endpoint>)>,
    /// Kept as they are; labels may still need a write.
    pub(crate) keep: Vec<usize>,
    pub(crate) delete: Vec<usize>,
}

/// What identifies an endpoint across versions of its slice.
pub(crate) fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone());
    let address = endpoint.addresses.first().cloned().unwrap_or_default();
    format!("{}/{address}", uid.unwrap_or_default())
}

/// A form in which equal sets of ports compare equal: order does not matter, absent protocol is TCP.
pub(crate) fn ports_key(ports: &[EndpointPort]) -> String {
    let mut keys: Vec<String> = ports
        .iter()
        .map(|port| {
            format!(
                "{}/{}/{}/{}",
                port.name.as_deref().unwrap_or_default(),
                port.protocol.as_deref().unwrap_or("TCP"),
                port.port.unwrap_or_default(),
                port.app_protocol.as_deref().unwrap_or_default(),
            )
        })
        .collect();
    keys.sort();
    keys.join(",")
}

fn slice_ports_key(slice: &EndpointSlice) -> String {
    ports_key(slice.ports.as_deref().unwrap_or_default())
}

/// Plans for the slices of one address type. With nothing wanted one empty slice remains, so that a
/// Service without endpoints can be told from one that nobody has looked at.
pub(crate) fn plan(existing: &[&EndpointSlice], wanted: Vec<Group>) -> Plan {
    let mut plan = Plan::default();
    let mut wanted: BTreeMap<String, Group> = wanted
        .into_iter()
        .map(|group| (ports_key(&group.ports), group))
        .collect();
    let mut by_ports: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, slice) in existing.iter().enumerate() {
        by_ports.entry(slice_ports_key(slice)).or_default().push(at);
    }
    for (ports, slices) in by_ports {
        match wanted.remove(&ports) {
            Some(group) => plan.reconcile(existing, &slices, group),
            None => plan.delete.extend(slices),
        }
    }
    for group in wanted.into_values() {
        plan.create_all(&group.ports, group.endpoints.into_values().collect());
    }
    plan.leave_one(existing);
    plan
}

impl Plan {
    fn reconcile(&mut self, existing: &[&EndpointSlice], slices: &[usize], mut group: Group) {
        let mut changed: Vec<(usize, Vec<Endpoint>)> = Vec::new();
        let mut unchanged: Vec<usize> = Vec::new();
        for &at in slices {
            let mut kept = Vec::new();
            let mut same = true;
            for endpoint in &existing[at].endpoints {
                match group.endpoints.remove(&identity(endpoint)) {
                    Some(new) => {
                        same &= new == *endpoint;
                        kept.push(new);
                    }
                    None => same = false,
                }
            }
            if kept.is_empty() {
                self.delete.push(at);
            } else if same {
                unchanged.push(at);
            } else {
                changed.push((at, kept));
            }
        }
        let mut rest: Vec<Endpoint> = group.endpoints.into_values().collect();
        // The fullest first, so that slices fill up and the number of slices stays low.
        changed.sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
        for (_, endpoints) in &mut changed {
            let room = MAX_ENDPOINTS
                .saturating_sub(endpoints.len())
                .min(rest.len());
            endpoints.extend(rest.drain(..room));
        }
        if !rest.is_empty() && rest.len() < MAX_ENDPOINTS {
            let len = |at: usize| existing[at].endpoints.len();
            let fitting = unchanged
                .iter()
                .position(|&at| len(at) + rest.len() <= MAX_ENDPOINTS)
                .map(|at| unchanged.remove(at));
            if let Some(at) = fitting {
                let mut endpoints = existing[at].endpoints.clone();
                endpoints.append(&mut rest);
                changed.push((at, endpoints));
            }
        }
        // A slice that would be deleted is written once instead: one event fewer than delete and create.
        if !rest.is_empty()
            && let Some(at) = self.delete.iter().position(|at| slices.contains(at))
        {
            let at = self.delete.remove(at);
            let take = rest.len().min(MAX_ENDPOINTS);
            changed.push((at, rest.drain(..take).collect()));
        }
        self.keep.extend(unchanged);
        for (at, endpoints) in changed {
            self.update.push((at, group.ports.clone(), endpoints));
        }
        self.create_all(&group.ports, rest);
    }

    fn create_all(&mut self, ports: &[EndpointPort], endpoints: Vec<Endpoint>) {
        for chunk in endpoints.chunks(MAX_ENDPOINTS) {
            self.create.push((ports.to_vec(), chunk.to_vec()));
        }
    }

    fn leave_one(&mut self, existing: &[&EndpointSlice]) {
        if !self.create.is_empty() || !self.update.is_empty() || !self.keep.is_empty() {
            return;
        }
        let Some(at) = self.delete.pop() else {
            self.create.push((Vec::new(), Vec::new()));
            return;
        };
        let empty = existing[at].endpoints.is_empty()
            && existing[at].ports.as_ref().is_none_or(Vec::is_empty);
        if empty {
            self.keep.push(at);
        } else {
            self.update.push((at, Vec::new(), Vec::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1::ObjectReference, discovery::v1::EndpointConditions};

    use super::*;

    fn endpoint(number: usize, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", number / 256, number % 256)],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                ..Default::default()
            }),
            target_ref: Some(ObjectReference {
                uid: Some(format!("u{number}")),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn http() -> Vec<EndpointPort> {
        vec![EndpointPort {
            name: Some("http".into()),
            port: Some(80),
            ..Default::default()
        }]
    }

    fn slice(numbers: std::ops::Range<usize>) -> EndpointSlice {
        EndpointSlice {
            ports: Some(http()),
            endpoints: numbers.map(|number| endpoint(number, true)).collect(),
            ..Default::default()
        }
    }

    fn wanted(endpoints: impl IntoIterator<Item = Endpoint>) -> Vec<Group> {
        let endpoints = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
        vec![Group {
            ports: http(),
            endpoints,
        }]
    }

    fn run(existing: &[EndpointSlice], wanted: Vec<Group>) -> Plan {
        plan(&existing.iter().collect::<Vec<_>>(), wanted)
    }

    /// (created sizes, updated (slice, size), kept, deleted)
    type Shape = (Vec<usize>, Vec<(usize, usize)>, Vec<usize>, Vec<usize>);

    fn shape(plan: &Plan) -> Shape {
        (
            plan.create
                .iter()
                .map(|(_, endpoints)| endpoints.len())
                .collect(),
            plan.update
                .iter()
                .map(|(at, _, endpoints)| (*at, endpoints.len()))
                .collect(),
            plan.keep.clone(),
            plan.delete.clone(),
        )
    }

    #[test]
    fn plans_write_as_little_as_possible() {
        let ready = |numbers: std::ops::Range<usize>| numbers.map(|number| endpoint(number, true));
        let cases: Vec<(&str, Vec<EndpointSlice>, Vec<Group>, Shape)> = vec![
            (
                "the first endpoints make slices of at most 100",
                vec![],
                wanted(ready(0..250)),
                (vec![100, 100, 50], vec![], vec![], vec![]),
            ),
            (
                "nothing changed",
                vec![slice(0..3)],
                wanted(ready(0..3)),
                (vec![], vec![], vec![0], vec![]),
            ),
            (
                "one more goes where there is room",
                vec![slice(0..100), slice(100..150)],
                wanted(ready(0..151)),
                (vec![], vec![(1, 51)], vec![0], vec![]),
            ),
            (
                "one gone, one new: one write",
                vec![slice(0..100), slice(100..150)],
                wanted(ready(1..151)),
                (vec![], vec![(0, 100)], vec![1], vec![]),
            ),
            (
                "no room anywhere",
                vec![slice(0..100)],
                wanted(ready(0..101)),
                (vec![1], vec![], vec![0], vec![]),
            ),
            (
                "the last endpoint leaves an empty slice",
                vec![slice(0..1)],
                vec![],
                (vec![], vec![(0, 0)], vec![], vec![]),
            ),
            (
                "all replaced: the slice is written, not deleted",
                vec![slice(0..3)],
                wanted(ready(5..8)),
                (vec![], vec![(0, 3)], vec![], vec![]),
            ),
            (
                "an emptied slice beside a full one goes",
                vec![slice(0..100), slice(100..101)],
                wanted(ready(0..100)),
                (vec![], vec![], vec![0], vec![1]),
            ),
            (
                "nothing at all: a placeholder",
                vec![],
                vec![],
                (vec![0], vec![], vec![], vec![]),
            ),
            (
                "the placeholder stays",
                vec![EndpointSlice::default()],
                vec![],
                (vec![], vec![], vec![0], vec![]),
            ),
        ];
        for (name, existing, wanted, expected) in cases {
            assert_eq!(shape(&run(&existing, wanted)), expected, "{name}");
        }
    }

    #[test]
    fn a_readiness_change_rewrites_only_its_slice() {
        let mut endpoints: Vec<_> = (0..150).map(|number| endpoint(number, true)).collect();
        endpoints[120] = endpoint(120, false);
        let plan = run(&[slice(0..100), slice(100..150)], wanted(endpoints));
        assert_eq!(shape(&plan), (vec![], vec![(1, 50)], vec![0], vec![]));
    }

    #[test]
    fn other_ports_live_in_slices_of_their_own() {
        let other = Group {
            ports: vec![EndpointPort {
                port: Some(81),
                ..Default::default()
            }],
            endpoints: [("x".to_owned(), endpoint(7, true))].into(),
        };
        let mut groups = wanted((0..2).map(|number| endpoint(number, true)));
        groups.push(other);
        let plan = run(&[slice(0..2)], groups);
        assert_eq!(shape(&plan), (vec![1], vec![], vec![0], vec![]));
    }
}
