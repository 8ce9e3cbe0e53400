//! PersistentVolumeClaimResize: a claim grows only when it is bound and its class lets volumes grow.

use async_trait::async_trait;
use serde_json::Value;
use windlass_api::core::persistent_volume::class;
use windlass_machinery::quantity::Quantity;
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};

pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        claim: Option<&Value>,
    ) -> Result<(), ApiError> {
        let concerned = attributes.operation == Operation::Update
            && attributes.subresource.is_empty()
            && attributes.is("", "persistentvolumeclaims");
        let (Some(claim), Some(old)) = (claim.filter(|_| concerned), attributes.old) else {
            return Ok(());
        };
        if asked(claim) <= asked(old) {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(attributes.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let (now, before) = (class(claim), class(old));
        let lets = match now {
            "" => false,
            now if now != before => false,
            name => {
                let server = &attributes.context.server;
                let found = server
                    .known("storage.k8s.io", "storageclasses", name)
                    .await?;
                found.is_some_and(|class| class["allowVolumeExpansion"] == true)
            }
        };
        if lets {
            return Ok(());
        }
        Err(attributes.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
             resize",
        ))
    }
}

fn asked(claim: &Value) -> Quantity {
    let text = claim["spec"]["resources"]["requests"]["storage"].as_str();
    text.and_then(|text| text.parse().ok())
        .unwrap_or(Quantity::ZERO)
}
