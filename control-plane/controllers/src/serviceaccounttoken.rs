//! Secrets of type `kubernetes.io/service-account-token`, which people make to get a token that does not
//! expire: removes them with their ServiceAccount. The API server, which holds the key, fills them in.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::ResourceExt;
use windlass_informers::{Change, Informer, Key};

use crate::runtime::{Context, Controller, Outcome, Queue, Result, ResultExt, delete, run_workers};

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

struct Tokens {
    context: Context,
    secrets: Arc<Informer<Secret>>,
    accounts: Arc<Informer<ServiceAccount>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (secrets, accounts) = context.synced::<(Secret, ServiceAccount)>().await;
    let _own = queue.follow_to(&secrets, |it| is_token(it).then(|| Key::of(it)));
    let (of_accounts, view) = (Arc::clone(&queue), Arc::clone(&secrets));
    let _of_accounts = accounts.on_change(move |change| {
        if let Change::Updated { .. } = change {
            return;
        }
        let account = change.object();
        for secret in view.in_namespace(&account.namespace().unwrap_or_default()) {
            if is_token(&secret) && secret.annotations().get(NAME) == account.metadata.name.as_ref()
            {
                of_accounts.add(Key::of(secret.as_ref()));
            }
        }
    });
    let controller = Arc::new(Tokens {
        context: context.clone(),
        secrets,
        accounts,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE) && secret.annotations().contains_key(NAME)
}

impl Controller for Tokens {
    type Key = Key;
    const NAME: &'static str = "serviceaccount-token";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(secret) = self
            .secrets
            .by_key(key)
            .filter(|secret| is_token(secret) && secret.metadata.deletion_timestamp.is_none())
        else {
            return Ok(Outcome::Done);
        };
        if !self.has_account(&secret).await? {
            // What it would give access to is gone.
            delete(&self.context.api::<Secret>(&key.namespace), secret.as_ref()).await?;
        }
        Ok(Outcome::Done)
    }
}

impl Tokens {
    /// Whether the account that a Secret is of is there; one that was deleted and made anew under its name is another.
    async fn has_account(&self, secret: &Secret) -> Result<bool> {
        let namespace = secret.namespace().unwrap_or_default();
        let name = secret.annotations().get(NAME).cloned().unwrap_or_default();
        let known = secret.annotations().get(UID).filter(|uid| !uid.is_empty());
        let is_it = |account: &ServiceAccount| {
            known.is_none_or(|uid| account.metadata.uid.as_ref() == Some(uid))
        };
        if let Some(account) = self.accounts.get(&namespace, &name)
            && is_it(&account)
        {
            return Ok(true);
        }
        let fresh = self
            .context
            .api::<ServiceAccount>(&namespace)
            .get_opt(&name)
            .await
            .doing(|| format!("get service account {namespace}/{name}"))?;
        Ok(fresh.is_some_and(|account| is_it(&account)))
    }
}
