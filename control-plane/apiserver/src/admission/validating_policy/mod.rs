//! ValidatingAdmissionPolicy (KEP-3488): what administrators require of objects, in CEL, asked in process.
//!
//! A policy says what to check, its bindings where, with which parameters and what follows. [`verdict`]
//! evaluates one policy, [`status`] says what is wrong with its types, [`params`] finds a binding's parameters, [`written`] checks the expressions of a
//! policy that is itself being written.

mod params;
mod schema_rules;
pub(crate) mod status;
mod verdict;
mod written;

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::{ApiError, Cause};

use self::verdict::Verdict;
use super::{Attributes, Plugin, matching};
use crate::catalog::Endpoint;

const POLICIES: &str = "validatingadmissionpolicies";
const BINDINGS: &str = "validatingadmissionpolicybindings";

pub(super) struct ValidatingPolicy;

#[async_trait]
impl Plugin for ValidatingPolicy {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        if attributes.subresource.is_empty()
            && let Some(object) = object
        {
            written::check(attributes, object)?;
        }
        let bindings = matching::configured(attributes, BINDINGS)?;
        if bindings.is_empty() {
            return Ok(());
        }
        let mut refusal = None;
        for policy in matching::configured(attributes, POLICIES)? {
            let constraints = &policy["spec"]["matchConstraints"];
            let Some(endpoint) = matches(attributes, constraints, object) else {
                continue;
            };
            let name = meta::name(&policy);
            let of_policy = |binding: &&Value| binding["spec"]["policyName"] == name;
            for binding in bindings.iter().filter(of_policy) {
                if covers(attributes, &binding["spec"]["matchResources"], object) {
                    let found = ask(attributes, &endpoint, &policy, binding, object);
                    refusal = refusal.or(found);
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    async fn connect(&self, attributes: &Attributes<'_>, options: &Value) -> Result<(), ApiError> {
        self.validate(attributes, Some(options)).await
    }
}

/// The version in which a policy wants to see the request, if its constraints are about it.
fn matches(
    attributes: &Attributes<'_>,
    constraints: &Value,
    object: Option<&Value>,
) -> Option<std::sync::Arc<Endpoint>> {
    if !matching::selected(attributes, constraints, object)
        || matching::ruled(attributes, constraints, "excludeResourceRules").is_some()
    {
        return None;
    }
    matching::ruled(attributes, constraints, "resourceRules")
}

/// Whether a binding's own restrictions let it apply; without rules it takes the policy's.
fn covers(attributes: &Attributes<'_>, restrictions: &Value, object: Option<&Value>) -> bool {
    let any_rules = restrictions["resourceRules"]
        .as_array()
        .is_some_and(|rules| !rules.is_empty());
    matching::selected(attributes, restrictions, object)
        && matching::ruled(attributes, restrictions, "excludeResourceRules").is_none()
        && (!any_rules || matching::ruled(attributes, restrictions, "resourceRules").is_some())
}

/// Evaluates a policy as one of its bindings wants it; the refusal that follows, if any.
fn ask(
    attributes: &Attributes<'_>,
    endpoint: &Endpoint,
    policy: &Value,
    binding: &Value,
    object: Option<&Value>,
) -> Option<ApiError> {
    let names = (meta::name(policy), meta::name(binding));
    let params = match params::of(
        attributes,
        &policy["spec"]["paramKind"],
        &binding["spec"]["paramRef"],
    ) {
        Ok(params) => params,
        Err(_) if verdict::ignores_failure(policy) => return None,
        Err(why) => {
            let verdict = Verdict::failure(format!("failed to configure binding: {why}"));
            return Some(refusal(attributes, names, &verdict));
        }
    };
    let mut variables = match matching::variables(attributes, endpoint, object) {
        Ok(variables) => variables,
        Err(_) if verdict::ignores_failure(policy) => return None,
        Err(why) => return Some(refusal(attributes, names, &Verdict::failure(why))),
    };
    let mut first = None;
    for param in params {
        variables.set("params", &param);
        for verdict in verdict::of(policy, &mut variables) {
            for action in binding["spec"]["validationActions"]
                .as_array()
                .into_iter()
                .flatten()
            {
                match action.as_str() {
                    Some("Deny") => {
                        first.get_or_insert_with(|| refusal(attributes, names, &verdict));
                    }
                    Some("Warn") => attributes.context.warn(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                        names.0, names.1, verdict.message
                    )),
                    Some("Audit") => tracing::info!(
                        policy = names.0,
                        binding = names.1,
                        namespace = attributes.namespace,
                        name = attributes.name,
                        user = attributes.context.user.name,
                        why = verdict.message,
                        "policy violated"
                    ),
                    _ => {}
                }
            }
        }
    }
    first
}

fn refusal(
    attributes: &Attributes<'_>,
    (policy, binding): (&str, &str),
    verdict: &Verdict,
) -> ApiError {
    let message = format!(
        "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
        verdict.message
    );
    let mut error = attributes.forbidden(&message);
    (error.code, error.reason) = verdict.status;
    if let Some(details) = &mut error.details {
        details.causes.push(Cause {
            reason: String::new(),
            message,
            field: String::new(),
        });
    }
    error
}
