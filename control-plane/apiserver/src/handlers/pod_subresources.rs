//! Which fields the narrow update subresources may change.

use serde_json::Value;
use windlass_api::certificates::signing_request;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use crate::registry::Part;

/// Limits `new` to what the subresource is for; main and status writes pass as they are.
///
/// # Errors
/// 422-like refusals are left to validation; 400 for what has no place in this subresource.
pub(super) fn restrict(part: Part, new: Value, old: &Value) -> Result<Value, ApiError> {
    let Part::Other(subresource) = part else {
        return Ok(new);
    };
    let mut kept = old.clone();
    match subresource {
        "ephemeralcontainers" => {
            move_value(&new, &mut kept, &["spec", "ephemeralContainers"]);
        }
        "resize" => resize(&new, &mut kept),
        "approval" => {
            move_value(&new, &mut kept, &["status", "conditions"]);
            for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
                move_value(&new, &mut kept, &["metadata", field]);
            }
            signing_request::stamp(&mut kept, old);
        }
        other => {
            return Err(ApiError::bad_request(format!("{other} cannot be updated")));
        }
    }
    meta::set_resource_version(&mut kept, meta::resource_version(&new));
    if !meta::uid(&new).is_empty() {
        meta::set_uid(&mut kept, meta::uid(&new));
    }
    if let Some(fields) = new["metadata"].get("managedFields") {
        meta::set(&mut kept, "managedFields", fields.clone());
    }
    Ok(kept)
}

fn move_value(from: &Value, to: &mut Value, [parent, field]: &[&str; 2]) {
    match from[*parent].get(*field) {
        Some(value) => to[*parent][*field] = value.clone(),
        None => {
            if let Some(map) = to[*parent].as_object_mut() {
                map.remove(*field);
            }
        }
    }
}

/// Takes over each container's resources and resize policy.
fn resize(new: &Value, kept: &mut Value) {
    for list in ["containers", "initContainers"] {
        let containers = kept["spec"].get_mut(list).and_then(Value::as_array_mut);
        let Some(containers) = containers else {
            continue;
        };
        for container in containers {
            let wanted = new["spec"][list].as_array().into_iter().flatten();
            let Some(wanted) = wanted.into_iter().find(|w| w["name"] == container["name"]) else {
                continue;
            };
            for field in ["resources", "resizePolicy"] {
                if let Some(value) = wanted.get(field) {
                    container[field] = value.clone();
                }
            }
        }
    }
    if let Some(resources) = new["spec"].get("resources") {
        kept["spec"]["resources"] = resources.clone();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resize_changes_resources_and_nothing_else() {
        let old = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n",
            "containers": [{"name": "a", "image": "x", "resources": {}}]}});
        let new = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "other",
            "containers": [{"name": "a", "image": "y", "resources": {"limits": {"cpu": "1"}}}]}});
        let kept = restrict(Part::Other("resize"), new, &old).unwrap();
        assert_eq!(kept["spec"]["nodeName"], "n");
        assert_eq!(
            kept["spec"]["containers"][0],
            json!({"name": "a", "image": "x", "resources": {"limits": {"cpu": "1"}}})
        );
    }
}
