//! Secrets of type `kubernetes.io/service-account-token`, which people make to get a token that does not
//! expire: fills them in, and removes them with their ServiceAccount.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
    },
};
use kube::{ResourceExt, api::PostParams};
use windlass_informers::{Change, Informer, Key};

use crate::runtime::{
    Context, Controller, Outcome, Queue, Result, ResultExt, delete, patch, run_workers,
};

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// As long as the TokenRequest API goes: the token ends with its Secret, to which it is bound.
const FOR_EVER: i64 = 1 << 32;

struct Tokens {
    context: Context,
    secrets: Arc<Informer<Secret>>,
    accounts: Arc<Informer<ServiceAccount>>,
}

pub(crate) fn start(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(run(context))
}

async fn run(context: Context) {
    let queue = Queue::new();
    let secrets = context.informer::<Secret>();
    let accounts = context.informer::<ServiceAccount>();
    secrets.synced().await;
    accounts.synced().await;
    let own = Arc::clone(&queue);
    let _own = secrets.on_change(move |change| {
        if is_token(change.object()) {
            own.add(Key::of(change.object().as_ref()));
        }
    });
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
        let api = self.context.api::<Secret>(&key.namespace);
        let Some(account) = self.account(&secret).await? else {
            // What it would give access to is gone.
            delete(&api, secret.as_ref()).await?;
            return Ok(Outcome::Done);
        };
        let mut updated = secret.as_ref().clone();
        updated
            .annotations_mut()
            .insert(UID.to_owned(), account.uid().unwrap_or_default());
        let data = updated.data.get_or_insert_default();
        let text = |text: &str| ByteString(text.as_bytes().to_vec());
        data.entry("namespace".to_owned())
            .or_insert_with(|| text(&key.namespace));
        if let Some(pem) = &self.context.config.root_ca_pem {
            data.insert("ca.crt".to_owned(), text(pem));
        }
        if !has(data, "token") {
            let token = self.issue(&secret, &account).await?;
            data.insert("token".to_owned(), text(&token));
        }
        patch(&api, secret.as_ref(), &updated).await?;
        Ok(Outcome::Done)
    }
}

fn has(data: &BTreeMap<String, ByteString>, key: &str) -> bool {
    data.get(key).is_some_and(|value| !value.0.is_empty())
}

impl Tokens {
    /// The account that a Secret is of; one that was deleted and made anew under its name is another.
    async fn account(&self, secret: &Secret) -> Result<Option<ServiceAccount>> {
        let namespace = secret.namespace().unwrap_or_default();
        let name = secret.annotations().get(NAME).cloned().unwrap_or_default();
        let known = secret.annotations().get(UID).filter(|uid| !uid.is_empty());
        let is_it = |account: &ServiceAccount| {
            known.is_none_or(|uid| account.metadata.uid.as_ref() == Some(uid))
        };
        if let Some(account) = self.accounts.get(&namespace, &name)
            && is_it(&account)
        {
            return Ok(Some(account.as_ref().clone()));
        }
        let fresh = self
            .context
            .api::<ServiceAccount>(&namespace)
            .get_opt(&name)
            .await
            .doing(|| format!("get service account {namespace}/{name}"))?;
        Ok(fresh.filter(is_it))
    }

    async fn issue(&self, secret: &Secret, account: &ServiceAccount) -> Result<String> {
        let namespace = account.namespace().unwrap_or_default();
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: Vec::new(),
                expiration_seconds: Some(FOR_EVER),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Secret".to_owned()),
                    name: secret.metadata.name.clone(),
                    uid: secret.uid(),
                }),
            },
            ..Default::default()
        };
        let issued = self
            .context
            .api::<ServiceAccount>(&namespace)
            .create_token_request(&account.name_any(), &PostParams::default(), &request)
            .await
            .doing(|| {
                format!(
                    "issue a token of service account {namespace}/{}",
                    account.name_any()
                )
            })?;
        Ok(issued.status.map(|status| status.token).unwrap_or_default())
    }
}
