//! What every controller is given when it starts.

use std::{future::Future, sync::Arc};

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

    /// The shared views of the kinds of a tuple, each filled once: all are started before the first is waited for.
    pub(crate) async fn synced<K: Kinds>(&self) -> K::Views {
        K::synced(self).await
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

/// What [`Context::synced`] can be asked for: tuples of kinds.
pub(crate) trait Kinds {
    type Views;
    fn synced(context: &Context) -> impl Future<Output = Self::Views> + Send;
}

macro_rules! tuples_of_kinds {
    ($(($($kind:ident $view:ident,)+))+) => {$(
        impl<$($kind: Cached),+> Kinds for ($($kind,)+) {
            type Views = ($(Arc<Informer<$kind>>,)+);

            async fn synced(context: &Context) -> Self::Views {
                $(let $view = context.informer::<$kind>();)+
                $($view.synced().await;)+
                ($($view,)+)
            }
        }
    )+};
}

tuples_of_kinds! {
    (A a,)
    (A a, B b,)
    (A a, B b, C c,)
    (A a, B b, C c, D d,)
    (A a, B b, C c, D d, E e, F f,)
}
