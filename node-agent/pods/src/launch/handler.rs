//! The runtime's handlers: a pod's RuntimeClass names one, every other pod has the one without a name.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use windlass_cri::Runtime;
use windlass_cri::v1::RuntimeHandlerFeatures;

use crate::model::spec;
use crate::node::Node;

/// The handler of the pod's RuntimeClass, if it names one.
pub(super) async fn of(node: &Node, pod: &Pod) -> Result<String, String> {
    let Some(name) = spec(pod)
        .runtime_class_name
        .as_deref()
        .filter(|name| !name.is_empty())
    else {
        return Ok(String::new());
    };
    let classes: kube::Api<RuntimeClass> = kube::Api::all(node.client.clone());
    match classes.get(name).await {
        Ok(class) => Ok(class.handler),
        Err(error) => Err(format!("RuntimeClass {name:?}: {error}")),
    }
}

/// What a handler can do. Runtimes that say nothing (containerd before 2.0) can nothing of it.
pub(super) async fn features(
    runtime: &Runtime,
    handler: &str,
) -> Result<RuntimeHandlerFeatures, String> {
    let told = runtime.status().await.map_err(|error| error.to_string())?;
    let mut handlers = told.runtime_handlers.into_iter();
    let known = handlers.find(|known| known.name == handler);
    Ok(known.and_then(|known| known.features).unwrap_or_default())
}
