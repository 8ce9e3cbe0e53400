//! Who may ask the kubelet's server: TokenReview and SubjectAccessReview, remembered for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use windlass_streaming::{Access, Identity};

/// The kubelet's own defaults: how long a yes and a no are remembered.
const TOKEN_KNOWN: Duration = Duration::from_secs(120);
const ALLOWED_KNOWN: Duration = Duration::from_secs(300);
const REFUSED_KNOWN: Duration = Duration::from_secs(30);
/// More answers than a node has callers; beyond it the oldest knowledge is given up.
const REMEMBERED: usize = 1024;

type Question = (Identity, &'static str, &'static str);

/// The cluster as the judge of this node's callers.
pub(crate) struct ClusterAccess {
    client: kube::Client,
    node: String,
    tokens: Memory<String, Option<Identity>>,
    rights: Memory<Question, bool>,
}

impl ClusterAccess {
    pub(crate) fn new(client: kube::Client, node: String) -> Self {
        Self {
            client,
            node,
            tokens: Memory::default(),
            rights: Memory::default(),
        }
    }

    async fn review_token(&self, token: String) -> Result<Option<Identity>, kube::Error> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        Ok(user.map(|user| Identity {
            user: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn review_access(&self, (who, verb, subresource): Question) -> Result<bool, kube::Error> {
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node.clone()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(who.user),
                groups: Some(who.groups),
                uid: Some(who.uid).filter(|uid| !uid.is_empty()),
                extra: Some(who.extra),
                resource_attributes: Some(attributes),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

impl Access for ClusterAccess {
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Option<Identity>, String>> {
        Box::pin(async move {
            if let Some(known) = self.tokens.get(&token) {
                return Ok(known);
            }
            let found = self.review_token(token.clone()).await;
            let found = found.map_err(|error| error.to_string())?;
            // A token that is nobody's now may be somebody's in a moment: only a yes is kept.
            if found.is_some() {
                self.tokens.put(token, found.clone(), TOKEN_KNOWN);
            }
            Ok(found)
        })
    }

    fn authorize(
        &self,
        who: Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> BoxFuture<'_, Result<bool, String>> {
        Box::pin(async move {
            let question = (who, verb, subresource);
            if let Some(known) = self.rights.get(&question) {
                return Ok(known);
            }
            let allowed = self.review_access(question.clone()).await;
            let allowed = allowed.map_err(|error| error.to_string())?;
            let lasts = if allowed {
                ALLOWED_KNOWN
            } else {
                REFUSED_KNOWN
            };
            self.rights.put(question, allowed, lasts);
            Ok(allowed)
        })
    }
}

/// Answers, each with the time until which it counts.
struct Memory<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = known.get(key)?;
        (*until > Instant::now()).then(|| value.clone())
    }

    fn put(&self, key: K, value: V, lasts: Duration) {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, (_, until)| *until > now);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key, (value, now + lasts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_forgotten_in_time_and_never_pile_up() {
        let memory = Memory::default();
        memory.put(0, "yes", Duration::from_secs(60));
        memory.put(1, "old", Duration::ZERO);
        assert_eq!((memory.get(&0), memory.get(&1)), (Some("yes"), None));
        for key in 2..3000 {
            memory.put(key, "more", Duration::from_secs(60));
        }
        assert!(memory.0.lock().unwrap().len() <= REMEMBERED);
    }
}
