//! Publishes the cluster's CA in every namespace as ConfigMap `kube-root-ca.crt`: projected
//! ServiceAccount volumes take it from there.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::PostParams};
use windlass_informers::{Informer, Key};

use crate::{
    runtime::{Context, Controller, Outcome, Queue, Result, ResultExt, patch, run_workers},
    serviceaccount::is_active,
};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const WHAT_FOR: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when \
    using internal endpoints such as the internal service IP or kubernetes.default.svc. No other \
    usage is guaranteed across distributions of Kubernetes clusters.";

struct RootCa {
    context: Context,
    namespaces: Arc<Informer<Namespace>>,
    maps: Arc<Informer<ConfigMap>>,
    data: BTreeMap<String, String>,
}

pub(crate) async fn start(context: Context) {
    let Some(pem) = context.config.root_ca_pem.clone() else {
        return;
    };
    let queue = Queue::new();
    let (namespaces, maps) = context.synced::<(Namespace, ConfigMap)>().await;

    let _own = queue.follow(&namespaces);
    let of_maps = Arc::clone(&queue);
    let _of_maps = maps.on_change(move |change| {
        let map = change.object();
        if map.metadata.name.as_deref() == Some(NAME) {
            of_maps.add(Key::cluster(map.namespace().unwrap_or_default()));
        }
    });
    let controller = Arc::new(RootCa {
        context: context.clone(),
        namespaces,
        maps,
        data: [("ca.crt".to_owned(), pem)].into(),
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

impl Controller for RootCa {
    type Key = Key;
    const NAME: &'static str = "root-ca-certificate-publisher";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        if !self
            .namespaces
            .by_key(key)
            .is_some_and(|namespace| is_active(&namespace))
        {
            return Ok(Outcome::Done);
        }
        let api = self.context.api::<ConfigMap>(&key.name);
        if let Some(existing) = self.maps.get(&key.name, NAME) {
            let mut updated = existing.as_ref().clone();
            updated.data = Some(self.data.clone());
            patch(&api, existing.as_ref(), &updated).await?;
            return Ok(Outcome::Done);
        }
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(key.name.clone()),
                annotations: Some([(DESCRIPTION.to_owned(), WHAT_FOR.to_owned())].into()),
                ..Default::default()
            },
            data: Some(self.data.clone()),
            ..Default::default()
        };
        let created = api
            .create(&PostParams::default(), &map)
            .await
            .doing(|| format!("create config map {NAME} in {key}"));
        match created {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {
                Ok(Outcome::Done)
            }
            other => other.map(|_| Outcome::Done),
        }
    }
}
