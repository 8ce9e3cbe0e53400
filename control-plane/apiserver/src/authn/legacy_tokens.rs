//! Secrets of the type `kubernetes.io/service-account-token`: whoever makes one for a ServiceAccount gets a token
//! into it that lasts as long as the Secret and the account do.
//!
//! Short-lived tokens have replaced them, but tools outside of the cluster still live on them. Who holds the key fills
//! them, since a TokenRequest cannot ask for a token without an end; a controller removes them with their account.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::selector::FieldSelector;
use windlass_machinery::status::ApiError;

use super::service_account::ObjectRef;
use crate::cacher::{Filter, From};
use crate::follower;
use crate::server::ApiServer;

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Fills such Secrets until the server shuts down.
pub(crate) fn start(server: &Arc<ApiServer>) {
    let complain = |error: &ApiError| tracing::debug!(%error, "token Secrets not in step");
    follower::start(server, |server| Box::pin(follow(server)), complain);
}

async fn follow(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let (Some(secrets), Some(accounts)) = (
        server.cacher("", "secrets"),
        server.cacher("", "serviceaccounts"),
    ) else {
        return Ok(());
    };
    let of_type = FieldSelector::parse(&format!("type={TYPE}"))
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let filter = Filter::new(&secrets.resource, None, None, Some(&of_type))?;
    let every_account = Filter::new(&accounts.resource, None, None, None)?;
    let now = From::Now {
        with_initial: false,
    };
    let of_secrets = server.caches.watch(&secrets, filter.clone(), now)?;
    // A Secret may have been there before its account.
    let of_accounts = server.caches.watch(&accounts, every_account, now)?;
    loop {
        for entry in secrets.entries(&filter) {
            let secret = entry.decode()?;
            let account = secret["metadata"]["annotations"][ACCOUNT].as_str();
            let Some(account) = account.and_then(|name| accounts.get(entry.namespace(), name))
            else {
                continue;
            };
            if let Some(filled) = filled(server, secret, &account.decode()?)? {
                let path = format!(
                    "/api/v1/namespaces/{}/secrets/{}",
                    entry.namespace(),
                    entry.name()
                );
                server.replace_seen(&path, &filled).await?;
            }
        }
        tokio::select! {
            events = of_secrets.next() => drop(events?),
            events = of_accounts.next() => drop(events?),
        }
    }
}

/// The Secret with what it lacks; `None` where it lacks nothing or is another account's.
fn filled(
    server: &ApiServer,
    mut secret: Value,
    account: &Value,
) -> Result<Option<Value>, ApiError> {
    let uid = meta::uid(account).to_owned();
    let stated = secret["metadata"]["annotations"][ACCOUNT_UID].as_str();
    let ca_pem = server.aggregator.cluster_ca();
    let has = |field: &str| secret["data"][field].is_string();
    let complete = has("token") && has("namespace") && (ca_pem.is_none() || has("ca.crt"));
    let foreign = stated.is_some_and(|stated| stated != uid);
    if foreign || (complete && stated.is_some()) || meta::is_deleting(&secret) {
        return Ok(None);
    }
    let namespace = meta::namespace(&secret).to_owned();
    if !secret["data"]["token"].is_string() {
        let own = ObjectRef {
            name: meta::name(&secret).to_owned(),
            uid: meta::uid(&secret).to_owned(),
        };
        let of = ObjectRef {
            name: meta::name(account).to_owned(),
            uid: uid.clone(),
        };
        let tokens = server.authenticator.service_account_tokens();
        let token = tokens
            .issue_for_secret(&namespace, &of, &own)
            .map_err(ApiError::internal)?;
        secret["data"]["token"] = STANDARD.encode(token).into();
    }
    if let Some(ca_pem) = ca_pem {
        secret["data"]["ca.crt"] = STANDARD.encode(ca_pem).into();
    }
    secret["data"]["namespace"] = STANDARD.encode(namespace).into();
    secret["metadata"]["annotations"][ACCOUNT_UID] = uid.into();
    Ok(Some(secret))
}
