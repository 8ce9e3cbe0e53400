//! What keeps a device from a request, beside its expressions: constraints that tie requests together, and taints.

use k8s_openapi::api::resource::v1::{
    DeviceAttribute, DeviceConstraint, DeviceTaint, DeviceToleration,
};

use super::offers::Offer;

/// Whether what is said of `wanted` is said of the request or subrequest `name`.
pub(super) fn is_of(wanted: &str, name: &str) -> bool {
    wanted == name
        || name
            .split_once('/')
            .is_some_and(|(request, _)| request == wanted)
}

pub(super) fn concerns(constraint: &DeviceConstraint, name: &str) -> bool {
    let requests = constraint.requests.as_deref().unwrap_or_default();
    requests.is_empty() || requests.iter().any(|wanted| is_of(wanted, name))
}

pub(super) fn attribute<'a>(offer: &'a Offer, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = offer.device().attributes.as_ref()?;
    let (domain, id) = name.split_once('/')?;
    let short = (domain == offer.id.driver).then_some(id);
    attributes.get(name).or_else(|| attributes.get(short?))
}

pub(super) fn repels(taint: &DeviceTaint, tolerations: &[DeviceToleration]) -> bool {
    if !matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") {
        return false;
    }
    let tolerates = |toleration: &DeviceToleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        let value = toleration.value.as_deref().unwrap_or_default();
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || key.is_empty() && exists)
            && (exists || value == taint.value.as_deref().unwrap_or_default())
    };
    !tolerations.iter().any(tolerates)
}
