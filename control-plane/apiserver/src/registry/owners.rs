//! Owners that are named more than once: refused by nobody ever, so kept once, with a warning.

use std::collections::HashSet;

use serde_json::Value;

use crate::context::Context;

/// Leaves the first reference to each owner.
pub(super) fn dedup(context: &Context, object: &mut Value) {
    let owners = object.pointer_mut("/metadata/ownerReferences");
    let Some(owners) = owners.and_then(Value::as_array_mut) else {
        return;
    };
    let mut seen = HashSet::new();
    let mut again: Vec<String> = Vec::new();
    owners.retain(|owner| {
        let uid = owner["uid"].as_str().unwrap_or_default();
        let first = seen.insert(uid.to_owned());
        if !first && !again.iter().any(|known| known == uid) {
            again.push(uid.to_owned());
        }
        first
    });
    if !again.is_empty() {
        context.warn(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may \
             reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            again.join(", ")
        ));
    }
}
