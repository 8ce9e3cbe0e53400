//! Leader election by a Lease of `coordination.k8s.io`, as client-go does it.
//!
//! A Lease cannot fence: a leader that was suspended may still believe in its term. Every write of a
//! controller therefore carries its own precondition; the Lease only keeps two from working at once.
//! Expiry is judged by the local clock from the moment a change of the record was observed, so clocks of
//! different machines need not agree.

use std::{future::Future, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Whose lease, and its timing; the defaults are Kubernetes' own.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease, for example `kube-scheduler`.
    pub name: String,
    /// Who we are: unique among the candidates.
    pub identity: String,
    /// How long an unrenewed term lasts.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it steps down.
    pub renew_deadline: Duration,
    /// Between two tries.
    pub retry_period: Duration,
}

impl LeaderConfig {
    /// A lease in `kube-system` with the usual timing (15 s, 10 s, 2 s).
    pub fn new(name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: "kube-system".into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Runs `work` whenever this process leads, giving it a token that is cancelled when the term ends, until
/// `cancel`. Work that ends by itself has failed: the Lease is given up, perhaps to a luckier candidate,
/// and asked for again. It is also released on the way out, so that nobody need wait for it to expire.
///
/// A term begins when the server that `client` asks has seen all that was written before it.
pub async fn lead<F, Fut>(client: Client, config: LeaderConfig, cancel: CancellationToken, work: F)
where
    F: Fn(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut candidate = Candidate::new(client, config);
    while cancel
        .run_until_cancelled(candidate.acquire())
        .await
        .is_some()
    {
        let lease = candidate.config.name.clone();
        info!(lease, identity = candidate.config.identity, "leading");
        let term = cancel.child_token();
        let mut working = Box::pin(work(term.clone()));
        tokio::select! {
            () = &mut working => {
                candidate.release().await;
                if cancel.is_cancelled() {
                    return;
                }
                warn!(lease, "work ended before its term, trying again");
                tokio::time::sleep(jitter(candidate.config.retry_period)).await;
            }
            () = candidate.hold() => {
                warn!(lease, "lost the lease, stopping work");
                term.cancel();
                working.await;
            }
            () = cancel.cancelled() => {
                working.await;
                return candidate.release().await;
            }
        }
    }
}

/// What was last seen of the Lease, and when it last changed by our own clock.
struct Observed {
    spec: LeaseSpec,
    at: Instant,
}

struct Candidate {
    api: Api<Lease>,
    config: LeaderConfig,
    observed: Option<Observed>,
}

impl Candidate {
    fn new(client: Client, config: LeaderConfig) -> Self {
        Self {
            api: Api::namespaced(client, &config.namespace),
            config,
            observed: None,
        }
    }

    async fn acquire(&mut self) {
        loop {
            match self.try_acquire_or_renew().await {
                Ok(true) => match self.catch_up().await {
                    Ok(()) => return,
                    Err(error) => {
                        warn!(lease = self.config.name, %error, "the server lags behind its store, retrying");
                    }
                },
                Ok(false) => {}
                Err(error) => {
                    warn!(lease = self.config.name, %error, "cannot reach the lease, retrying");
                }
            }
            tokio::time::sleep(jitter(self.config.retry_period)).await;
        }
    }

    /// A consistent read, which our server answers once its cache is as new as its store: what is listed from now on
    /// holds all that an earlier leader wrote.
    async fn catch_up(&self) -> kube::Result<()> {
        let read = ListParams::default().limit(1);
        self.api.list_metadata(&read).await.map(drop)
    }

    /// Renews until it has failed for the whole renew deadline.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let left = self.config.renew_deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.try_acquire_or_renew()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    warn!(lease = self.config.name, %error, "renewal failed, retrying");
                }
                Err(_elapsed) => return,
            }
            if renewed.elapsed() >= self.config.renew_deadline {
                return;
            }
        }
    }

    /// One round: true when we hold the Lease afterwards. The write carries the resourceVersion that was
    /// read, so of two candidates one gets a conflict.
    async fn try_acquire_or_renew(&mut self) -> kube::Result<bool> {
        let now = Timestamp::now();
        let Some(mut lease) = self.api.get_opt(&self.config.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.config.name.clone()),
                    namespace: Some(self.config.namespace.clone()),
                    ..Default::default()
                },
                spec: Some(next_spec(&LeaseSpec::default(), &self.config, now)),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if self
            .observed
            .as_ref()
            .is_none_or(|observed| observed.spec != spec)
        {
            self.observed = Some(Observed {
                spec: spec.clone(),
                at: Instant::now(),
            });
        }
        let unchanged_for = self
            .observed
            .as_ref()
            .map_or(Duration::ZERO, |o| o.at.elapsed());
        if !may_take(&spec, &self.config.identity, unchanged_for) {
            return Ok(false);
        }
        lease.spec = Some(next_spec(&spec, &self.config, now));
        won(self
            .api
            .replace(&self.config.name, &PostParams::default(), &lease)
            .await)
    }

    async fn release(&mut self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.config.name).await else {
            return;
        };
        let Some(spec) = lease.spec.as_mut() else {
            return;
        };
        if spec.holder_identity.as_deref() != Some(&self.config.identity) {
            return;
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        if let Err(error) = self
            .api
            .replace(&self.config.name, &PostParams::default(), &lease)
            .await
        {
            warn!(lease = self.config.name, %error, "could not release the lease");
        }
    }
}

