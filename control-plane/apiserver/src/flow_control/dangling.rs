//! The condition `Dangling` of FlowSchemas: whether the priority level that they name exists.

use std::sync::Arc;

use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{GROUP, SCHEMAS};
use crate::context::now_text;
use crate::server::ApiServer;

const DANGLING: &str = "Dangling";

/// Writes what has changed.
///
/// # Errors
/// When a status cannot be written; the change of a FlowSchema in between is none, since it is followed.
pub(super) async fn tell(server: &Arc<ApiServer>, schemas: &[Value]) -> Result<(), ApiError> {
    for schema in schemas {
        let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str();
        let level = level.unwrap_or_default();
        let exists = server.flow_control.plan.load().has_level(level);
        let Some(updated) = with_condition(schema, level, exists) else {
            continue;
        };
        let name = meta::name(schema);
        let path = format!("/apis/{GROUP}/v1/{SCHEMAS}/{name}/status");
        server.replace_seen(&path, &updated).await?;
    }
    Ok(())
}

/// The FlowSchema with the condition as it should be; `None` when it is.
fn with_condition(schema: &Value, level: &str, exists: bool) -> Option<Value> {
    let (status, reason, end) = match exists {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let conditions = schema["status"]["conditions"].as_array();
    let mut conditions = conditions.cloned().unwrap_or_default();
    let own = |condition: &Value| condition["type"] == DANGLING;
    if conditions.iter().any(|c| own(c) && c["status"] == status) {
        return None;
    }
    conditions.retain(|condition| !own(condition));
    conditions.push(json!({
        "type": DANGLING, "status": status, "reason": reason, "lastTransitionTime": now_text(),
        "message": format!(
            "This FlowSchema references the PriorityLevelConfiguration object named {level:?} {end}"
        ),
    }));
    let mut updated = schema.clone();
    updated["status"]["conditions"] = conditions.into();
    Some(updated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_written_once_and_others_are_kept() {
        let schema = json!({"status": {"conditions": [{"type": "Other", "status": "True"}]}});
        let first = with_condition(&schema, "x", false).unwrap();
        let conditions = &first["status"]["conditions"];
        assert_eq!(conditions[0]["type"], "Other");
        assert_eq!(
            (&conditions[1]["status"], &conditions[1]["reason"]),
            (&json!("True"), &json!("NotFound"))
        );
        assert_eq!(with_condition(&first, "x", false), None);
        assert!(with_condition(&first, "x", true).is_some());
    }
}
