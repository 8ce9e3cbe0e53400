//! Every active namespace has a ServiceAccount `default`.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::PostParams};
use windlass_informers::{Change, Informer, Key};

use crate::runtime::{Context, Controller, Outcome, Queue, Result, ResultExt, run_workers};

const NAME: &str = "default";

struct ServiceAccounts {
    context: Context,
    namespaces: Arc<Informer<Namespace>>,
    accounts: Arc<Informer<ServiceAccount>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (namespaces, accounts) = context.synced::<(Namespace, ServiceAccount)>().await;

    let _own = queue.follow(&namespaces);
    let of_accounts = Arc::clone(&queue);
    let _of_accounts = accounts.on_change(move |change| {
        if let Change::Deleted(account) = change {
            of_accounts.add(Key::cluster(account.namespace().unwrap_or_default()));
        }
    });
    let controller = Arc::new(ServiceAccounts {
        context: context.clone(),
        namespaces,
        accounts,
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

/// Whether objects can still be made in the namespace.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
}

impl Controller for ServiceAccounts {
    type Key = Key;
    const NAME: &'static str = "serviceaccount";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let wanted = self
            .namespaces
            .by_key(key)
            .is_some_and(|namespace| is_active(&namespace));
        if !wanted || self.accounts.get(&key.name, NAME).is_some() {
            return Ok(Outcome::Done);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(key.name.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        let created = self
            .context
            .api::<ServiceAccount>(&key.name)
            .create(&PostParams::default(), &account)
            .await
            .doing(|| format!("create service account {NAME} in {key}"));
        match created {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {
                Ok(Outcome::Done)
            }
            other => other.map(|_| Outcome::Done),
        }
    }
}