/// A conflict means that another candidate was faster.
fn won(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn may_take(spec: &LeaseSpec, identity: &str, unchanged_for: Duration) -> bool {
    match spec.holder_identity.as_deref() {
        None | Some("") => true,
        Some(holder) if holder == identity => true,
        Some(_) => {
            let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
            unchanged_for > Duration::from_secs(seconds)
        }
    }
}

fn next_spec(previous: &LeaseSpec, config: &LeaderConfig, now: Timestamp) -> LeaseSpec {
    let renewal = previous.holder_identity.as_deref() == Some(&config.identity);
    let transitions = previous.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: Some(
            i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX),
        ),
        acquire_time: if renewal {
            previous.acquire_time.clone()
        } else {
            Some(MicroTime(now))
        },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(match (renewal, &previous.acquire_time) {
            (true, _) | (false, None) => transitions,
            (false, Some(_)) => transitions + 1,
        }),
        ..previous.clone()
    }
}

/// Candidates that started together must not knock in step for ever.
fn jitter(period: Duration) -> Duration {
    period.mul_f64(1.0 + rand::random::<f64>() * 0.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            acquire_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            lease_transitions: Some(3),
            ..Default::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_free_ours_or_expired() {
        let cases = [
            (LeaseSpec::default(), 0, true),
            (held_by("me"), 0, true),
            (held_by("other"), 15, false),
            (held_by("other"), 16, true),
            (held_by(""), 0, true),
        ];
        for (spec, unchanged, expected) in cases {
            assert_eq!(
                may_take(&spec, "me", Duration::from_secs(unchanged)),
                expected,
                "{spec:?} unchanged for {unchanged} s"
            );
        }
    }

    #[test]
    fn a_renewal_keeps_the_term_and_a_takeover_counts_a_transition() {
        let config = LeaderConfig::new("x", "me");
        let now = Timestamp::from_second(100).unwrap();
        let renewed = next_spec(&held_by("me"), &config, now);
        assert_eq!(renewed.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        assert_eq!(renewed.lease_transitions, Some(3));
        let taken = next_spec(&held_by("other"), &config, now);
        assert_eq!(taken.acquire_time, Some(MicroTime(now)));
        assert_eq!(taken.lease_transitions, Some(4));
        assert_eq!(
            next_spec(&LeaseSpec::default(), &config, now).lease_transitions,
            Some(0)
        );
    }
}
