//! StorageObjectInUseProtection: a new claim or volume gets the finalizer that keeps it while it is used.
//!
//! The controller of these finalizers would add them as well, but a deletion that follows a creation at once would be
//! faster.

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};

pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), ApiError> {
        let finalizer = match attributes.endpoint.plural() {
            _ if !attributes.is("", attributes.endpoint.plural()) => return Ok(()),
            "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
            "persistentvolumes" => "kubernetes.io/pv-protection",
            _ => return Ok(()),
        };
        if attributes.operation == Operation::Create && attributes.subresource.is_empty() {
            protect(object, finalizer);
        }
        Ok(())
    }
}

fn protect(object: &mut Value, finalizer: &str) {
    let mut finalizers: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
    if !finalizers.iter().any(|present| present == finalizer) {
        finalizers.push(finalizer.to_owned());
        meta::set(object, "finalizers", finalizers);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_finalizer_is_added_once_beside_others() {
        let mut object = json!({"metadata": {"finalizers": ["a"]}});
        protect(&mut object, "b");
        protect(&mut object, "b");
        assert_eq!(object["metadata"]["finalizers"], json!(["a", "b"]));
    }
}
