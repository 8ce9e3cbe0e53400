//! Which PersistentVolume suits a claim: pure rules that the binding controller and the scheduler must
//! read alike, since either may make the choice (KEP-490: with WaitForFirstConsumer the scheduler does).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use windlass_machinery::quantity::Quantity;

use crate::placement::term_matches;

/// On a claim: its binding is complete, so a volume that is gone now is a loss.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: the reference to the other was written by a controller, not by a person.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the scheduler chose this node, so provisioning may begin.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: which provisioner made it, and therefore deletes it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The provisioner that provisions nothing: volumes of such a class are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The annotation that named a class before there was a field, still read first.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The StorageClass of a claim; empty for none.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let field = || claim.spec.as_ref()?.storage_class_name.as_ref();
    claim
        .annotations()
        .get(BETA_CLASS)
        .or_else(field)
        .map_or("", String::as_str)
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref()?.storage_class_name.as_ref();
    volume
        .annotations()
        .get(BETA_CLASS)
        .or_else(field)
        .map_or("", String::as_str)
}

/// The name of the volume that a claim is bound to or asks for.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

/// Whether the binding of a claim is complete.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    volume_name(claim).is_some() && claim.annotations().contains_key(BIND_COMPLETED)
}

fn storage(amounts: Option<&BTreeMap<String, ApiQuantity>>) -> Quantity {
    amounts
        .and_then(|amounts| amounts.get("storage"))
        .and_then(|text| Quantity::parse(&text.0).ok())
        .unwrap_or(Quantity::ZERO)
}

/// How much a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

/// How much a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// Whether a volume is reserved for this claim, by a controller or by whoever made the volume.
pub fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref())
    else {
        return false;
    };
    let uid = reference.uid.as_deref().filter(|uid| !uid.is_empty());
    reference.name.as_deref() == claim.metadata.name.as_deref()
        && reference.namespace.as_deref() == claim.metadata.namespace.as_deref()
        && uid.is_none_or(|uid| claim.metadata.uid.as_deref() == Some(uid))
}

fn access_modes(volume: &PersistentVolume) -> &[String] {
    let modes = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.access_modes.as_ref());
    modes.map_or(&[], Vec::as_slice)
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// What keeps a volume from serving a claim, in the words of upstream's event.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (held, asked) = (volume.spec.as_ref()?, claim.spec.as_ref()?);
    if capacity(volume) < requested(claim) {
        return Some("requested PV is too small");
    }
    if class_of_volume(volume) != class_of(claim) {
        return Some("storageClassName does not match");
    }
    if mode(held.volume_mode.as_ref()) != mode(asked.volume_mode.as_ref()) {
        return Some("incompatible volumeMode");
    }
    if held
        .volume_attributes_class_name
        .as_deref()
        .unwrap_or_default()
        != asked
            .volume_attributes_class_name
            .as_deref()
            .unwrap_or_default()
    {
        return Some("volumeAttributesClassName does not match");
    }
    let has = |mode: &String| access_modes(volume).contains(mode);
    if !asked.access_modes.iter().flatten().all(has) {
        return Some("incompatible accessMode");
    }
    None
}

fn selects(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.clone());
    selector.is_none_or(|selector| {
        Selector::try_from(selector).is_ok_and(|selector| selector.matches(volume.labels()))
    })
}

/// Whether a node can reach a volume.
pub fn reaches(volume: &PersistentVolume, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let required = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref())
        .and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|required| {
        required
            .node_selector_terms
            .iter()
            .any(|term| term_matches(term, node, labels))
    })
}

/// Whether nobody has a volume yet.
pub fn is_free(volume: &PersistentVolume) -> bool {
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let reference = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    phase == Some("Available") && reference.is_none()
}

