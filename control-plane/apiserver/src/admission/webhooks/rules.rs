//! Which webhooks a request concerns.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use windlass_machinery::meta;
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

/// The webhooks of all configurations of the kind `plural` in the order of the configurations' names, each with what
/// tells it from the others.
pub(super) fn configured(
    attributes: &Attributes<'_>,
    plural: &str,
) -> Result<Vec<(String, Value)>, ApiError> {
    let mut webhooks = Vec::new();
    for mut configuration in matching::configured(attributes, plural)? {
        let Value::Array(listed) = configuration["webhooks"].take() else {
            continue;
        };
        let name = meta::name(&configuration);
        let numbered = listed.into_iter().enumerate();
        webhooks.extend(numbered.map(|(i, webhook)| (format!("{name}/{i}"), webhook)));
    }
    Ok(webhooks)
}

/// The webhooks of `plural` that the request concerns.
///
/// # Errors
/// As [`concerned`].
pub(super) fn matching(
    attributes: &Attributes<'_>,
    plural: &str,
    object: Option<&Value>,
) -> Result<Vec<Hook>, ApiError> {
    configured(attributes, plural)?
        .iter()
        .filter_map(|(_, webhook)| concerned(attributes, webhook, object).transpose())
        .collect()
}

/// # Errors
/// 403 when a match condition cannot be evaluated and the webhook's policy is to fail.
pub(super) fn concerned(
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
