//! What is written in place of what does not fit.
//!
//! When a map is full, pods whose policies would change keep nothing of what they were allowed: in each
//! direction that a policy is new for they get a class of which no table knows anything, under which
//! everything is dropped. Pods whose policies are as before go on under those. What nobody is subject to
//! then goes, and makes room for the next attempt.

use std::collections::{HashMap, HashSet};

use windlass_datapath::{
    PolicyMaps, PolicySnapshot, PolicyWrite, Result,
    types::{Addr, PolicyPod, PolicyPortKey, PolicyState},
};

/// A class without verdicts: no content has this number, as far as anyone can tell.
const CLOSED: u64 = u64::MAX;

/// Brings the tables from one state to the next; what does not fit is refused, and what it was for is closed.
pub fn write(maps: &mut PolicyMaps, planned: &[PolicyWrite]) -> Result<()> {
    maps.apply(planned).inspect_err(|error| {
        let closed = maps
            .snapshot()
            .and_then(|held| maps.apply(&closing(planned, &held)));
        if let Err(failed) = closed {
            tracing::error!(%failed, %error, "cannot close pods whose policies do not fit");
        }
    })
}

/// `planned`: the writes that failed. `held`: what the tables hold after that.
fn closing(planned: &[PolicyWrite], held: &PolicySnapshot) -> Vec<PolicyWrite> {
    let before: HashMap<Addr, PolicyPod> = held.pods.iter().copied().collect();
    let mut after = before.clone();
    let mut writes = Vec::new();
    for write in planned {
        if let PolicyWrite::PutPod(address, wanted) = *write {
            let held = before.get(&address).copied().unwrap_or_default();
            let pod = PolicyPod {
                ingress: close(held.ingress, wanted.ingress),
                egress: close(held.egress, wanted.egress),
            };
            if pod != held {
                writes.push(PolicyWrite::PutPod(address, pod));
                after.insert(address, pod);
            }
        }
    }
    if !writes.is_empty() {
        writes.push(PolicyWrite::PutState(PolicyState {
            revision: held.state.revision.wrapping_add(1).max(1),
            enforced: u32::try_from(after.len()).unwrap_or(u32::MAX),
        }));
    }
    writes.extend(unused(held, &after));
    writes
}

/// Verdicts of classes that no pod has, and tables of ports that no other verdict names.
fn unused(held: &PolicySnapshot, pods: &HashMap<Addr, PolicyPod>) -> Vec<PolicyWrite> {
    let classes: HashSet<u64> = pods
        .values()
        .flat_map(|pod| [pod.ingress, pod.egress])
        .collect();
    let (used, unused): (Vec<_>, Vec<_>) = held
        .verdicts
        .iter()
        .partition(|(key, _)| classes.contains(&key.class));
    let tables: HashSet<[u32; 2]> = used
        .iter()
        .map(|(_, verdict)| PolicyPortKey::new(verdict.ports, 0, 0).table)
        .collect();
    let ports = held
        .ports
        .iter()
        .filter(|(prefix, _)| !tables.contains(&prefix.key.table));
    let verdicts = unused
        .iter()
        .map(|(key, _)| PolicyWrite::DeleteVerdict(*key));
    verdicts
        .chain(ports.map(|(prefix, _)| PolicyWrite::DeletePort(*prefix)))
        .collect()
}

fn close(held: u64, wanted: u64) -> u64 {
    match wanted {
        0 => held,
        same if same == held => held,
        _ => CLOSED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use windlass_datapath::types::{PolicyVerdict, VerdictKey};

    #[test]
    fn only_directions_with_new_policies_are_closed() {
        let address = |last: u8| Addr::from(IpAddr::from([10, 0, 0, last]));
        let pod = |ingress, egress| PolicyPod { ingress, egress };
        let held = PolicySnapshot {
            state: PolicyState {
                revision: 7,
                enforced: 2,
            },
            pods: vec![(address(1), pod(11, 12)), (address(2), pod(21, 0))],
            verdicts: [11, 12, 99]
                .map(|class| (VerdictKey { class, identity: 0 }, PolicyVerdict::default()))
                .into(),
            ..PolicySnapshot::default()
        };
        let planned = [
            PolicyWrite::PutPod(address(1), pod(11, 13)),
            // Its policy of ingress goes, which nobody is harmed by while it has to wait.
            PolicyWrite::PutPod(address(2), pod(0, 0)),
            PolicyWrite::PutPod(address(3), pod(31, 0)),
            PolicyWrite::DeletePeer(address(9)),
        ];
        assert_eq!(
            closing(&planned, &held),
            [
                PolicyWrite::PutPod(address(1), pod(11, CLOSED)),
                PolicyWrite::PutPod(address(3), pod(CLOSED, 0)),
                PolicyWrite::PutState(PolicyState {
                    revision: 8,
                    enforced: 3
                }),
                PolicyWrite::DeleteVerdict(VerdictKey {
                    class: 12,
                    identity: 0
                }),
                PolicyWrite::DeleteVerdict(VerdictKey {
                    class: 99,
                    identity: 0
                }),
            ]
        );
    }
}