/// The volume that a claim should have: one that is reserved for it, else of the free ones that suit the
/// one that wastes least.
pub fn best_match(
    claim: &PersistentVolumeClaim,
    volumes: impl IntoIterator<Item = Arc<PersistentVolume>>,
    usable: impl Fn(&PersistentVolume) -> bool,
) -> Option<Arc<PersistentVolume>> {
    let mut best: Option<(usize, Quantity, Arc<PersistentVolume>)> = None;
    for volume in volumes {
        if volume.metadata.deletion_timestamp.is_some() || mismatch(&volume, claim).is_some() {
            continue;
        }
        if is_reserved_for(&volume, claim) {
            return Some(volume);
        }
        if !is_free(&volume) || !selects(claim, &volume) || !usable(&volume) {
            continue;
        }
        let rank = (access_modes(&volume).len(), capacity(&volume));
        let better = best.as_ref().is_none_or(|(modes, size, known)| {
            (rank.0, &rank.1, volume.metadata.name.as_ref())
                < (*modes, size, known.metadata.name.as_ref())
        });
        if better {
            best = Some((rank.0, rank.1, volume));
        }
    }
    best.map(|(_, _, volume)| volume)
}

/// The name of the claim behind a pod's volume; a generic ephemeral volume has one of its own.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume
        .ephemeral
        .as_ref()
        .map(|_| format!("{}-{}", pod.name_any(), volume.name))
}

/// All claims that a pod names.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .filter_map(|volume| claim_name(pod, volume))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut object = json!({
            "metadata": {"name": name, "labels": {"disk": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]},
            "status": {"phase": "Available"},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut object = json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn chosen(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]) -> Option<String> {
        best_match(claim, volumes.to_vec(), |_| true).map(|volume| volume.name_any())
    }

    #[test]
    fn the_smallest_volume_that_suits_is_chosen_unless_one_is_reserved() {
        let plain = claim(json!({}));
        let mut volumes = vec![
            volume("small", "1Gi", json!({})),
            volume("large", "50Gi", json!({})),
            volume("right", "6Gi", json!({})),
            volume("classy", "5Gi", json!({"storageClassName": "fast"})),
            volume("raw", "5Gi", json!({"volumeMode": "Block"})),
            volume(
                "many",
                "5Gi",
                json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}),
            ),
            volume(
                "taken",
                "5Gi",
                json!({"claimRef": {"name": "d", "namespace": "ns"}}),
            ),
        ];
        assert_eq!(chosen(&plain, &volumes).as_deref(), Some("right"));
        let cases = [
            (json!({"storageClassName": "fast"}), Some("classy")),
            (json!({"volumeMode": "Block"}), Some("raw")),
            (json!({"accessModes": ["ReadWriteMany"]}), Some("many")),
            (
                json!({"selector": {"matchLabels": {"disk": "large"}}}),
                Some("large"),
            ),
            (json!({"resources": {"requests": {"storage": "1Ti"}}}), None),
        ];
        for (more, expected) in cases {
            assert_eq!(
                chosen(&claim(more.clone()), &volumes).as_deref(),
                expected,
                "{more}"
            );
        }
        volumes.push(volume(
            "kept",
            "9Gi",
            json!({"claimRef": {"name": "c", "namespace": "ns"}}),
        ));
        assert_eq!(chosen(&plain, &volumes).as_deref(), Some("kept"));
        let other = json!({"claimRef": {"name": "c", "namespace": "ns", "uid": "older"}});
        volumes.pop();
        volumes.push(volume("other", "5Gi", other));
        assert_eq!(chosen(&plain, &volumes).as_deref(), Some("right"));
    }

    #[test]
    fn a_local_volume_is_reached_from_its_node_only() {
        let affinity = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "host", "operator": "In", "values": ["a"]}]}]}}});
        let local = volume("l", "1Gi", affinity);
        let labels = |host: &str| BTreeMap::from([("host".to_owned(), host.to_owned())]);
        assert!(reaches(&local, "a", &labels("a")));
        assert!(!reaches(&local, "b", &labels("b")));
        assert!(reaches(&volume("v", "1Gi", json!({})), "b", &labels("b")));
    }
}
