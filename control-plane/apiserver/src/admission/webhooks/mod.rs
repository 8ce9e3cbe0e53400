//! Admission webhooks: other servers that may change ([`Mutating`]) or refuse ([`Validating`]) a write.
//!
//! [`rules`] says which of them are asked, [`review`] what they are told and how their answer is read,
//! [`client`] how they are reached. A webhook that cannot be reached counts as its `failurePolicy` says.

mod client;
mod review;
mod rules;

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::status::ApiError;

use self::rules::Hook;
use super::{Attributes, Plugin, question};
use crate::context::to_stored;

pub(super) struct Mutating;
pub(super) struct Validating;

#[async_trait]
impl Plugin for Mutating {
    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), ApiError> {
        let hooks =
            rules::matching(attributes, "mutatingwebhookconfigurations", Some(object)).await?;
        let mut called: Vec<(Hook, bool)> = Vec::new();
        let mut changed_since = false;
        for hook in hooks {
            let changed = mutate(attributes, &hook, object).await?;
            if changed {
                // Those that asked for it see what later ones have made of the object, once.
                called
                    .iter_mut()
                    .for_each(|(earlier, again)| *again = earlier.reinvoke);
                changed_since = true;
            }
            called.push((hook, false));
        }
        if changed_since {
            for (hook, _) in called.iter().filter(|(_, again)| *again) {
                mutate(attributes, hook, object).await?;
            }
        }
        Ok(())
    }
}

/// Answers whether the webhook changed the object.
async fn mutate(
    attributes: &Attributes<'_>,
    hook: &Hook,
    object: &mut Value,
) -> Result<bool, ApiError> {
    let Some(answer) = call(attributes, hook, Some(object)).await? else {
        return Ok(false);
    };
    let Some(patch) = answer.patch else {
        return Ok(false);
    };
    let mut served = question::served(&hook.endpoint, object);
    let before = served.clone();
    windlass_machinery::patch::json(&mut served, &patch).map_err(|error| {
        ApiError::internal(format!(
            "patch of admission webhook {:?}: {error}",
            hook.name
        ))
    })?;
    if served == before {
        return Ok(false);
    }
    to_stored(&hook.endpoint, &mut served);
    crate::registry::fill_defaults(attributes.endpoint, &mut served);
    *object = served;
    Ok(true)
}

#[async_trait]
impl Plugin for Validating {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let hooks = rules::matching(attributes, "validatingwebhookconfigurations", object).await?;
        // Side by side, as upstream: they cannot influence each other.
        let calls = hooks.iter().map(|hook| call(attributes, hook, object));
        for answer in futures::future::join_all(calls).await {
            answer?;
        }
        Ok(())
    }
}

/// Calls a webhook; `None` when it failed and its policy is to ignore that.
///
/// # Errors
/// Its refusal, or 500 when it failed and its policy is to fail.
async fn call(
    attributes: &Attributes<'_>,
    hook: &Hook,
    object: Option<&Value>,
) -> Result<Option<review::Answer>, ApiError> {
    if attributes.dry_run && !hook.free_of_side_effects {
        return Err(ApiError::bad_request(format!(
            "admission webhook {:?} does not support dry run",
            hook.name
        )));
    }
    let (uid, request) = review::request(attributes, &hook.endpoint, object);
    let timeout = Duration::from_secs(hook.timeout_seconds);
    let answered =
        tokio::time::timeout(timeout, client::post(attributes.context, hook, &request)).await;
    let answered = answered.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
    match answered.and_then(|answer| review::read(&answer, &uid)) {
        Ok(answer) => {
            for warning in &answer.warnings {
                attributes.context.warn(warning.clone());
            }
            match answer.refusal(&hook.name) {
                Some(refusal) => Err(refusal),
                None => Ok(Some(answer)),
            }
        }
        Err(why) => {
            tracing::warn!(webhook = hook.name, why, "admission webhook failed");
            if hook.ignore_failure {
                return Ok(None);
            }
            Err(ApiError::internal(format!(
                "failed calling webhook {:?}: failed to call webhook: {why}",
                hook.name
            )))
        }
    }
}
