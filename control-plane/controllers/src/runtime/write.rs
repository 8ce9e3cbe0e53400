//! Writes that cannot do harm with a stale view: every patch names the resourceVersion and uid that it was
//! computed from, every deletion the uid.
//!
//! A typed object is a view: fields that this build does not know are not in it. So what is written back is
//! the difference between two views as a merge patch, never the view itself.

use std::fmt::Debug;

use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{Result, ResultExt};

/// The resourceVersion as a number; 0 when there is none.
pub(crate) fn version_of<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|rv| rv.parse().ok())
        .unwrap_or(0)
}

/// The merge patch (RFC 7386) that turns `old` into `new`; `None` when they are equal.
pub(super) fn merge_difference(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new {
                let changed = match old.get(key) {
                    Some(before) => merge_difference(before, value),
                    None => Some(value.clone()),
                };
                if let Some(changed) = changed {
                    patch.insert(key.clone(), changed);
                }
            }
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) => (old != new).then(|| new.clone()),
    }
}

/// Adds the identity and version of `of` to a merge patch of it.
fn preconditioned<K: Resource>(of: &K, mut patch: Value) -> Value {
    if let Some(patch) = patch.as_object_mut() {
        let metadata = patch.entry("metadata").or_insert_with(|| json!({}));
        metadata["uid"] = json!(of.meta().uid);
        metadata["resourceVersion"] = json!(of.meta().resource_version);
    }
    patch
}

fn difference<K: Serialize>(old: &K, new: &K) -> Option<Value> {
    // The API types serialise to plain objects; there is no input for which this fails.
    let (old, new) = (
        serde_json::to_value(old).ok()?,
        serde_json::to_value(new).ok()?,
    );
    merge_difference(&old, &new)
}

/// Writes what changed between two views of an object, spec and metadata; `None` when nothing did.
pub(crate) async fn patch<K>(api: &Api<K>, old: &K, new: &K) -> Result<Option<K>>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
    K::DynamicType: Default,
{
    let Some(difference) = difference(old, new) else {
        return Ok(None);
    };
    let body = preconditioned(old, difference);
    let name = old.name_any();
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&body))
        .await
        .map(Some)
        .doing(|| format!("patch {} {name}", K::kind(&K::DynamicType::default())))
}

/// Writes what changed in the status, and in annotations that go with it; `None` when nothing did.
pub(crate) async fn patch_status<K>(api: &Api<K>, old: &K, new: &K) -> Result<Option<K>>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
    K::DynamicType: Default,
{
    let difference = difference(old, new).unwrap_or_default();
    let mut changed = json!({});
    if let Some(status) = difference.get("status") {
        changed["status"] = status.clone();
    }
    if let Some(annotations) = difference.pointer("/metadata/annotations") {
        changed["metadata"] = json!({ "annotations": annotations });
    }
    if changed.as_object().is_none_or(Map::is_empty) {
        return Ok(None);
    }
    let body = preconditioned(old, changed);
    let name = old.name_any();
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&body))
        .await
        .map(Some)
        .doing(|| {
            format!(
                "patch status of {} {name}",
                K::kind(&K::DynamicType::default())
            )
        })
}

/// Deletes exactly this object in the background; one that is gone or replaced already is fine.
pub(crate) async fn delete<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: Resource + DeserializeOwned + Clone + Debug,
    K::DynamicType: Default,
{
    delete_with(api, object, PropagationPolicy::Background, None).await
}

/// As [`delete`], choosing what happens to dependents and how long the object may take.
pub(crate) async fn delete_with<K>(
    api: &Api<K>,
    object: &K,
    propagation: PropagationPolicy,
    grace_period_seconds: Option<u32>,
) -> Result<()>
where
    K: Resource + DeserializeOwned + Clone + Debug,
    K::DynamicType: Default,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.meta().uid.clone(),
            resource_version: None,
        }),
        propagation_policy: Some(propagation),
        grace_period_seconds,
        ..Default::default()
    };
    let name = object.name_any();
    match api.delete(&name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        // Only the uid was a precondition, so the object of our view is gone.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => {
            Err(error).doing(|| format!("delete {} {name}", K::kind(&K::DynamicType::default())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_two_objects_is_a_minimal_merge_patch() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1}), json!({"a": 2}), Some(json!({"a": 2}))),
            (
                json!({"a": 1, "b": 2}),
                json!({"a": 1}),
                Some(json!({"b": null})),
            ),
            (
                json!({"a": {"b": 1, "c": 2}}),
                json!({"a": {"b": 1, "c": 3, "d": 4}}),
                Some(json!({"a": {"c": 3, "d": 4}})),
            ),
            (
                json!({"a": [1, 2]}),
                json!({"a": [1]}),
                Some(json!({"a": [1]})),
            ),
        ];
        for (old, new, expected) in cases {
            assert_eq!(merge_difference(&old, &new), expected, "{old} -> {new}");
        }
    }
}
