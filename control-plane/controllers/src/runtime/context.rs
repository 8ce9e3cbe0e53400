//! What every controller is given when it starts.

use std::sync::Arc;

use kube::{Api, Client, Resource};
use tokio_util::sync::CancellationToken;
use windlass_informers::{Cached, Informer, Informers, recorder::Recorder};

use crate::{ControllersConfig, resources::Resources};

/// Cheap to clone: handles only.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) informers: Arc<Informers>,
    pub(crate) resources: Arc<Resources>,
    pub(crate) config: Arc<ControllersConfig>,
    pub(crate) recorder: Recorder,
    pub(crate) cancel: CancellationToken,
}

impl Context {
    /// The shared view of a kind.
    pub(crate) fn informer<K: Cached>(&self) -> Arc<Informer<K>> {
        self.informers.get()
    }

    /// The API of a namespaced kind in one namespace.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The API of a cluster-scoped kind.
    pub(crate) fn cluster_api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::ClusterResourceScope>,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }
}
