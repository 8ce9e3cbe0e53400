//! What PersistentVolumeClaims use of a quota.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::{Usage, one, parsed};

/// What stands between a storage class and what is counted of it.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";
/// The class as it was written before it was a field; it still wins, as upstream.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// What a claim uses: in all, and of its storage class.
pub fn of_claim(claim: &PersistentVolumeClaim) -> Usage {
    let mut usage = Usage::from([
        ("count/persistentvolumeclaims".to_owned(), one()),
        ("persistentvolumeclaims".to_owned(), one()),
    ]);
    let spec = claim.spec.as_ref();
    let storage = spec
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"))
        .map(parsed);
    if let Some(storage) = storage {
        usage.insert("requests.storage".to_owned(), storage);
    }
    let annotations = claim.metadata.annotations.as_ref();
    let class = annotations
        .and_then(|annotations| annotations.get(OLD_CLASS))
        .or_else(|| spec?.storage_class_name.as_ref());
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        usage.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            usage.insert(format!("{class}{OF_CLASS}requests.storage"), storage);
        }
    }
    usage
}

pub(super) fn tracks(name: &str) -> bool {
    matches!(
        name,
        "count/persistentvolumeclaims" | "persistentvolumeclaims" | "requests.storage"
    ) || name
        .split_once(OF_CLASS)
        .is_some_and(|(_, what)| matches!(what, "persistentvolumeclaims" | "requests.storage"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::quota::shown;

    #[test]
    fn claims_use_storage_in_all_and_of_their_class() {
        let table = [
            (
                json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}}),
                vec![
                    "count/persistentvolumeclaims=1",
                    "persistentvolumeclaims=1",
                    "requests.storage=5Gi",
                ],
            ),
            (
                json!({
                    "metadata": {"annotations": {OLD_CLASS: "gold"}},
                    "spec": {"storageClassName": "iron", "resources": {"requests": {"storage": "1Gi"}}},
                }),
                vec![
                    "count/persistentvolumeclaims=1",
                    "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                    "gold.storageclass.storage.k8s.io/requests.storage=1Gi",
                    "persistentvolumeclaims=1",
                    "requests.storage=1Gi",
                ],
            ),
        ];
        for (claim, expected) in table {
            let usage = of_claim(&serde_json::from_value(claim).unwrap());
            assert_eq!(shown(&usage), expected);
            assert!(usage.keys().all(|name| tracks(name)));
        }
        assert!(!tracks("requests.cpu"));
    }
}
