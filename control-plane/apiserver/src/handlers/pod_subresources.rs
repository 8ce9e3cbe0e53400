//! Which fields the narrow update subresources may change.

use serde_json::Value;
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
            stamp(&mut kept, old, &crate::context::now_text());
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

/// Fills in when conditions were written, and since when they say what they say.
fn stamp(object: &mut Value, old: &Value, now: &str) {
    let before = old["status"]["conditions"].as_array();
    let conditions = object["status"].get_mut("conditions");
    for condition in conditions
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if condition["lastUpdateTime"]
            .as_str()
            .is_none_or(str::is_empty)
        {
            condition["lastUpdateTime"] = now.into();
        }
        if condition["lastTransitionTime"]
            .as_str()
            .is_none_or(str::is_empty)
        {
            let same = before.into_iter().flatten().find(|old| {
                old["type"] == condition["type"] && old["status"] == condition["status"]
            });
            let since = same.and_then(|old| old["lastTransitionTime"].as_str());
            condition["lastTransitionTime"] = since.unwrap_or(now).into();
        }
    }
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
