//! Admission webhooks: other servers that may change ([`mutate`]) or refuse ([`Validating`]) a write.
//!
//! [`rules`] says which of them are asked, [`review`] what they are told and how their answer is read. A webhook that
//! cannot be reached counts as its `failurePolicy` says.

mod review;
mod rules;

use std::collections::HashSet;

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::status::ApiError;
use windlass_machinery::{fields, patch};

use self::rules::Hook;
use super::{Attributes, Plugin, question};
use crate::context::to_stored;

const MUTATING: &str = "mutatingwebhookconfigurations";

pub(super) struct Mutating;
pub(super) struct Validating;

/// Which mutating webhooks were asked about a write, for those that want to be asked again.
#[derive(Default)]
pub(super) struct Rounds {
    /// Asked, with `reinvocationPolicy: IfNeeded`, and nobody has changed the object since.
    content: Vec<String>,
    /// To be asked in the second round; `None` in the first one, which asks all.
    again: Option<HashSet<String>>,
    changed_since: HashSet<String>,
}

impl Rounds {
    /// Begins the second round; `changed` says whether others than webhooks have changed the object since the first.
    pub(super) fn again(&mut self, changed: bool) {
        if changed {
            self.object_changed();
        }
        self.again = Some(std::mem::take(&mut self.changed_since));
    }

    fn object_changed(&mut self) {
        let upset = self.content.drain(..);
        match &mut self.again {
            Some(again) => again.extend(upset),
            None => self.changed_since.extend(upset),
        }
    }

    fn asks(&self, webhook: &str) -> bool {
        self.again
            .as_ref()
            .is_none_or(|again| again.contains(webhook))
    }
}

/// Asks the webhooks that the request, as they find it, concerns; answers whether they changed the object.
pub(super) async fn mutate(
    attributes: &Attributes<'_>,
    object: &mut Value,
    rounds: &mut Rounds,
) -> Result<bool, ApiError> {
    let mut any = false;
    for (id, webhook) in rules::configured(attributes, MUTATING)? {
        if !rounds.asks(&id) {
            continue;
        }
        let Some(hook) = rules::concerned(attributes, &webhook, Some(object))? else {
            continue;
        };
        if ask(attributes, &hook, object).await? {
            rounds.object_changed();
            any = true;
        }
        if hook.reinvoke {
            rounds.content.push(id);
        }
    }
    Ok(any)
}

#[async_trait]
impl Plugin for Mutating {
    /// They may refuse a connection; what they make of its options is not used.
    async fn connect(&self, attributes: &Attributes<'_>, options: &Value) -> Result<(), ApiError> {
        for hook in rules::matching(attributes, MUTATING, Some(options))? {
            call(attributes, &hook, Some(options)).await?;
        }
        Ok(())
    }
}

/// Answers whether the webhook changed the object.
async fn ask(
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
    let mut served = question::served(&hook.endpoint, object)?;
    let before = served.clone();
    patch::json(&mut served, &patch).map_err(|error| {
        ApiError::internal(format!(
            "patch of admission webhook {:?}: {error}",
            hook.name
        ))
    })?;
    if served == before {
        return Ok(false);
    }
    // What the kind does not have goes the way of a client's unknown fields.
    let version = hook.endpoint.version();
    let report = fields::check(&version.schema, version.type_id, &mut served);
    if let Some(fault) = report.errors.first() {
        return Err(ApiError::internal(format!(
            "patch of admission webhook {:?}: {fault}",
            hook.name
        )));
    }
    to_stored(&hook.endpoint, &mut served)?;
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
        let hooks = rules::matching(attributes, "validatingwebhookconfigurations", object)?;
        // Side by side, as upstream: they cannot influence each other.
        let calls = hooks.iter().map(|hook| call(attributes, hook, object));
        for answer in futures::future::join_all(calls).await {
            answer?;
        }
        Ok(())
    }

    async fn connect(&self, attributes: &Attributes<'_>, options: &Value) -> Result<(), ApiError> {
        self.validate(attributes, Some(options)).await
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
    let (uid, request) = review::request(attributes, &hook.endpoint, object)?;
    let answered = hook.remote.post(&attributes.context.server, &request).await;
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
