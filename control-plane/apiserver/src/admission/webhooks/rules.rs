//! Which webhooks a request concerns.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use windlass_machinery::status::ApiError;

use crate::admission::{Attributes, matching};
use crate::catalog::Endpoint;
use crate::outbound;

/// A webhook that is to be called.
pub(super) struct Hook {
    pub(super) name: String,
    pub(super) remote: outbound::Hook,
    pub(super) ignore_failure: bool,
    pub(super) free_of_side_effects: bool,
    pub(super) reinvoke: bool,
    /// The version of the resource that its rules name.
    pub(super) endpoint: Arc<Endpoint>,
}

/// The webhooks of `plural` that the request concerns, in the order of their configurations' names.
///
/// # Errors
/// 500 when a match condition cannot be evaluated and the webhook's policy is to fail.
pub(super) async fn matching(
    attributes: &Attributes<'_>,
    plural: &str,
    object: Option<&Value>,
) -> Result<Vec<Hook>, ApiError> {
    let mut hooks = Vec::new();
    for configuration in matching::configured(attributes, plural)? {
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            hooks.extend(concerned(attributes, webhook, object)?);
        }
    }
    Ok(hooks)
}

fn concerned(
    attributes: &Attributes<'_>,
    webhook: &Value,
    object: Option<&Value>,
) -> Result<Option<Hook>, ApiError> {
    let Some(endpoint) = matching::ruled(attributes, webhook, "rules") else {
        return Ok(None);
    };
    if !matching::selected(attributes, webhook, object) {
        return Ok(None);
    }
    let name = webhook["name"].as_str().unwrap_or_default().to_owned();
    let ignore_failure = webhook["failurePolicy"] == "Ignore";
    match matching::conditions_hold(attributes, webhook, &endpoint, object) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(_) if ignore_failure => return Ok(None),
        Err(why) => {
            return Err(attributes.forbidden(&format!("webhook {name:?}: match condition: {why}")));
        }
    }
    let timeout = Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(10));
    Ok(Some(Hook {
        name,
        remote: outbound::Hook::new(&webhook["clientConfig"], timeout),
        ignore_failure,
        free_of_side_effects: matches!(
            webhook["sideEffects"].as_str(),
            Some("None" | "NoneOnDryRun")
        ),
        reinvoke: webhook["reinvocationPolicy"] == "IfNeeded",
        endpoint,
    }))
}
