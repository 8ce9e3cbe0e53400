//! LimitRanger: gives containers the defaults of their namespace's LimitRanges, and refuses what is outside
//! their bounds. [`constraints`] is the pure part.

mod constraints;

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};
use crate::cacher::Filter;

pub(super) struct LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), ApiError> {
        if !attributes.creates_pod() {
            return Ok(());
        }
        let mut notes = Vec::new();
        for range in ranges(attributes)? {
            notes.extend(constraints::apply_defaults(&range, &mut object["spec"]));
        }
        if !notes.is_empty() {
            let text = format!("LimitRanger plugin set: {}", notes.join("; "));
            meta::set_annotation(object, "kubernetes.io/limit-ranger", Some(&text));
        }
        Ok(())
    }

    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(object) = object.filter(|_| attributes.operation != Operation::Delete) else {
            return Ok(());
        };
        let pods = attributes.creates_pod()
            || (attributes.is("", "pods") && attributes.subresource == "resize");
        let claims =
            attributes.is("", "persistentvolumeclaims") && attributes.subresource.is_empty();
        if !pods && !claims {
            return Ok(());
        }
        let check = if pods {
            constraints::pod_faults
        } else {
            constraints::claim_faults
        };
        let mut faults = Vec::new();
        for range in ranges(attributes)? {
            faults.extend(check(&range, &object["spec"]));
        }
        match faults.as_slice() {
            [] => Ok(()),
            [one] => Err(attributes.forbidden(one)),
            many => Err(attributes.forbidden(&format!("[{}]", many.join(", ")))),
        }
    }
}

/// The namespace's LimitRanges.
fn ranges(attributes: &Attributes<'_>) -> Result<Vec<Value>, ApiError> {
    let Some(cacher) = attributes.context.server.cacher("", "limitranges") else {
        return Ok(Vec::new());
    };
    let filter = Filter::new(&cacher.resource, Some(attributes.namespace), None, None)?;
    cacher
        .entries(&filter)
        .iter()
        .map(|entry| entry.decode())
        .collect()
}
