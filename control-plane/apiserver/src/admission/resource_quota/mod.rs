//! ResourceQuota: charges what a new or changed object uses before it is written, and refuses what exceeds.
//!
//! The true count is `status.used` of the quota in the store, moved by compare-and-put, so that two requests,
//! or two API servers, never share the last place. What is deleted is given back by the quota controller,
//! which also mends what a crash between the charge and the write leaves behind. [`bill`] is the pure part.

mod bill;

use std::hash::{BuildHasher as _, RandomState};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::Mutex;
use windlass_api::quota::{Subject, Usage, difference};
use windlass_machinery::status::ApiError;
use windlass_store::{Expect, StoreError};

use super::{Attributes, Operation, Plugin};
use crate::cacher::Filter;
use crate::encode;
use crate::storage::{Stored, store_error};

/// How often a charge starts over because another API server was faster.
const ATTEMPTS: usize = 64;
/// Requests of one server take turns by quota instead of failing each other's compare-and-put.
const TURNS: usize = 64;

pub(super) struct ResourceQuota {
    turns: Vec<Mutex<()>>,
    hasher: RandomState,
}

/// An object, and what the write of it adds to its namespace's usage.
struct Charge {
    subject: Subject,
    delta: Usage,
}

/// What is done with a charge that fits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Check,
    Charge,
}

impl ResourceQuota {
    pub(super) fn new() -> Self {
        Self {
            turns: (0..TURNS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(object) = object.filter(|_| is_counted(attributes)) else {
            return Ok(());
        };
        let quotas = quotas(attributes)?;
        if quotas.is_empty() {
            return Ok(());
        }
        let charge = Charge::read(attributes, object)?;
        // All are asked before one is charged: a refusal usually costs no write.
        for key in &quotas {
            self.settle(attributes, key, &charge, Act::Check).await?;
        }
        if attributes.dry_run || charge.delta.is_empty() {
            return Ok(());
        }
        let mut charged = Vec::new();
        for key in &quotas {
            match self.settle(attributes, key, &charge, Act::Charge).await {
                Ok(true) => charged.push(key.as_str()),
                Ok(false) => {}
                Err(refusal) => {
                    self.give_back(attributes, &charged, &charge.delta).await;
                    return Err(refusal);
                }
            }
        }
        Ok(())
    }

    async fn withdraw(&self, attributes: &Attributes<'_>, object: &Value) {
        if attributes.dry_run || !is_counted(attributes) {
            return;
        }
        let (Ok(quotas), Ok(charge)) = (quotas(attributes), Charge::read(attributes, object))
        else {
            return;
        };
        let mut charged = Vec::new();
        for key in &quotas {
            let quota = attributes
                .context
                .server
                .caches
                .store()
                .get(key, None)
                .await;
            let quota = quota.ok().flatten().and_then(|kv| Stored::read(&kv).ok());
            if quota.is_some_and(|quota| bill::concerns(&quota.value, &charge.subject)) {
                charged.push(key.as_str());
            }
        }
        self.give_back(attributes, &charged, &charge.delta).await;
    }
}

impl ResourceQuota {
    /// Puts the charge on one quota; whether there was anything to put.
    ///
    /// # Errors
    /// 403 when it does not fit.
    async fn settle(
        &self,
        attributes: &Attributes<'_>,
        key: &str,
        charge: &Charge,
        act: Act,
    ) -> Result<bool, ApiError> {
        let refuse = |why: String| attributes.forbidden(&why);
        self.change(attributes, key, act, |quota| {
            bill::charged(quota, &charge.subject, &charge.delta).map_err(refuse)
        })
        .await
    }

    /// Takes a charge off again. Failures are left to the quota controller.
    async fn give_back(&self, attributes: &Attributes<'_>, keys: &[&str], delta: &Usage) {
        for key in keys {
            let back = self.change(attributes, key, Act::Charge, |quota| {
                Ok(bill::given_back(quota, delta))
            });
            if let Err(error) = back.await {
                tracing::warn!(quota = key, %error, "a charge could not be given back");
            }
        }
    }

    /// Writes the `status.used` that `next` makes of a quota, if it makes one.
    async fn change(
        &self,
        attributes: &Attributes<'_>,
        key: &str,
        act: Act,
        next: impl Fn(&Value) -> Result<Option<Value>, ApiError> + Send + Sync,
    ) -> Result<bool, ApiError> {
        let store = attributes.context.server.caches.store();
        let _turn = if act == Act::Charge {
            let at = self.hasher.hash_one(key) as usize % self.turns.len();
            Some(self.turns[at].lock().await)
        } else {
            None
        };
        for _ in 0..ATTEMPTS {
            let Some(kv) = store.get(key, None).await.map_err(store_error)? else {
                return Ok(false);
            };
            let mut quota = Stored::read(&kv)?.value;
            let Some(used) = next(&quota)? else {
                return Ok(false);
            };
            if act == Act::Check {
                return Ok(true);
            }
            quota["status"]["used"] = used;
            let (_, bytes) = encode::for_storage(quota);
            let expect = Expect::ModRevision(kv.mod_revision);
            match store.put(key, bytes, expect, None).await {
                Ok(_) => return Ok(true),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_error(error)),
            }
        }
        Err(ApiError::too_many_requests(
            "the namespace's quota is being changed too often; please try again",
            1,
        ))
    }
}

impl Charge {
    fn read(attributes: &Attributes<'_>, object: &Value) -> Result<Self, ApiError> {
        let (group, plural) = (attributes.endpoint.group(), attributes.endpoint.plural());
        let read = |object: &Value| {
            Subject::read(group, plural, object)
                .map_err(|e| ApiError::internal(format!("measuring {plural} for quota: {e}")))
        };
        let subject = read(object)?;
        let now = jiff::Timestamp::now();
        let usage = subject.usage(now);
        let negative: Vec<_> = usage
            .iter()
            .filter(|(_, amount)| amount.is_negative())
            .map(|(name, _)| name.as_str())
            .collect();
        if !negative.is_empty() {
            return Err(attributes.forbidden(&format!(
                "quota usage is negative for resource(s): {}",
                negative.join(",")
            )));
        }
        let before = match attributes.old {
            Some(old) => read(old)?.usage(now),
            None => Usage::new(),
        };
        let delta = difference(&usage, &before);
        Ok(Self { subject, delta })
    }
}

/// Whether a write can change what its namespace uses. Events expire by themselves, and are not counted.
fn is_counted(attributes: &Attributes<'_>) -> bool {
    if !attributes.endpoint.resource.namespaced || attributes.endpoint.plural() == "events" {
        return false;
    }
    match (attributes.operation, attributes.subresource) {
        (Operation::Create, "") => true,
        (Operation::Update, "") => {
            attributes.is("", "services") || attributes.is("", "persistentvolumeclaims")
        }
        (Operation::Update, "resize") => attributes.is("", "pods"),
        _ => false,
    }
}

/// The store's keys of the namespace's quotas.
fn quotas(attributes: &Attributes<'_>) -> Result<Vec<String>, ApiError> {
    let Some(cacher) = attributes.context.server.cacher("", "resourcequotas") else {
        return Ok(Vec::new());
    };
    let filter = Filter::new(&cacher.resource, Some(attributes.namespace), None, None)?;
    let entries = cacher.entries(&filter);
    Ok(entries.iter().map(|entry| entry.key.to_string()).collect())
}
